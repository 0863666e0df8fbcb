#!/usr/bin/env python3
"""What DP attention and expert parallelism buy: output tokens per second against concurrency for one rank, TP, DPA and
DPA + EP with the same KV budget per rank, on weights that nobody trained, and beside each figure what `sluice explain` predicts.

usage: run.py <build folder> [--layers 4] [--tp 4] [--input 256] [--output 64] [--sequences 8] [--concurrency 1 4 8 16 32]
              [--layouts one tp dpa dpa-ep] [--repeat 1] [--json FILE]

The model is DeepSeek-V2-Lite at its real widths, cut to --layers layers; the head is whole, so its share is larger than in the
whole model. Every rank's KV pool holds --sequences sequences; "one" is one rank with all threads.

Each run is predicted from what the machine gives around it, as `sluice explain` measures it: the mean of the median of five before and of
five after, since shared machines change within minutes. The medians of the repeats count. Decode tokens/s are requests that run at once over the
median gap between tokens: steps with prompts in them are few, and the median leaves them out."""
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


# What `sluice explain --json` says of the machine, and the flags by which it takes that.
RATES = {"bandwidth": ("--gpu-bandwidth", 1e-9), "flops": ("--gpu-flops", 1e-12), "link_bandwidth": ("--link-bandwidth", 1e-9)}


def layouts(options):
    tp = ["--tp", options.tp]
    dpa = [*tp, "--dp-size", options.tp, "--enable-dp-attention"]
    return {
        "one": [],
        "tp": tp,
        "tp-ep": [*tp, "--ep", options.tp],
        "dpa": dpa,
        "dpa-ep": [*dpa, "--moe-a2a-backend", "deepep", "--deepep-mode", "normal"],
    }


def threads(options, layout):
    return len(os.sched_getaffinity(0)) if layout == "one" else 1


def groups(options, layout):
    return options.tp if layout.startswith("dpa") else 1


def explain(build, arguments):
    command = [build / "sluice", "explain", "--json", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)


def machine(build, model):
    """What the machine gives. The median, since each is the best of a few runs, and some have the caches to themselves."""
    runs = [explain(build, model)["hardware"] for _ in range(5)]
    return {key: statistics.median(run[key] for run in runs) for key in RATES}


def predict(build, model, layout, rates, options, concurrency):
    flags = [word for key, (flag, unit) in RATES.items() for word in (flag, rates[key] * unit)]
    return explain(build, [*model, *layout, *flags, "--input-len", options.input, "--output-len", options.output,
                           "--concurrency", concurrency])["layout"]["predictions"][0]


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


def retractions(server):
    """Requests that gave up their KV slots, since the start."""
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in call(server.url + "/metrics")[2].splitlines()
               if line.startswith("sglang:num_retracted_requests_total{"))


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
    return {"output_tokens_per_s": result["output_throughput"], "itl_ms": result["median_itl_ms"],
            "tpot_ms": result["median_tpot_ms"], "ttft_ms": result["median_ttft_ms"]}


def table(options, rows, kind):
    """Measured tokens/s, and in brackets predicted ones with measured over predicted."""
    print(f"\n{kind} tokens/s\n| concurrency | " + " | ".join(options.layouts) + " |\n|---" + "|---" * len(options.layouts) + "|")
    for concurrency in options.concurrency:
        cells = []
        for name in options.layouts:
            row = next(row for row in rows if row["layout"] == name and row["concurrency"] == concurrency)
            measured, predicted = row[f"{kind}_tokens_per_s"], row[f"predicted_{kind}_tokens_per_s"]
            cells.append(f"{measured:.1f} ({predicted:.1f}, {measured / predicted:.2f})")
        print(f"| {concurrency} | " + " | ".join(cells) + " |")


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
        model = ["--model-path", folder, "--json-model-override-args", json.dumps({"num_hidden_layers": options.layers}),
                 "--max-total-tokens", tokens, "--disable-radix-cache"]
        for name in options.layouts:
            layout = layouts(options)[name]
            with Sluice(build / "sluice", "server", *model, "--load-format", "dummy", "--port", 0, "--threads", threads(options, name),
                        "--enable-metrics", *layout) as server:
                pools = [load["max_total_num_tokens"] for load in call(server.url + "/v1/loads?include=all")[2]["loads"]]
                after = machine(build, model)
                for concurrency in options.concurrency:
                    # Those that the budget lets run at once.
                    running = min(concurrency, options.sequences * groups(options, name))
                    runs = []
                    for _ in range(options.repeat):
                        before = after
                        run = measure(build, server, options, concurrency)
                        after = machine(build, model)
                        rates = {key: (before[key] + after[key]) / 2 for key in RATES}
                        prediction = predict(build, model, layout, rates, options, concurrency)
                        runs.append(run | rates | {"decode_tokens_per_s": running / run["itl_ms"] * 1e3,
                                                   "predicted_output_tokens_per_s": prediction["output_tokens_per_s"],
                                                   "predicted_decode_tokens_per_s": prediction["decode_tokens_per_s"],
                                                   "predicted_running": prediction["running"]})
                    rows.append({"layout": name, "concurrency": concurrency, "unique_tokens": sum(pools), "pss_mib": resident(server),
                                 **{key: statistics.median(run[key] for run in runs) for key in runs[0]}, "runs": runs,
                                 "retracted": retractions(server)})
                    print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("decode", "output"):
        table(options, rows, kind)


if __name__ == "__main__":
    main()
