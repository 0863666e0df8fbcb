#!/usr/bin/env python3
"""How fast a server loads weights, beside how fast this machine reads the same files, copies memory and gets memory at all.

usage: measure.py <sluice binary> <model> [<model> ...] [--runs N] [--threads N]
   measure.py build/release/sluice SmolLM2-135M-Instruct.Q4_1.gguf made

A model is a .gguf file or a folder of safetensors; `made` stands for a Llama of 1.1 GB in bf16 in four files, whose values nobody
trained, made for the run (with the fixture tiny-llama's tokenizer, from beside the binary). Loading is what the rank reports as
weight_load_duration_seconds: reading, checking and packing. Files are in the page cache, since they were just read; so the bound is
memory, and of that what weights are packed into must be got first: the kernel clears each page when it is first written to. The first
line of a model is the median of the runs, by turns with the others; the last are the machine's rates."""
import argparse
import ctypes
import json
import mmap
import os
import re
import statistics
import struct
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice  # noqa: E402

BLOCK = 8 << 20


def files_of(model):
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def make_model(folder, shards=4):
    hidden, layers, heads, kv, width, vocabulary = 2048, 8, 16, 8, 8192, 32000
    head = hidden // heads
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": width,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "eos_token_id": 2, "bos_token_id": 0}))
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {at + "self_attn.q_proj.weight": [heads * head, hidden], at + "self_attn.k_proj.weight": [kv * head, hidden],
                   at + "self_attn.v_proj.weight": [kv * head, hidden], at + "self_attn.o_proj.weight": [hidden, heads * head],
                   at + "mlp.gate_proj.weight": [width, hidden], at + "mlp.up_proj.weight": [width, hidden],
                   at + "mlp.down_proj.weight": [hidden, width], at + "input_layernorm.weight": [hidden],
                   at + "post_attention_layernorm.weight": [hidden]}
    names = list(shapes)
    places = {}
    # Bytes of which any two are a small number in bf16.
    noise = bytes(0x3C if i % 2 else (i * 37) % 256 for i in range(BLOCK))
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names[shard::shards]:
            size = 2
            for n in shapes[name]:
                size *= n
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end, end + size]}
            end += size
            places[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for begin in range(0, end, BLOCK):
                out.write(noise[:min(BLOCK, end - begin)])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def read_rate(files):
    begun, count = time.monotonic(), 0
    buffer = bytearray(BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as source:
            while got := source.readinto(buffer):
                count += got
    return count / (time.monotonic() - begun) / 1e6


def copy_rate(size=256 << 20):
    source, target = bytearray(os.urandom(1 << 20) * (size >> 20)), bytearray(size)
    target[:] = source  # touched
    begun = time.monotonic()
    target[:] = source
    return size / (time.monotonic() - begun) / 1e6


def fresh_rate(threads, size=1 << 30):
    """Of memory that is written to for the first time, in huge pages where there are any, as a rank's is."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    at, part = ctypes.addressof(ctypes.c_char.from_buffer(memory)), size // threads
    workers = [threading.Thread(target=ctypes.memset, args=(at + i * part, 1, part)) for i in range(threads)]  # without the interpreter's lock
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return size / (time.monotonic() - begun) / 1e6


def load_seconds(binary, model, arguments):
    with Sluice(binary, "server", "--model-path", model, "--port", 0, "--enable-metrics", "--max-total-tokens", 256,
                "--skip-server-warmup", *arguments) as server:
        page = urllib.request.urlopen(server.url + "/metrics", timeout=60).read().decode()
    return float(re.search(r"^sglang:weight_load_duration_seconds\{[^}]*\} (\S+)$", page, re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    threads = [] if given.threads is None else ["--threads", given.threads]
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for name in given.models:
            made = name == "made"
            model = make_model(Path(folder)) if made else Path(name)
            tokenizer = ["--tokenizer-path", Path(given.binary).resolve().parent / "fixtures/tiny-llama"] if made else []
            rows[model.name if not made else name] = (model, threads + tokenizer, [], [])
        copies, fresh = [], []
        for _ in range(given.runs):
            for model, arguments, loads, reads in rows.values():
                reads.append(read_rate(files_of(model)))
                loads.append(load_seconds(given.binary, model, arguments))
            copies.append(copy_rate())
            fresh.append(fresh_rate(given.threads or os.cpu_count()))
        for name, (model, _, loads, reads) in rows.items():
            size = sum(file.stat().st_size for file in files_of(model)) / 1e6
            took = statistics.median(loads)
            print(f"{name}: {size:.0f} MB in {took:.3f} s (best {min(loads):.3f}): {size / took:.0f} MB/s loaded; "
                  f"read from the page cache by one thread at {statistics.median(reads):.0f} MB/s")
        print(f"memory copied by one thread at {statistics.median(copies):.0f} MB/s")
        print(f"memory written to for the first time by {given.threads or os.cpu_count()} threads at {statistics.median(fresh):.0f} MB/s "
              f"({min(fresh):.0f} to {max(fresh):.0f})")
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
