#!/usr/bin/env python3
"""A gateway with many registered workers, over sockets: how long GET /workers takes, how long choices take at a steady
rate of requests, by the gateway's own histogram, and what CPU time a request costs the gateway with 64 in flight. The workers are
one simulated process that answers on many addresses of 127.0.0.0/8. The gateway has the first core, all else the last."""
import argparse
import atexit
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BODY = {"model": "sim-model", "messages": [{"role": "user", "content": "x" * 600}], "max_tokens": 1}


def start(core, arguments, pattern):
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")
    process = subprocess.Popen(["taskset", "-c", str(core), *arguments], stdout=log, stderr=subprocess.STDOUT)
    atexit.register(process.kill)
    for _ in range(300):
        found = re.search(pattern, open(log.name).read())
        if found:
            return process, *found.groups()
        time.sleep(0.1)
    sys.exit(f"{arguments[0]} did not start: {open(log.name).read()}")


class Gateway:
    def __init__(self, sluice, worker_port, policy):
        self.process, port, metrics_port = start(0, [sluice, "gateway", "--port", "0", "--prometheus-port", "0", "--policy", policy,
                                    "--health-check-interval-secs", "600", "--load-monitor-interval", "3600",
                                    "--job-queue-capacity", "20000",
                                    "--worker-urls", f"http://127.0.0.1:{worker_port}"],
                                                  r"listening on http://[^ ]*:(\d+)\s+metrics on http://[^ ]*:(\d+)\s")
        self.port = int(port)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        self.metrics_port = int(metrics_port)

    def ask(self, method, path, body=None):
        self.connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port)
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    def cpu_seconds(self):
        """Of all threads, user and system, in nanoseconds' resolution."""
        return sum(int(open(f"/proc/{self.process.pid}/task/{task}/schedstat").read().split()[0])
                   for task in os.listdir(f"/proc/{self.process.pid}/task")) / 1e9

    def cpu_per_request(self, load, core, seconds):
        """Seconds for each request of a closed loop of 64."""
        process = subprocess.Popen(["taskset", "-c", str(core), load, f"ports={self.port}", "connections=64", "warm-up=4", f"seconds={seconds}",
                                    "groups=64", "system-chars=2048", "question-chars=256"], stdout=subprocess.PIPE, text=True)
        lines = iter(process.stdout)
        times = [next(self.cpu_seconds() for line in lines if line.strip() == word) for word in ("begin", "end")]
        result = json.loads(next(lines))
        process.wait()
        if result["errors"]:
            sys.exit(f"{result['errors']} errors")
        return (times[1] - times[0]) / result["requests"]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def quantile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def decisions(text, policy):
    """Upper bounds in seconds, and counts up to them."""
    rows = re.findall(r'smg_route_decision_seconds_bucket\{policy="%s",le="([^"]+)"\} (\d+)' % policy, text)
    return [(float(bound), int(count)) for bound, count in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sluice", help="the binary")
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 64, 512, 10000])
    parser.add_argument("--rate", type=int, default=1000, help="requests per second")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--policies", nargs="+",
                        default=["round_robin", "random", "power_of_two", "cache_aware", "min_cost"])
    options = parser.parse_args()
    load = str(Path(options.sluice).parent / "bench/gateway_load")
    last = os.cpu_count() - 1
    simulated, port = start(last, [options.sluice, "bench", "worker", "--canned", "--host", "0.0.0.0"],
                            r"listening on http://[^ ]*:(\d+)\s")
    print("| policy | workers | registered in s | GET /workers ms, median (most) | bytes | choice p50 below | p99 below | CPU µs a request |")
    print("|---|---|---|---|---|---|---|---|")
    for policy in options.policies:
        for workers in options.workers:
            measure(options, policy, workers, load, last, port)
    simulated.terminate()


def measure(options, policy, workers, load, last, port):
    gateway = Gateway(options.sluice, port, policy)
    begun = time.monotonic()
    for i in range(1, workers):
        status, _ = gateway.ask("POST", "/workers", {"url": f"http://127.1.{i >> 8}.{i & 255}:{port}"})
        assert status == 202, status
    ready = 0
    while ready < workers:
        time.sleep(0.5)
        ready = sum(worker["is_healthy"] for worker in json.loads(gateway.ask("GET", "/workers")[1])["workers"])
    registered = time.monotonic() - begun
    times = []
    for _ in range(21):
        begun = time.monotonic()
        _, body = gateway.ask("GET", "/workers")
        times.append((time.monotonic() - begun) * 1000)
    subprocess.run(["taskset", "-c", str(last), options.sluice, "bench", "--backend", "sglang-oai-chat", "--base-url",
                    f"http://127.0.0.1:{gateway.port}", "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "64",
                    "--gsp-prompts-per-group", str(options.rate * options.seconds // 64), "--gsp-system-prompt-len", "128",
                    "--gsp-question-len", "16", "--gsp-output-len", "1", "--request-rate", str(options.rate)],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = decisions(gateway.metrics(), policy)
    total = rows[-1][1]
    p50, p99 = (next(bound for bound, count in rows if count >= share * total) for share in (0.5, 0.99))
    cpu = gateway.cpu_per_request(load, last, options.seconds)
    print(f"| `{policy}` | {workers} | {registered:.1f} | {quantile(times, 0.5):.1f} ({max(times):.1f}) | {len(body)} "
          f"| {p50 * 1e6:.3g} µs | {p99 * 1e6:.3g} µs of {total} | {cpu * 1e6:.1f} |", flush=True)
    gateway.stop()


if __name__ == "__main__":
    main()
