"""Hugging Face's models beside ours: one JSON request a line on standard input, one JSON object a line back.

Needs torch, transformers and safetensors. Started by mamba-bench, which gives a folder with its own model in their
layout, so that both sides compute the same function. What goes wrong comes back as {"error": ..}.
"""

import argparse
import contextlib
import copy
import json
import sys
import time
import traceback

import torch
import torch.nn.functional as F
import transformers

transformers.logging.set_verbosity_error()


class Peer:
    """One method a request."""

    def __init__(self, device):
        self.device, self.models, self.optimizers = device, {}, {}
        self.half, self.read_by = False, {}

    def hello(self):
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def load(self, model, folder, half, training):
        """Weights that are trained are f32; products are of bf16 where `half` asks for it."""
        self.half = half and training
        dtype = torch.bfloat16 if half and not training else torch.float32
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.device).eval()
        self.models[model] = loaded
        return {"parameters": sum(p.numel() for p in loaded.parameters())}

    def forget(self, model):
        self.models.pop(model, None)
        self.optimizers.pop(model, None)
        self.read_by.clear()
        self.free()
        return {}

    def free(self):
        """Leaves what nothing uses to whoever is beside us."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def cast(self):
        kind = self.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16) if self.half else contextlib.nullcontext()

    def tokens(self, batch, values):
        self.read_by.clear()
        self.ids = torch.tensor(values, device=self.device).view(batch, -1)
        return {"shape": list(self.ids.shape)}

    def finish(self):
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def read(self, model):
        return self.models[model](self.ids, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def logits(self, model):
        with self.cast():
            return {"values": self.read(model).logits[:, -1].float().flatten().tolist()}

    @torch.inference_mode()
    def forward(self, model, calls):
        """Hidden states of whole sequences, without a cache and without the head."""
        body = self.models[model].base_model
        return {"ms": [self.clock(lambda: body(self.ids, use_cache=False)) for _ in range(calls)]}

    @torch.inference_mode()
    def prefill(self, model, calls):
        """From the prompt to the token behind it, on the host."""
        return {"ms": [self.clock(lambda: self.read(model).logits[:, -1].argmax(-1).tolist()) for _ in range(calls)]}

    @torch.inference_mode()
    def decode(self, model, tokens):
        """Milliseconds a step behind the prompt; each step's tokens reach the host."""
        if model not in self.read_by:
            output = self.read(model)
            name = "cache_params" if "cache_params" in output else "past_key_values"
            self.read_by[model] = name, output.logits[:, -1:].argmax(-1), output[name]
        name, last, cache = self.read_by[model]
        cache = copy.deepcopy(cache)
        length = self.ids.shape[1]

        def step(position):
            nonlocal last, cache
            more = {name: cache, "use_cache": True}
            if name == "cache_params":
                more["cache_position"] = torch.tensor([position], device=self.device)
            output = self.models[model](last, **more)
            last, cache = output.logits[:, -1:].argmax(-1), output[name]
            last.tolist()

        step(length)
        self.finish()
        start = time.perf_counter()
        for index in range(tokens):
            step(length + 1 + index)
        self.finish()
        return {"ms": [(time.perf_counter() - start) * 1e3 / tokens]}

    def train(self, model, calls):
        """Forward, cross-entropy, backward, Adam."""
        trained = self.models[model]
        if model not in self.optimizers:
            self.optimizers[model] = torch.optim.Adam(trained.parameters(), lr=3e-4, fused=True)
        optimizer = self.optimizers[model]

        def step():
            optimizer.zero_grad(set_to_none=True)
            with self.cast():
                logits = trained(self.ids[:, :-1], use_cache=False).logits
            F.cross_entropy(logits.float().flatten(0, 1), self.ids[:, 1:].flatten()).backward()
            optimizer.step()

        return {"ms": [self.clock(step) for _ in range(calls)]}

    def clock(self, work):
        start = time.perf_counter()
        work()
        self.finish()
        return (time.perf_counter() - start) * 1e3


def answer(peer, line):
    try:
        request = json.loads(line)
        return getattr(peer, request.pop("request"))(**request)
    except Exception as error:  # told to whoever asked, who goes on
        traceback.print_exc()
        peer.free()
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peer = Peer(arguments.device)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(answer(peer, line)), flush=True)


main()
