"""Operations beside ours: one JSON request a line on standard input, one JSON object a line back.

Needs torch. Triton's kernels of mamba-ssm need its Python files, triton and einops, not its CUDA extension; the CUDA kernels
need `selective_scan_cuda` and `causal_conv1d`. What is not there is told. Started by mamba-bench.
"""

import argparse
import importlib
import importlib.util
import json
import math
import os
import re
import sys
import time
import traceback
import types

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# Calls that one CUDA graph replays, and how long a call may take for that to matter.
GRAPHED, GRAPHED_MS = 8, 5.0


def triton_kernels(name):
    """A module of mamba_ssm/ops/triton. The package's own __init__ needs a CUDA extension: an empty one stands for it."""
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        if spec is None:
            raise ModuleNotFoundError("no Python files of mamba-ssm are found: give their folder as --python-path")
        stand_in = types.ModuleType("mamba_ssm")
        stand_in.__path__ = list(spec.submodule_search_locations)
        sys.modules["mamba_ssm"] = stand_in
    return importlib.import_module(f"mamba_ssm.ops.triton.{name}")


def scan_cuda(t):
    kernels = importlib.import_module("selective_scan_cuda")
    u, delta, z, b, c = (t[name].transpose(1, 2).contiguous() for name in ("u", "delta", "z", "b", "c"))
    b, c = b.unsqueeze(1), c.unsqueeze(1)  # [batch, groups, d_state, seq_len]
    return lambda: kernels.fwd(u, delta, t["a"], b, c, t["d"], z, t["delta_bias"], True)[2].transpose(1, 2)


def scan_loop(t):
    """The recurrence position by position; decays and inputs of all positions are made first, as tutorials do it."""

    def call():
        u, z, b, c = (t[name].float() for name in ("u", "z", "b", "c"))
        dt = F.softplus(t["delta"].float() + t["delta_bias"])
        decay = torch.exp(dt.unsqueeze(-1) * t["a"])  # [batch, seq_len, d_inner, d_state]
        drive = (dt * u).unsqueeze(-1) * b.unsqueeze(2)
        state = torch.zeros_like(drive[:, 0]) if t["state"] is None else t["state"]
        outputs = []
        for i in range(u.shape[1]):
            state = decay[:, i] * state + drive[:, i]
            outputs.append((state @ c[:, i].unsqueeze(-1)).squeeze(-1))
        return ((torch.stack(outputs, 1) + t["d"] * u) * F.silu(z)).to(t["u"].dtype)

    return call


def scan_update(t):
    update = triton_kernels("selective_state_update").selective_state_update
    u, delta, z, b, c = (t[name][:, 0] for name in ("u", "delta", "z", "b", "c"))
    options = {"D": t["d"], "z": z, "dt_bias": t["delta_bias"], "dt_softplus": True}
    return lambda: update(t["state"], u, delta, t["a"], b, c, **options).unsqueeze(1)


def ssd_triton(t):
    combined = triton_kernels("ssd_combined").mamba_chunk_scan_combined
    b, c = t["b"].unsqueeze(2), t["c"].unsqueeze(2)  # [batch, seq_len, groups, d_state]
    options = {"D": t["d"], "dt_bias": t["dt_bias"], "dt_softplus": True, "return_final_states": True}
    return lambda: combined(t["x"], t["dt"], t["a"], b, c, 256, **options)[0].flatten(2)


def ssd_chunks(t, chunk=64):
    """Matrix products within chunks, the recurrence between them."""

    def call():
        x, b, c = (t[name].float() for name in ("x", "b", "c"))
        batch, seq_len, heads, width = x.shape
        dt = F.softplus(t["dt"].float() + t["dt_bias"])
        rest = -seq_len % chunk

        def cut(values):
            values = F.pad(values, (0, 0) * (values.ndim - 2) + (0, rest))
            return values.unflatten(1, (-1, chunk))

        inputs, b, c = cut(x * dt.unsqueeze(-1)).transpose(2, 3), cut(b), cut(c)  # [batch, chunks, heads, chunk, width]
        log = cut(dt * t["a"]).cumsum(2).transpose(2, 3)  # [batch, chunks, heads, chunk]
        past = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
        decay = (log.unsqueeze(-1) - log.unsqueeze(-2)).masked_fill(~past, -math.inf).exp()
        y = (decay * (c @ b.transpose(-1, -2)).unsqueeze(2)) @ inputs
        left = (log[..., -1:] - log).exp().unsqueeze(-1)
        states = (inputs * left).transpose(-1, -2) @ b.unsqueeze(2)  # [batch, chunks, heads, width, d_state]
        state, before = torch.zeros_like(states[:, 0]), []
        for i in range(states.shape[1]):
            before.append(state)
            state = state * log[:, i, :, -1].exp()[..., None, None] + states[:, i]
        across = c.unsqueeze(2) @ torch.stack(before, 1).transpose(-1, -2)
        y = (y + across * log.exp().unsqueeze(-1)).transpose(2, 3).flatten(1, 2)[:, :seq_len]
        return (y + x * t["d"].unsqueeze(-1)).to(t["x"].dtype).flatten(2)

    return call


