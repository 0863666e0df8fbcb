#!/usr/bin/env python3
"""Writes reference.json and reference.safetensors of a tiny MiniMax-M2 or MiniMax-Text-01 checkpoint: the models in numpy, in
float64, read from nothing but their description. Needed because transformers computes something else for these files:
* MiniMax-M2: before its pull request 48486 it rotated whole heads whatever rotary_dim said;
* MiniMax-Text-01: it keeps tables of decays in the checkpoint, so that a checkpoint in bf16 decays by rounded numbers, which
  also makes the result depend on where its blocks of 32 tokens begin.

usage: make_minimax_reference.py <folder> [--check]      (needs the package numpy)
The folder has config.json, model.safetensors and a reference.json whose prompts are taken over. --check writes nothing: it
computes what transformers does and says how far the logits are from the reference.safetensors that is there."""
import json
import struct
import sys
from pathlib import Path

import numpy as np


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], "<f4")
        tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


def write_safetensors(path, tensors):
    header, body = {}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class MiniMax:
    """What both have: grouped-query attention, experts, the order of things."""

    def __init__(self, folder, as_transformers):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = read_safetensors(folder / "model.safetensors")
        self.as_transformers = as_transformers
        whole = self.config["head_dim"]
        self.rotary = whole if as_transformers else self.config.get("rotary_dim", whole)

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T

    def norm(self, x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[name + ".weight"]

    def rotate(self, heads):  # [positions, heads, head_dim]: pairs (i, i + rotary / 2) turn by position * theta^(-2i / rotary)
        half = self.rotary // 2
        turns = np.arange(len(heads))[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)[None]
        cosine, sine = np.cos(turns)[:, None], np.sin(turns)[:, None]
        a, b = heads[..., :half], heads[..., half:self.rotary]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, heads[..., self.rotary:]], -1)

    def softmax_attention(self, x, prefix):
        c = self.config
        n, dim, groups = len(x), c["head_dim"], c["num_attention_heads"] // c["num_key_value_heads"]
        q, k = self.qk_norm(self.linear(x, prefix + "q_proj"), self.linear(x, prefix + "k_proj"), prefix)
        q, k = self.rotate(q.reshape(n, -1, dim)), np.repeat(self.rotate(k.reshape(n, -1, dim)), groups, 1)
        v = np.repeat(self.linear(x, prefix + "v_proj").reshape(n, -1, dim), groups, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1), prefix + "o_proj")

    def experts(self, x, prefix):
        scores, choice = self.route(self.linear(x, prefix + "gate"), prefix)
        order = np.argsort(-choice, -1)[:, :self.config["num_experts_per_tok"]]
        out = np.zeros_like(x)
        for i, chosen in enumerate(order):
            for e in chosen:
                expert = f"{prefix}experts.{e}."
                hidden = silu(self.linear(x[i], expert + "w1")) * self.linear(x[i], expert + "w3")
                out[i] += scores[i, e] / scores[i, chosen].sum() * self.linear(hidden, expert + "w2")
        return out

    def logits(self, ids):
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(x, layer, f"model.layers.{layer}.")
        return self.linear(self.norm(x, "model.norm"), "lm_head")


class M2(MiniMax):
    def qk_norm(self, q, k, prefix):
        return self.norm(q, prefix + "q_norm"), self.norm(k, prefix + "k_norm")

    def route(self, logits, prefix):
        return sigmoid(logits), sigmoid(logits) + self.weights[prefix + "e_score_correction_bias"]

    def layer(self, x, layer, prefix):
        x = x + self.softmax_attention(self.norm(x, prefix + "input_layernorm"), prefix + "self_attn.")
        return x + self.experts(self.norm(x, prefix + "post_attention_layernorm"), prefix + "block_sparse_moe.")


