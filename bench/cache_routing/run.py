#!/usr/bin/env python3
"""What cache-aware routing buys on real engines: `sluice serve` with several CPU workers whose KV pools hold the prefixes of
some groups each, all of them only together; requests of many groups, each with a system prompt of its own.

    bench/cache_routing/run.py BUILD MODEL [--policies round_robin cache_aware min_cost] [--repeats 3] [--output results.jsonl]

Two workloads: `groups`, as above, and `one group`, whose prefix every worker soon holds: there, affinity must not lose to
round_robin. Each repeat runs all policies one after another, each with new workers. Printed: medians of the share of prompt tokens that
the engines report as cached, of prompt and output tokens per second, and the ratio of the latter to round_robin's.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

QUESTION, OUTPUT = 64, 8


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--policies", nargs="+", default=["round_robin", "cache_aware", "min_cost"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=16, help="of a group")
    parser.add_argument("--system", type=int, default=512, help="tokens of a system prompt")
    parser.add_argument("--held", type=int, default=10, help="groups whose prefixes a worker's pool holds")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def measure(a, policy, groups, prompts, seed):
    """Of one run with new workers: the cached share in per cent, and tokens per second."""
    # Beside the prefixes, what the requests in flight take.
    running = a.concurrency // a.workers + 2
    pool = a.held * a.system + running * (QUESTION + OUTPUT + 16)
    line = Path(tempfile.mkstemp(suffix=".jsonl")[1])
    with Sluice(a.build / "sluice", "serve", "--model-path", a.model, "--port", 0, "--dp-size", a.workers, "--threads", 1, "--router-policy", policy,
                "--max-total-tokens", pool) as server:
        wait_until("all workers", lambda: a.workers == sum(
            worker["is_healthy"] and worker["model_id"] != "unknown" for worker in call(server.url + "/workers")[2]["workers"]))
        done = subprocess.run([str(part) for part in (
            a.build / "sluice", "bench", "--backend", "vllm", "--base-url", server.url, "--tokenizer", a.model, "--cache-report",
            "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", groups, "--gsp-prompts-per-group", prompts,
            "--gsp-system-prompt-len", a.system, "--gsp-question-len", QUESTION, "--gsp-output-len", OUTPUT, "--max-concurrency",
            a.concurrency, "--seed", seed, "--disable-tqdm", "--output-file", line)], capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    result = json.loads(line.read_text().splitlines()[-1])
    line.unlink()
    if result.get("failed", 0):
        sys.exit(f"{policy}: {result['failed']} requests failed")
    return {"cached_percent": 100 * result["total_cached_tokens"] / result["total_input_tokens"],
            "tokens_per_second": result["total_throughput"], "mean_ttft_ms": result["mean_ttft_ms"]}


def main():
    a = parse()
    a.build = a.build.resolve()
    print(f"{a.workers} workers, each with room for {a.held} of {a.groups} system prompts of {a.system} tokens, {a.concurrency} users")
    for workload, groups, prompts in (("groups", a.groups, a.prompts), ("one group", 1, a.prompts * 8)):
        values = {policy: [] for policy in a.policies}
        for repeat in range(a.repeats):
            for policy in a.policies:
                values[policy].append(measure(a, policy, groups, prompts, repeat + 1))
                if a.output:
                    with a.output.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"workload": workload, "policy": policy, "repeat": repeat, **values[policy][-1]}) + "\n")
        base = None
        for policy, runs in values.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            base = base or medians["tokens_per_second"]
            print(f"{workload:<12}{policy:<14}{medians['cached_percent']:>6.1f} % cached{medians['tokens_per_second']:>9.0f} tokens/s "
                  f"({min(run['tokens_per_second'] for run in runs):.0f} to {max(run['tokens_per_second'] for run in runs):.0f})"
                  f"{medians['tokens_per_second'] / base:>7.2f}x{medians['mean_ttft_ms']:>9.0f} ms to the first token", flush=True)


if __name__ == "__main__":
    main()
