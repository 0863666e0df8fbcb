#!/usr/bin/env python3
"""What DP attention and expert parallelism buy: output tokens per second against concurrency for one rank, TP, DPA and
DPA + EP with the same KV budget per rank, on weights that nobody trained.

usage: run.py <build folder> [--layers 4] [--tp 4] [--input 256] [--output 64] [--sequences 8] [--concurrency 1 4 8 16 32]
              [--layouts one tp dpa dpa-ep] [--repeat 1] [--json FILE]

The model is DeepSeek-V2-Lite at its real widths, cut to --layers layers; the head is whole, so its share is larger than in the
whole model. Every rank's KV pool holds --sequences sequences; "one" is one rank with all threads."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, descendants  # noqa: E402


def layouts(options):
    tp = ["--tp", options.tp, "--threads", 1]
    dpa = [*tp, "--dp-size", options.tp, "--enable-dp-attention"]
    return {
        "one": ["--threads", os.cpu_count()],
        "tp": tp,
        "tp-ep": [*tp, "--ep", options.tp],
        "dpa": dpa,
        "dpa-ep": [*dpa, "--moe-a2a-backend", "deepep"],
    }


def model_folder(build, where):
    shutil.copy(build / "fixtures/published-configs/DeepSeek-V2-Lite.json", where / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(build / "fixtures/tokenizer-deepseek_v3" / name, where)


def resident(server):
    """MiB of all processes, a shared page counted once."""
    total = 0
    for pid in [server.process.pid, *descendants(server.process.pid)]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total // 1024


def measure(build, server, options, concurrency):
    """Output tokens per second of one load, all requests unlike."""
    with tempfile.NamedTemporaryFile() as out:
        prompts = max(8, 2 * concurrency)
        subprocess.run([build / "sluice", "bench", "--base-url", server.url, "--backend", "sglang", "--dataset-name", "random-ids",
                        "--random-input-len", str(options.input), "--random-output-len", str(options.output),
                        "--random-range-ratio", "1", "--num-prompts", str(prompts), "--max-concurrency", str(concurrency),
                        "--warmup-requests", "0", "--seed", str(concurrency), "--output-file", out.name],
                       check=True, capture_output=True, timeout=900)
        result = json.loads(Path(out.name).read_text().splitlines()[-1])
    if result["completed"] != prompts:
        raise RuntimeError(f"{result['completed']} of {prompts} requests succeeded")
    return {"output_tokens_per_s": result["output_throughput"], "tpot_ms": result["median_tpot_ms"], "ttft_ms": result["median_ttft_ms"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tp", type=int, default=4)
    parser.add_argument("--input", type=int, default=256)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--layouts", nargs="+", default=["one", "tp", "dpa", "dpa-ep"])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    build = options.build.resolve()
    # What the scheduler keeps free of a pool is on top.
    tokens = options.sequences * (options.input + options.output) + 32
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model_folder(build, Path(folder))
        for name in options.layouts:
            with Sluice(build / "sluice", "server", "--model-path", folder, "--load-format", "dummy", "--port", 0, "--json-model-override-args",
                        json.dumps({"num_hidden_layers": options.layers}), "--max-total-tokens", tokens, "--disable-radix-cache",
                        *layouts(options)[name]) as server:
                pools = [load["max_total_num_tokens"] for load in call(server.url + "/v1/loads?include=all")[2]["loads"]]
                for concurrency in options.concurrency:
                    runs = [measure(build, server, options, concurrency) for _ in range(options.repeat)]
                    row = {"layout": name, "concurrency": concurrency, "unique_tokens": sum(pools), "pss_mib": resident(server),
                           **{key: statistics.median(run[key] for run in runs) for key in runs[0]},
                           "spread": max(run["output_tokens_per_s"] for run in runs) - min(run["output_tokens_per_s"] for run in runs),
                           "retracted": sum(load["queues"]["retracted"] for load in call(server.url + "/v1/loads?include=all")[2]["loads"])}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n| concurrency | " + " | ".join(options.layouts) + " |\n|---" * 1 + "|---" * len(options.layouts) + "|")
    for concurrency in options.concurrency:
        cells = [f"{row['output_tokens_per_s']:.0f}" for name in options.layouts for row in rows
                 if row["layout"] == name and row["concurrency"] == concurrency]
        print(f"| {concurrency} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