class Text01(MiniMax):
    def qk_norm(self, q, k, prefix):
        return q, k

    def route(self, logits, prefix):
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        return scores / scores.sum(-1, keepdims=True), scores

    def factor(self, port, published, which):
        return self.config.get(f"{port}_{which}_factor", self.config.get(f"layernorm_{published}_{which}"))

    def residual(self, x, out, port, published):
        return self.factor(port, published, "alpha") * x + self.factor(port, published, "beta") * out

    def layer(self, x, layer, prefix):
        types = self.config.get("layer_types") or self.config["attn_type_list"]
        x = self.norm(x, prefix + "input_layernorm")
        if types[layer] in ("linear_attention", 0):
            x = self.residual(x, self.lightning(x, layer, prefix + "self_attn."), "linear_attn", "linear_attention")
        else:
            x = self.residual(x, self.softmax_attention(x, prefix + "self_attn."), "full_attn", "full_attention")
        x = self.norm(x, prefix + "post_attention_layernorm")
        return self.residual(x, self.experts(x, prefix + "block_sparse_moe."), "mlp", "mlp")

    def lightning(self, x, layer, prefix):
        heads, dim = self.config["num_attention_heads"], self.config["head_dim"]
        q, k, v = np.split(silu(self.linear(x, prefix + "qkv_proj")).reshape(len(x), heads, 3 * dim), 3, -1)
        out = self.in_blocks(q, k, v, prefix) if self.as_transformers else self.in_order(q, k, v, layer)
        out = self.norm(out.reshape(len(x), -1), prefix + "norm")
        return self.linear(sigmoid(self.linear(x, prefix + "output_gate")) * out, prefix + "out_proj")

    def in_order(self, q, k, v, layer):
        heads = self.config["num_attention_heads"]
        depth = 1 - layer / (self.config["num_hidden_layers"] - 1) + 1e-5
        keep = np.exp(-(2 ** (-8 * np.arange(1, heads + 1) / heads)) * depth)[:, None, None]
        state, out = np.zeros((heads, q.shape[-1], q.shape[-1])), []
        for i in range(len(q)):
            state = keep * state + k[i][:, :, None] * v[i][:, None, :]
            out.append(np.einsum("hi,hij->hj", q[i], state))
        return np.array(out)

    def in_blocks(self, q, k, v, prefix):  # [tokens, heads, dim] by the tables of the checkpoint
        w, size = self.weights, self.config["block_size"]
        state, out = np.zeros((q.shape[1], q.shape[2], q.shape[2])), []
        for first in range(0, len(q), size):
            bq, bk, bv = (part[first:first + size].transpose(1, 0, 2) for part in (q, k, v))
            n = bq.shape[1]
            within = bq @ bk.transpose(0, 2, 1) * w[prefix + "diagonal_decay"][0, :, :n, :n]
            out.append((within @ bv + bq * w[prefix + "query_decay"][:, :n] @ state).transpose(1, 0, 2))
            new = (bk * w[prefix + "key_decay"][:, size - n:]).transpose(0, 2, 1) @ bv
            state = state * np.exp(-w[prefix + "slope_rate"] * n) + new
        return np.concatenate(out)


def main():
    folder, check = Path(sys.argv[1]), "--check" in sys.argv
    family = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = (M2 if family == "MiniMaxM2ForCausalLM" else Text01)(folder, as_transformers=check)
    reference = json.loads((folder / "reference.json").read_text())
    if check:
        stored = read_safetensors(folder / "reference.safetensors")
        for i, prompt in enumerate(reference["prompts"]):
            print(i, np.abs(model.logits(prompt["input_ids"]) - stored[f"logits.{i}"]).max())
        return
    tensors, prompts = {}, []
    for i, prompt in enumerate(reference["prompts"]):
        ids = list(prompt["input_ids"])
        tensors[f"logits.{i}"] = model.logits(ids)
        greedy, margins = [], []
        for _ in range(32):
            last = model.logits(ids)[-1]
            best, next_best = np.sort(last)[:-3:-1]
            greedy.append(int(last.argmax()))
            margins.append(float(best - next_best))
            ids.append(greedy[-1])
        prompts.append({"text": prompt["text"], "input_ids": prompt["input_ids"], "greedy_ids": greedy,
                        "top1_minus_top2": margins})
    (folder / "reference.json").write_text(json.dumps({"dtype": "float64 on the stored weights", "prompts": prompts}))
    write_safetensors(folder / "reference.safetensors", tensors)


if __name__ == "__main__":
    main()
