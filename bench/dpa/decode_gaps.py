#!/usr/bin/env python3
"""How long prompts of one attention group hold up the decoding of another: gaps between tokens of steady streams in group 0 while long
prompts arrive in group 1, without anything, with the prefill delayer, and with the joint budget of mixed steps; beside the gaps of the
same streams without any prompts (alone).

usage: decode_gaps.py <build folder> [--layers 2] [--streams 4] [--tokens 200] [--prompt 1000] [--every 1.5] [--ways 1 2 3 4 5]

The model is DeepSeek-V2-Lite at its real widths, cut to --layers layers, with weights that nobody trained; tp 2, dp 2."""
import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import model_folder  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call  # noqa: E402

# What is started, and how many times the gap alone none may exceed.
WAYS = {
    "default": ([], 3),
    "`--enable-prefill-delayer`": (["--enable-prefill-delayer"], 3),
    "`--enable-mixed-chunk` (gap 3)": (["--enable-mixed-chunk"], 3),
    "`--enable-mixed-chunk --enable-prefill-delayer`": (["--enable-mixed-chunk", "--enable-prefill-delayer"], 3),
    "`--enable-mixed-chunk --mixed-chunk-gap 1.5`": (["--enable-mixed-chunk", "--mixed-chunk-gap", 1.5], 1.5),
}


def body(ids, tokens, rank):
    return {"input_ids": ids, "routed_dp_rank": rank, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}}


def stream_gaps(url, number, tokens):
    request = urllib.request.Request(url + "/generate", json.dumps({**body([number + 1] * 20, tokens, 0), "stream": True}).encode(),
                                     {"Content-Type": "application/json"})
    times = []
    with urllib.request.urlopen(request, timeout=900) as stream:
        for line in stream:
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                times.append(time.monotonic())
    return [1000 * (b - a) for a, b in zip(times, times[1:])]


def measure(url, options, with_prompts):
    gaps, waits, over = [], [], threading.Event()

    def prompts():
        for number in range(10_000):
            began = time.monotonic()
            ids = [(number * 7919 + i * 31) % 5000 + 100 for i in range(options.prompt)]
            assert call(url + "/generate", body(ids, 1, 1), timeout=900)[0] == 200
            waits.append(time.monotonic() - began)
            if over.wait(options.every):
                return

    with ThreadPoolExecutor(options.streams + 1) as pool:
        began = time.monotonic()
        streams = [pool.submit(stream_gaps, url, i, options.tokens) for i in range(options.streams)]
        other = pool.submit(prompts) if with_prompts else None
        try:
            for stream in streams:
                gaps.extend(stream.result())  # raises what it raised
            took = time.monotonic() - began
        finally:
            over.set()
        if other is not None:
            other.result()
    return sorted(gaps), waits, took


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--every", type=float, default=1.5)
    parser.add_argument("--ways", type=int, nargs="+", default=range(1, len(WAYS) + 1), help="rows of the table, from 1")
    options = parser.parse_args()
    build = options.build.resolve()
    with tempfile.TemporaryDirectory() as folder:
        model_folder(build, Path(folder))
        columns = ["alone, ms", "gap p50, ms", "p99", "max", "max / alone", "beyond", "TTFT of prompts p50, s", "prompts", "tokens/s"]
        print("| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        pool = max(4096, options.prompt + 512, options.streams * (options.tokens + 64))
        for name, (flags, factor) in (list(WAYS.items())[way - 1] for way in options.ways):
            with Sluice(build / "sluice", "server", "--model-path", folder, "--load-format", "dummy", "--port", 0, "--json-model-override-args",
                        json.dumps({"num_hidden_layers": options.layers}), "--max-total-tokens", pool, "--disable-radix-cache", "--threads", 1,
                        "--tp", 2, "--dp-size", 2, "--enable-dp-attention", "--chunked-prefill-size", 2048, *flags) as server:
                measure(server.url, argparse.Namespace(**{**vars(options), "tokens": 20}), True)
                before, _, _ = measure(server.url, options, False)
                gaps, waits, took = measure(server.url, options, True)
                after, _, _ = measure(server.url, options, False)
                alone = statistics.median(before + after)
                beyond = sum(gap > factor * alone for gap in gaps)
                rate = (options.streams * options.tokens + len(waits) * options.prompt) / took
                print(f"| {name} | {alone:.0f} | {gaps[len(gaps) // 2]:.0f} | {gaps[len(gaps) * 99 // 100]:.0f} | {gaps[-1]:.0f} | "
                      f"{gaps[-1] / alone:.1f} | {beyond} of {len(gaps)} | {statistics.median(waits):.1f} | {len(waits)} | {rate:.0f} |",
                      flush=True)


if __name__ == "__main__":
    main()
