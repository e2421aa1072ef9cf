"""The PyTorch side of mamba-bench: reads one JSON request a line, answers with one JSON object a line.

Needs torch (2.4 or later) and safetensors. Started by mamba-bench, which sends the weights of its
own model, so that both sides compute the same function.
"""

import argparse
import json
import math
import resource
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import nn

LEARNING_RATE = 3e-4


class NaiveMamba(nn.Module):
    """A language model of one Mamba-1 layer whose recurrence is a Python loop over time.

    The discretised `exp(dt A)` and `dt B u` of all positions are made first, as tutorials do it.
    """

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(w.clone()) for name, w in weights.items()})

    def scan(self, u, dt, a, b, c):
        decay = torch.exp(dt.unsqueeze(-1) * a)  # [batch, seq_len, d_inner, d_state]
        drive = (dt * u).unsqueeze(-1) * b.unsqueeze(2)
        state = torch.zeros_like(drive[:, 0])
        outputs = []
        for t in range(u.shape[1]):
            state = decay[:, t] * state + drive[:, t]
            outputs.append((state @ c[:, t].unsqueeze(-1)).squeeze(-1))
        return torch.stack(outputs, dim=1)

    def mixer(self, x):
        w = self.weights
        d_inner, d_state = w["a_log"].shape
        seq_len = x.shape[1]
        u, z = F.linear(x, w["in_proj"]).chunk(2, dim=-1)
        taps = w["conv_weight"].shape[1]
        u = F.conv1d(
            u.transpose(1, 2), w["conv_weight"].unsqueeze(1), w["conv_bias"], padding=taps - 1, groups=d_inner
        )
        u = F.silu(u[..., :seq_len].transpose(1, 2))
        rank = w["dt_proj"].shape[1]
        dt, b, c = F.linear(u, w["x_proj"]).split([rank, d_state, d_state], dim=-1)
        dt = F.softplus(F.linear(dt, w["dt_proj"], w["dt_bias"]))
        y = self.scan(u, dt, -torch.exp(w["a_log"]), b, c) + w["d"] * u
        return F.linear(y * F.silu(z), w["out_proj"])

    def backbone(self, tokens):
        w = self.weights
        width = w["norm"].shape
        x = F.embedding(tokens, w["embedding"])
        x = x + self.mixer(F.rms_norm(x, width, w["layer_norm"], eps=1e-5))
        return F.rms_norm(x, width, w["norm"], eps=1e-5)

    def head(self, hidden):
        return F.linear(hidden, self.weights["head"])


class Block(nn.Module):
    def __init__(self, d_model, heads):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def attention(self, x, fused):
        batch, seq_len, d_model = x.shape
        shape = (batch, seq_len, 3, self.heads, d_model // self.heads)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            future = torch.ones(seq_len, seq_len, dtype=torch.bool).triu(1)
            y = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, seq_len, d_model))

    def forward(self, x, fused):
        x = x + self.attention(self.norm_attention(x), fused)
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Transformer(nn.Module):
    """A language model of pre-norm GPT-2 blocks."""

    def __init__(self, vocab_size, d_model, n_layer, heads, max_positions):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_positions, d_model)
        self.blocks = nn.ModuleList(Block(d_model, heads) for _ in range(n_layer))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def backbone(self, tokens, fused=True):
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, fused)
        return self.norm(x)


class Peer:
    """One method a request."""

    def __init__(self):
        self.models, self.optimizers = {}, {}

    def hello(self):
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def add(self, name, model):
        self.models[name] = model
        self.optimizers[name] = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        return {"parameters": sum(p.numel() for p in model.parameters())}

    def load_mamba(self, bytes, double):
        weights = load(sys.stdin.buffer.read(bytes))
        return self.add("mamba", NaiveMamba(weights).to(torch.float64 if double else torch.float32))

    def load_transformer(self, **sizes):
        torch.manual_seed(1)
        return self.add("transformer", Transformer(**sizes))

    def tokens(self, batch, values):
        tokens = torch.tensor(values).view(batch, -1)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return {"shape": list(self.inputs.shape)}

    @torch.inference_mode()
    def hidden(self, model):
        return {"values": self.models[model].backbone(self.inputs).flatten().tolist()}

    @torch.inference_mode()
    def attention_error(self):
        model = self.models["transformer"]
        fused, plain = (model.backbone(self.inputs, fused) for fused in (True, False))
        return {"distance": ((fused - plain).abs().max() / plain.abs().max()).item()}

    @torch.inference_mode()
    def forward(self, model, calls):
        backbone = self.models[model].backbone
        return {"ms": [clock(lambda: backbone(self.inputs))[0] for _ in range(calls)]}

    def train(self, model, calls):
        steps = [clock(lambda: self.train_step(model)) for _ in range(calls)]
        return {"ms": [ms for ms, _ in steps], "losses": [loss for _, loss in steps]}

    def train_step(self, name):
        model, optimizer = self.models[name], self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        logits = model.head(model.backbone(self.inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    def peak_memory(self):
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def clock(work):
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    peer = Peer()
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        answer = getattr(peer, request.pop("request"))(**request)
        print(json.dumps(answer), flush=True)


main()
