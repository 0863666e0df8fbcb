#!/usr/bin/env python3
"""Writes reference.json and reference.safetensors of a tiny MiniMax-M2 checkpoint: the model in numpy, in float64, read from
nothing but its description. Needed because transformers before its pull request 48486 rotated whole heads whatever
rotary_dim said, which its reference for this checkpoint shows.

usage: make_minimax_m2_reference.py <folder> [--check]      (needs the package numpy)
The folder has config.json, model.safetensors and a reference.json whose prompts are taken over. --check writes nothing: it
rotates whole heads instead and says how far the logits are from the reference.safetensors that is there."""
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


class Model:
    def __init__(self, folder, whole_heads):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = read_safetensors(folder / "model.safetensors")
        self.rotary = self.config["head_dim"] if whole_heads else self.config["rotary_dim"]

    def norm(self, x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[name]

    def rotate(self, heads):  # [positions, heads, head_dim]: pairs (i, i + rotary / 2) turn by position * theta^(-2i / rotary)
        half = self.rotary // 2
        turns = np.arange(len(heads))[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)[None]
        cosine, sine = np.cos(turns)[:, None], np.sin(turns)[:, None]
        a, b = heads[..., :half], heads[..., half:self.rotary]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, heads[..., self.rotary:]], -1)

    def attention(self, x, prefix):
        c, w = self.config, self.weights
        n, dim, groups = len(x), c["head_dim"], c["num_attention_heads"] // c["num_key_value_heads"]
        q = self.norm(x @ w[prefix + "q_proj.weight"].T, prefix + "q_norm.weight").reshape(n, -1, dim)
        k = self.norm(x @ w[prefix + "k_proj.weight"].T, prefix + "k_norm.weight").reshape(n, -1, dim)
        v = (x @ w[prefix + "v_proj.weight"].T).reshape(n, -1, dim)
        q, k = self.rotate(q), np.repeat(self.rotate(k), groups, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", scores, np.repeat(v, groups, 1)).reshape(n, -1)
        return mixed @ w[prefix + "o_proj.weight"].T

    def experts(self, x, prefix):
        w, top_k = self.weights, self.config["num_experts_per_tok"]
        scores = 1 / (1 + np.exp(-(x @ w[prefix + "gate.weight"].T)))
        order = np.argsort(-(scores + w[prefix + "e_score_correction_bias"]), -1)[:, :top_k]
        out = np.zeros_like(x)
        for i, chosen in enumerate(order):
            for e in chosen:
                expert = f"{prefix}experts.{e}."
                gate = x[i] @ w[expert + "w1.weight"].T
                hidden = gate / (1 + np.exp(-gate)) * (x[i] @ w[expert + "w3.weight"].T)
                out[i] += scores[i, e] / scores[i, chosen].sum() * (hidden @ w[expert + "w2.weight"].T)
        return out

    def logits(self, ids):
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, prefix + "input_layernorm.weight"), prefix + "self_attn.")
            x = x + self.experts(self.norm(x, prefix + "post_attention_layernorm.weight"), prefix + "block_sparse_moe.")
        return self.norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T


def main():
    folder, check = Path(sys.argv[1]), "--check" in sys.argv
    model = Model(folder, whole_heads=check)
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
