#!/usr/bin/env python3
"""One trace through the policy simulator and, in real time, through `sluice gateway` before processes of `sluice bench worker
--cache-simulation`: both and the difference, for each policy. The exit status is 1 if a figure differs by more than --within per cent.

    bench/policy/agreement.py build/release/sluice [--policies min_cost cache_aware] [--trace FILE] [--within 5] [--repeats 3] [--output FILE]

Equal workers are drawn from at random, and the tail of a run differs from that of the next by more than the two kinds do. So the
medians of --seeds runs of the simulator stand beside those of --repeats over sockets, each with workers and a gateway of its own.

Without --trace one is made: conversations of --prompts system prompts of 2,048 to 12,288 characters, some of which are asked for much
more often than others, with questions and answers of many lengths, at --rate requests per second by a Poisson process. A worker takes 10
ms for a prompt and 200 µs for each token that is not cached, and 50 ms for each token of an answer: ten times as long as the defaults of
`sluice bench policy`, so that the millisecond that sockets and the machine add is little beside what is compared. All processes have the
priority of this one: `chrt -f 20 bench/policy/agreement.py ...` keeps others of the machine from being measured.
"""
import argparse
import json
import random
import statistics
import string
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

PREFILL_MS, TOKEN_US, DECODE_MS = 10, 200, 50
# Name in the JSON line, title, factor, digits, and whether --within holds for it.
FIGURES = (("requests_per_s", "req/s", 1, 1, True), ("hit_rate", "hit %", 100, 1, True), ("ttft_p50_s", "TTFT p50 ms", 1000, 1, True),
           ("ttft_p99_s", "TTFT p99 ms", 1000, 1, True), ("latency_p50_s", "p50 ms", 1000, 1, True),
           ("latency_p99_s", "p99 ms", 1000, 1, True), ("imbalance", "max/mean", 1, 2, False))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sluice", type=Path)
    parser.add_argument("--policies", nargs="+", default=["min_cost", "cache_aware"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--within", type=float, default=5, help="per cent")
    parser.add_argument("--warm-up-secs", type=float, default=20)
    parser.add_argument("--duration-secs", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--seed", type=int, default=1, help="of the trace")
    parser.add_argument("--seeds", type=int, default=9, help="runs of the simulator")
    parser.add_argument("--repeats", type=int, default=1, help="runs over sockets")
    parser.add_argument("--write-trace", type=Path, help="write the trace that would be made there, and end")
    parser.add_argument("--output", type=Path, help="append the JSON lines of all runs")
    return parser.parse_args()


def make_trace(path, prompts, rate, seconds, seed):
    rng = random.Random(seed)

    def letters(count):
        return "".join(rng.choices(string.ascii_lowercase, k=count))

    systems = [letters(rng.randint(2048, 12288)) for _ in range(prompts)]
    weights = [1 / (1 + place) ** 0.7 for place in range(prompts)]
    now = 0.0
    with path.open("w", encoding="utf-8") as file:
        while now < seconds:
            system = rng.choices(systems, weights)[0]
            file.write(json.dumps({"timestamp": round(1000 * now, 3), "text": system + letters(rng.randint(64, 1024)),
                                   "output_length": rng.randint(4, 40)}) + "\n")
            now += rng.expovariate(rate)


def bench_policy(a, policy, trace, *arguments):
    """The runs that `sluice bench policy` has measured."""
    lines = Path(tempfile.mkstemp(suffix=".jsonl")[1])
    done = subprocess.run([str(part) for part in (
        a.sluice, "bench", "policy", "--trace", trace, "--streamed", "--workers", a.workers, "--warm-up-secs", a.warm_up_secs,
        "--duration-secs", a.duration_secs, "--prefill-base-ms", PREFILL_MS, "--prefill-us-per-token", TOKEN_US,
        "--trace-decode-ms-per-token", DECODE_MS, "--output-file", lines, *arguments)],
        capture_output=True, text=True, check=False, timeout=600 + 2 * (a.warm_up_secs + a.duration_secs))
    runs = [json.loads(line) for line in lines.read_text().splitlines()]
    lines.unlink()
    if done.returncode != 0 or "requests failed" in done.stderr:
        sys.exit(f"{policy}: the run is void: {done.stderr[-2000:]}")
    return runs


def over_sockets(a, policy, trace):
    """The run over sockets, with workers and a gateway of its own."""
    processes = []
    try:
        for _ in range(a.workers):
            processes.append(Sluice(a.sluice, "bench", "worker", "--port", 0, "--cache-simulation", "--cache-prefill-base-ms", PREFILL_MS,
                                    "--cache-prefill-us-per-token", TOKEN_US, "--cache-decode-ms", 0, "--cache-decode-ms-per-token", DECODE_MS,
                                    "--log-level", "error"))
        processes.append(Sluice(a.sluice, "gateway", "--port", 0, "--prometheus-port", 0, "--log-level", "warn", "--policy", policy,
                                "--worker-urls", *(worker.url for worker in processes)))
        url = processes[-1].url
        wait_until("all workers", lambda: a.workers == sum(worker["is_healthy"] for worker in call(url + "/workers")[2]["workers"]))
        return bench_policy(a, policy, trace, "--url", url, "--seeds", 1)[0]
    finally:
        for process in processes:
            process.kill()


def measure(a, policy, trace):
    """The medians of the simulator and over sockets."""
    medians = []
    for kind, runs in (("simulator", bench_policy(a, policy, trace, "--policies", policy, "--seeds", a.seeds)),
                       ("sockets", [over_sockets(a, policy, trace) for _ in range(a.repeats)])):
        if a.output:
            with a.output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({**run, "policy": policy, "kind": kind}) + "\n" for run in runs)
        medians.append({name: statistics.median(run[name] for run in runs) for name, *_ in FIGURES})
    return medians


def main():
    a = parse()
    if a.write_trace:
        make_trace(a.write_trace, a.prompts, a.rate, a.warm_up_secs + a.duration_secs, a.seed)
        return 0
    a.sluice = a.sluice.resolve()
    apart = []
    with tempfile.TemporaryDirectory() as folder:
        trace = a.trace
        if trace is None:
            trace = Path(folder) / "trace.jsonl"
            make_trace(trace, a.prompts, a.rate, a.warm_up_secs + a.duration_secs, a.seed)
        print(f"{a.workers} workers, {a.warm_up_secs:g} s of warm-up, {a.duration_secs:g} s measured", flush=True)
        print(f"{'':<14}{'':<12}" + "".join(f"{title:>13}" for _, title, *_ in FIGURES))
        for policy in a.policies:
            simulated, sockets = measure(a, policy, trace)
            differences = {name: 100 * (sockets[name] - simulated[name]) / simulated[name] for name, *_ in FIGURES}
            for kind, run in (("simulator", simulated), ("sockets", sockets)):
                print(f"{policy:<14}{kind:<12}" + "".join(f"{factor * run[name]:>13.{digits}f}" for name, _, factor, digits, _ in FIGURES))
            print(f"{'':<14}{'difference':<12}" + "".join(f"{differences[name]:>+11.1f} %" for name, *_ in FIGURES), flush=True)
            apart += [f"{policy}: {title} by {differences[name]:+.1f} %" for name, title, _, _, holds in FIGURES
                      if holds and abs(differences[name]) > a.within]
    print("\n".join(["beyond the bound:"] + apart) if apart else f"within {a.within:g} %")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
