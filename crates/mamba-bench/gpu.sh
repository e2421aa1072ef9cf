#!/usr/bin/env bash
# Measures a GPU: a process a precision and backend, in which kernels are compiled and
# proved once, and in it the most wanted suites first.
#
#   gpu.sh PROGRAM OUT [SECONDS]
#
# PROGRAM is mamba-lab built with `--features cuda,vulkan`; a device that it lacks is told, and its part left out. OUT takes
# OUT/PART/SUITE with all that was found, written as it comes, and CARD-PART-SUITE.json and .svg, which are its results and its
# plot or, of a suite that was cut off, what it had written. The last 40 of SECONDS (580) are kept for what then runs: nothing
# begins in them, and what is not done at their end is cut off. What a part had no time for is named in its tables.
#
#   part     seconds  what
#   bf16     380      kernels, prompts and decoding beside peers
#   long     310      training beside peers, a million tokens, memory
#   f32      ?        kernels, scaling (120 for both), training, the backends of the build
#   vulkan   40       kernels, a prompt, decoding
#
# The seconds are those of an H100 with 16 cores, of which compiling keeps one busy most of the time; where there is a question mark
# nobody has seen the end yet. They fit into ten minutes a command as ONLY=bf16, ONLY=long and ONLY="f32 vulkan".
#
#   ONLY         the parts to run ("bf16 long f32 vulkan")
#   PYTHON       Python with torch, triton, transformers and einops (python3)
#   PYTHON_PATH  folder that holds mamba-ssm's folder mamba_ssm; its Python files are enough
#   MAMBA_RS     program built from peers/mamba-rs with its feature cuda, if it is to run beside ours
#   CARD         first part of the files' names (h100)
#   CUDA VULKAN  devices to use in place of those, and
#   MORE         options for every part, for a look at another machine: CUDA=flex VULKAN=wgpu MORE=--quick
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
lab=$1 out=$2 end=$((SECONDS + ${3:-580})) reserve=40 bad=0
[ -x "$lab" ] || { echo "no program at $lab: build mamba-lab first" >&2; exit 2; }
mkdir -p "$out" || exit 2

peers=(--peers --python "${PYTHON:-python3}")
[ -z "${PYTHON_PATH:-}" ] || peers+=(--python-path "$PYTHON_PATH")
models=()
[ -z "${MAMBA_RS:-}" ] || models+=(--peer-mamba-rs "$MAMBA_RS")

# PART LIMIT SUITE.. [OPTION..]
part() {
  local name=$1 limit=$2 code=0 start=$SECONDS left=$((end - SECONDS)) folder suite
  shift 2
  case " ${ONLY:-bf16 long f32 vulkan} " in *" $name "*) ;; *) return ;; esac
  [ "$limit" -le $((left - reserve)) ] || limit=$((left - reserve))
  if [ "$limit" -lt 20 ]; then
    echo "$name: not begun, the time is over"
    return
  fi
  rm -rf "${out:?}/$name" "$out/${CARD:-h100}-$name"-*
  # shellcheck disable=SC2086 # several options in one variable
  timeout -k 5 $((limit + reserve)) "$lab" bench "$@" ${MORE:-} --time-limit "$limit" --out "$out/$name" >"$out/$name.log" 2>&1 || code=$?
  for folder in "$out/$name"/*/; do
    suite=$(basename "$folder")
    for found in "$folder"results.json "$folder"results.jsonl; do
      [ -s "$found" ] || continue
      cp "$found" "$out/${CARD:-h100}-$name-$suite.json"
      break
    done
    for found in "$folder"*.svg; do
      [ ! -s "$found" ] || cp "$found" "$out/${CARD:-h100}-$name-$suite.svg"
    done
  done
  case $code in
    0) echo "$name: $((SECONDS - start)) s; $(grep -c '^Not measured: .* of --time-limit are over$' "$out/$name.log") left out for want of time" ;;
    124 | 137) echo "$name: cut off after $((SECONDS - start)) s" && bad=1 ;;
    *) echo "$name: failed after $((SECONDS - start)) s: $(tail -1 "$out/$name.log")" && bad=1 ;;
  esac
}

# No peer is like Pythia.
ours=(--filter "mamba,gpt2,transformer,scan,ssd,conv,attention" --rounds 3)
cuda=(--device "${CUDA:-cuda}") vulkan=(--device "${VULKAN:-vulkan}")
part bf16 480 kernels prefill:1x128,1024 decode:1,64x1024 "${cuda[@]}" --precision bf16 "${ours[@]}" "${peers[@]}" "${models[@]}"
part long 400 train prefill:1x1000000 memory:65536,1000000 "${cuda[@]}" --precision bf16 "${ours[@]}" "${peers[@]}"
part f32 300 kernels scaling:128,1024,4096,16384,65536 train backends "${cuda[@]}" "${ours[@]}"
part vulkan 100 kernels prefill:1x1024 decode:1x1024 "${vulkan[@]}" "${ours[@]}"
exit $bad