def ssd_update(t):
    update = triton_kernels("selective_state_update").selective_state_update
    batch, heads, width, d_state = t["state"].shape
    x, b, c = t["x"][:, 0], t["b"], t["c"]  # one position is one group
    dt = t["dt"][:, 0].unsqueeze(-1).expand(batch, heads, width)
    a = t["a"][:, None, None].expand(heads, width, d_state)
    options = {"D": t["d"].unsqueeze(-1).expand(heads, width), "dt_softplus": True}
    options["dt_bias"] = t["dt_bias"].unsqueeze(-1).expand(heads, width)
    return lambda: update(t["state"], x, dt, a, b, c, **options).flatten(1).unsqueeze(1)


def ssd_step(t):
    def call():
        x, b, c = (t[name][:, 0].float() for name in ("x", "b", "c"))
        dt = F.softplus(t["dt"][:, 0].float() + t["dt_bias"])
        drive = (dt.unsqueeze(-1) * x).unsqueeze(-1) * b[:, None, None]
        state = t["state"] * torch.exp(dt * t["a"])[..., None, None] + drive
        y = (state @ c[:, None, :, None]).squeeze(-1) + t["d"].unsqueeze(-1) * x
        return y.to(t["x"].dtype).flatten(1).unsqueeze(1)

    return call


def conv_cuda(t):
    conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
    return lambda: conv(t["x"].transpose(1, 2), t["weight"], t["bias"], activation="silu").transpose(1, 2)


def conv_torch(t):
    channels, width = t["weight"].shape
    x, weight, bias = t["x"].transpose(1, 2).contiguous(), t["weight"].to(t["x"].dtype), t["bias"].to(t["x"].dtype)
    options = {"padding": width - 1, "groups": channels}
    return lambda: F.silu(F.conv1d(x, weight.unsqueeze(1), bias, **options)[..., : x.shape[-1]]).transpose(1, 2)


def attention(backend):
    def prepare(t):
        def call():
            with sdpa_kernel(backend):
                y = F.scaled_dot_product_attention(t["query"], t["key"], t["value"], is_causal=True)
            return y.transpose(1, 2).flatten(2)

        return call

    return prepare


# Who solves an operation: a name, what prepares its call, and where it runs.
ENGINES = {
    "scan": [("mamba-ssm cuda", scan_cuda, "cuda"), ("torch loop", scan_loop, "any")],
    "scan step": [("mamba-ssm triton", scan_update, "triton"), ("torch", scan_loop, "any")],
    "ssd": [("mamba-ssm triton", ssd_triton, "triton"), ("torch chunks", ssd_chunks, "any")],
    "ssd step": [("mamba-ssm triton", ssd_update, "triton"), ("torch", ssd_step, "any")],
    "conv": [("causal-conv1d", conv_cuda, "cuda"), ("torch conv1d", conv_torch, "any")],
    "attention": [
        ("torch flash", attention(SDPBackend.FLASH_ATTENTION), "cuda bf16"),
        ("torch cudnn", attention(SDPBackend.CUDNN_ATTENTION), "cuda bf16"),
        ("torch efficient", attention(SDPBackend.EFFICIENT_ATTENTION), "cuda f32"),
        ("torch sdpa", attention([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]), "cpu"),
    ],
}


def runs_on(where, device, half):
    if where == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return True
    kinds = {"any": True, "cpu": device == "cpu", "cuda bf16": half, "cuda f32": not half}
    return kinds.get(where, True) and (where in ("any", "cpu") or device.startswith("cuda"))


