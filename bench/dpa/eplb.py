#!/usr/bin/env python3
"""What moving experts buys where a router sends most tokens to few of them: tokens per second and balancedness with experts where they
are at the start, with experts that were moved (--enable-eplb), and with copies of them as well.

usage: eplb.py <build folder> [--tp 2] [--experts 64] [--width 512] [--hidden 512] [--layers 4] [--skew 1.2] [--input 256] [--output 1]
               [--requests 64] [--concurrency 8] [--redundant 8] [--rounds 3] [--json FILE]

The model is of DeepSeek-V3's kind, of the sizes given: its router's correction bias falls with the number of the expert, so that the
first ranks have the busiest ones; its experts are zeros, which cost as much as other values. Each round measures every
server once, one after another, so that what else the machine does falls on all of them; the best of the rounds counts."""
import argparse
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

TOP_K = 6
STEPS = 20  # whose loads decide


def write_model(build, where, options):
    fixture = build / "fixtures/tiny-deepseek-v3"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixture / name, where)
    config = json.loads((fixture / "config.json").read_text())
    config |= {"hidden_size": options.hidden, "num_hidden_layers": options.layers, "n_routed_experts": options.experts,
               "moe_intermediate_size": options.width, "num_experts_per_tok": TOP_K, "n_group": 1, "topk_group": 1}
    (where / "config.json").write_text(json.dumps(config))
    rng = random.Random(1)
    tensors = {}  # name -> shape, what makes the values; none: zeros

    def add(name, shape, value=None):
        tensors[name + ".weight" if value != "bias" else name] = (shape, value)

    h, heads, nope, rope, v = options.hidden, config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    add("model.embed_tokens", [config["vocab_size"], h], "random")
    add("lm_head", [config["vocab_size"], h], "random")
    add("model.norm", [h], "one")
    for layer in range(options.layers):
        p = f"model.layers.{layer}."
        add(p + "input_layernorm", [h], "one")
        add(p + "post_attention_layernorm", [h], "one")
        add(p + "self_attn.q_a_proj", [config["q_lora_rank"], h])
        add(p + "self_attn.q_a_layernorm", [config["q_lora_rank"]], "one")
        add(p + "self_attn.q_b_proj", [heads * (nope + rope), config["q_lora_rank"]])
        add(p + "self_attn.kv_a_proj_with_mqa", [config["kv_lora_rank"] + rope, h])
        add(p + "self_attn.kv_a_layernorm", [config["kv_lora_rank"]], "one")
        add(p + "self_attn.kv_b_proj", [heads * (nope + v), config["kv_lora_rank"]])
        add(p + "self_attn.o_proj", [h, heads * v])
        if layer < config["first_k_dense_replace"]:
            for name, shape in (("gate", [config["intermediate_size"], h]), ("up", [config["intermediate_size"], h]), ("down", [h, config["intermediate_size"]])):
                add(f"{p}mlp.{name}_proj", shape)
            continue
        add(p + "mlp.gate", [options.experts, h], "random")
        add(p + "mlp.gate.e_score_correction_bias", [options.experts], "bias")
        for owner in [f"experts.{e}" for e in range(options.experts)] + ["shared_experts"]:
            for name, shape in (("gate", [options.width, h]), ("up", [options.width, h]), ("down", [h, options.width])):
                add(f"{p}mlp.{owner}.{name}_proj", shape)

    def bf16(value):
        return struct.pack("<f", value)[2:]

    header, at = {}, 0
    for name, (shape, _) in tensors.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(where / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, value) in tensors.items():
            begin, end = header[name]["data_offsets"]
            file.seek(8 + len(text) + begin)
            if value == "random":
                file.write(b"".join(bf16(rng.gauss(0, 1 / options.hidden ** 0.5)) for _ in range((end - begin) // 2)))
            elif value == "one":
                file.write(bf16(1) * shape[0])
            elif value == "bias":
                # Scores are 0.5 and some, by chance: the first experts are chosen most, and all some time.
                file.write(b"".join(bf16(options.skew * (0.5 - e / options.experts)) for e in range(options.experts)))
        file.truncate(8 + len(text) + at)


def load(server, options, seed):
    """Prompt and output tokens per second, all prompts unlike."""
    rng = random.Random(seed)
    bodies = [{"input_ids": [rng.randrange(3, 512) for _ in range(options.input)],
               "sampling_params": {"temperature": 0, "max_new_tokens": options.output, "ignore_eos": True}} for _ in range(options.requests)]

    def ask(body):
        status, _, answer = call(server.url + "/generate", body, timeout=600)
        assert status == 200, answer

    since = time.monotonic()
    with ThreadPoolExecutor(options.concurrency) as pool:
        list(pool.map(ask, bodies))
    return options.requests * (options.input + options.output) / (time.monotonic() - since)


def metric(server, name, label=""):
    return sum(float(line.rsplit(" ", 1)[1]) for line in call(server.url + "/metrics")[2].splitlines()
               if line.startswith(name + "{") and label in line)


def balancedness(server):
    """Of each window that was looked at."""
    return [float(found) for found in re.findall(r"balancedness is ([\d.]+) over", "".join(server.lines))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    for name, default in (("tp", 2), ("experts", 64), ("width", 512), ("hidden", 512), ("layers", 4), ("input", 256), ("output", 1),
                          ("requests", 64), ("concurrency", 8), ("redundant", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skew", type=float, default=1.2)
    parser.add_argument("--backends", nargs="+", default=["none", "deepep"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    build = options.build.resolve()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(build, Path(folder), options)
        for backend in options.backends:
            common = ["server", "--model-path", folder, "--port", 0, "--tp", options.tp, "--threads", 1, "--max-total-tokens",
                      2 * options.concurrency * (options.input + options.output) + 512, "--disable-radix-cache", "--enable-metrics",
                      *(["--ep", options.tp] if backend == "none" else ["--moe-a2a-backend", backend])]
            eplb = ["--enable-eplb", "--eplb-rebalance-num-iterations", STEPS]
            # Nothing moves, and balancedness is measured all the same.
            kinds = {"as at the start": [*eplb, "--eplb-min-rebalancing-utilization-threshold", 0],
                     "moved": eplb, "moved, with copies": [*eplb, "--ep-num-redundant-experts", options.redundant]}
            servers = {kind: Sluice(build / "sluice", *common, *flags) for kind, flags in kinds.items()}
            try:
                for kind, server in servers.items():
                    wait_until(f"{kind}: two windows", lambda: load(server, options, 0) and len(balancedness(server)) >= 3, every=0)
                best = dict.fromkeys(kinds, 0)
                for seed in range(1, options.rounds + 1):
                    for kind, server in servers.items():
                        best[kind] = max(best[kind], load(server, options, seed))
                for kind, server in servers.items():
                    moved = metric(server, "sluice:eplb_layers_total", 'outcome="moved"')
                    row = {"backend": backend, "experts": kind, "tokens_per_s": round(best[kind]), "balancedness": balancedness(server)[-1],
                           "first_balancedness": balancedness(server)[0], "layers_moved": moved,
                           "moved_mib": round(metric(server, "sluice:eplb_moved_bytes_total") / 2**20, 1),
                           "seconds": round(metric(server, "sluice:eplb_seconds_total"), 3)}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
            finally:
                for server in servers.values():
                    server.kill()
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
