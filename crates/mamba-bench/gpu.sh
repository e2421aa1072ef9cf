#!/usr/bin/env bash
# The measurements of a GPU that artifacts/bench keeps, the smallest useful first, each with a time limit of its own.
#
#   gpu.sh PROGRAM OUT [SECONDS]
#
# PROGRAM is mamba-lab built with `--features cuda,vulkan`; a device that it lacks is told and left out. OUT takes a folder a
# measurement with all that was found, written as it comes, and h100-NAME.json, which is its results.json or, if it was cut off,
# what it had written. After SECONDS (480) nothing further begins, and what runs is cut off.
#
#   PYTHON       Python with torch, triton, transformers and einops (python3)
#   PYTHON_PATH  folder that holds mamba-ssm's folder mamba_ssm; its Python files are enough
#   MAMBA_RS     program built from peers/mamba-rs with its feature cuda, if it is to run beside ours
#   ONLY         part of the names of what is to be run
#   CARD         first part of the files' names (h100)
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
lab=$1 out=$2 end=$((SECONDS + ${3:-480}))
[ -x "$lab" ] || { echo "no program at $lab: build mamba-lab first" >&2; exit 2; }
mkdir -p "$out" || exit 2

peers=(--peers --python "${PYTHON:-python3}")
[ -z "${PYTHON_PATH:-}" ] || peers+=(--python-path "$PYTHON_PATH")

# NAME LIMIT SUITE [OPTION..]
measure() {
  local name=$1 limit=$2 left=$((end - SECONDS)) code=0 start=$SECONDS
  shift 2
  case $name in *"${ONLY:-}"*) ;; *) return ;; esac
  if [ "$left" -lt 10 ]; then
    echo "$name: not begun, the time is over"
    return
  fi
  rm -rf "${out:?}/$name"
  timeout -k 5 "$((limit < left ? limit : left))" "$lab" bench "$@" --out "$out/$name" >"$out/$name.log" 2>&1 || code=$?
  for found in "$out/$name/results.json" "$out/$name/results.jsonl"; do
    [ -s "$found" ] || continue
    cp "$found" "$out/${CARD:-h100}-$name.json"
    break
  done
  case $code in
    0) echo "$name: $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: cut off after $((SECONDS - start)) s" ;;
    *) echo "$name: failed after $((SECONDS - start)) s: $(tail -1 "$out/$name.log")" ;;
  esac
}

models=("${peers[@]}")
[ -z "${MAMBA_RS:-}" ] || models+=(--peer-mamba-rs "$MAMBA_RS")

cuda=(--device cuda) bf16=(--device cuda --precision bf16)
measure kernels-bf16 150 kernels "${bf16[@]}" "${peers[@]}" --rounds 5
measure decode-bf16 90 decode "${bf16[@]}" "${models[@]}" --filter mamba,gpt2 --lengths 1024 --rounds 3
measure prefill-bf16 90 prefill "${bf16[@]}" "${models[@]}" --filter mamba,gpt2 --lengths 128,1024 --batches 1 --rounds 3
measure million-bf16 60 prefill "${bf16[@]}" --filter mamba,gpt2 --lengths 1000000 --batches 1 --rounds 3
measure memory-bf16 90 memory "${bf16[@]}" --filter mamba,gpt2 --lengths 65536,1000000
measure train-bf16 60 train "${bf16[@]}" --filter mamba,gpt2 --rounds 3
measure scaling 90 scaling "${cuda[@]}" --rounds 3
measure vulkan-kernels 75 kernels --device vulkan --rounds 3
measure train 60 train "${cuda[@]}" --filter mamba,gpt2 --rounds 3
measure kernels 75 kernels "${cuda[@]}" --rounds 5
measure vulkan-decode 60 decode --device vulkan --filter mamba --lengths 1024 --batches 1 --rounds 3
measure vulkan-prefill 60 prefill --device vulkan --filter mamba --lengths 1024 --batches 1 --rounds 3
measure prefill-long-bf16 60 prefill "${bf16[@]}" --lengths 4096,16384,65536 --rounds 3
measure train-peers-bf16 90 train "${bf16[@]}" "${peers[@]}" --filter gpt2 --rounds 3
measure backends 90 backends --rounds 3