# Of every input: its axes, the least and the largest value. Axes of an f32 input, whatever activations are, end in a "!".
INPUTS = {
    "scan": {"u": ("blc", -1, 1), "delta": ("blc", -0.5, 0.5), "a": ("cn!", None, None), "b": ("bln", -1, 1),
             "c": ("bln", -1, 1), "d": ("c!", 0.5, 1.5), "z": ("blc", -2, 2), "delta_bias": ("c!", -6, -2.5),
             "state": ("bcn!", -1, 1)},
    "ssd": {"x": ("blhp", -1, 1), "dt": ("blh", -0.5, 0.5), "a": ("h!", -16, -1), "b": ("bln", -1, 1), "c": ("bln", -1, 1),
            "d": ("h!", 0.5, 1.5), "dt_bias": ("h!", -6, -2.5), "state": ("bhpn!", -1, 1)},
    "conv": {"x": ("blc", -1, 1), "weight": ("cw!", -1, 1), "bias": ("c!", -1, 1)},
    "attention": {"query": ("bhlp", -2, 2), "key": ("bhlp", -2, 2), "value": ("bhlp", -2, 2)},
}
AXES = {"b": ("batch",), "l": ("seq_len",), "c": ("d_inner", "channels"), "n": ("d_state",), "w": ("width",),
        "h": ("nheads", "num_heads"), "p": ("headdim", "head_dim")}


class Peer:
    """One method a request."""

    def __init__(self, device):
        self.device, self.calls, self.graphs = device, {}, {}

    def hello(self):
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        return {"torch": torch.__version__} | {name: version(name) for name in ("triton", "mamba_ssm", "causal_conv1d")}

    def offers(self, op, sizes, half):
        """Tries each engine on a few numbers, so that what is missing is known before anything is timed."""
        engines = [it for it in ENGINES[op] if runs_on(it[2], self.device, half)]
        return {"engines": [{"engine": name, "missing": self.missing(prepare, op)} for name, prepare, _ in engines]}

    def missing(self, prepare, op):
        few = {name: 2 for names in AXES.values() for name in names}
        if op.endswith("step"):
            few["seq_len"] = 1
        try:
            prepare(self.tensors(op, few, False))
        except ImportError as error:
            return f"{type(error).__name__}: {error}"
        return None

    def tensors(self, op, sizes, half, given=None):
        """Inputs at random, or those given."""
        step, made = op.endswith("step"), {}
        for name, (axes, low, high) in INPUTS[op.split()[0]].items():
            if name == "state" and not step:
                made[name] = None
                continue
            shape = [next(sizes[size] for size in AXES[axis] if size in sizes) for axis in axes.rstrip("!")]
            if given is not None:
                values = torch.tensor(given[name], device=self.device).view(shape)
            elif low is None:
                values = -torch.arange(1.0, shape[-1] + 1, device=self.device).expand(shape).contiguous()
            else:
                values = torch.empty(shape, device=self.device).uniform_(low, high)
            made[name] = values if axes.endswith("!") or not half else values.bfloat16()
        return made

    def engine(self, op, name):
        return next(prepare for engine, prepare, _ in ENGINES[op] if engine == name)

    @torch.inference_mode()
    def compute(self, engine, op, sizes, half, inputs):
        call = self.engine(op, engine)(self.tensors(op, sizes, half, inputs))
        return {"values": call().float().flatten().tolist()}

    @torch.inference_mode()
    def prepare(self, engine, op, sizes, half):
        call = self.engine(op, engine)(self.tensors(op, sizes, half))
        self.calls[engine] = (call, 1)
        call()
        if not self.device.startswith("cuda"):
            return {"how": "call by call"}
        if min(self.time(engine, 1)["ms"][0] for _ in range(3)) > GRAPHED_MS:
            return {"how": "calls queued one after the other"}
        try:
            self.calls[engine] = (captured(call), GRAPHED)
        except RuntimeError as error:
            torch.cuda.synchronize()
            return {"how": f"calls queued one after the other, as no CUDA graph could be made of them ({error})"}
        return {"how": "replays of a CUDA graph"}

    @torch.inference_mode()
    def time(self, engine, calls):
        call, each = self.calls[engine]
        if not self.device.startswith("cuda"):
            return {"ms": [clock(call) for _ in range(calls)]}
        turns = math.ceil(calls / each)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(turns):
            call()
        end.record()
        end.synchronize()
        return {"ms": [start.elapsed_time(end) / (turns * each)]}

    def forget(self):
        self.calls.clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return {}


def captured(call):
    """What replays some calls without Python between them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPHED):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def clock(call):
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def version(name):
    """Of a package, read from its file, as some cannot be imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return "none"
    with open(spec.origin, encoding="utf-8") as file:
        found = re.search(r"__version__ = ['\"]([^'\"]+)", file.read())
    return found.group(1) if found else "unknown"


def answer(peer, line):
    try:
        request = json.loads(line)
        return getattr(peer, request.pop("request"))(**request)
    except Exception as error:  # told to whoever asked, who goes on
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--path", action="append", default=[])
    arguments = parser.parse_args()
    sys.path[:0] = arguments.path
    torch.set_num_threads(arguments.threads)
    peer = Peer(arguments.device)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(answer(peer, line)), flush=True)


main()
