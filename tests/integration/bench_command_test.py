#!/usr/bin/env python3
"""`sluice bench` as people and scripts run it, against `sluice bench worker`: the table, the line of JSON, the exit status,
Ctrl-C, and a progress bar on terminals only.

usage: bench_command_test.py <sluice binary>"""
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from terminal import shown_on_terminal

BINARY = sys.argv[1]
WAIT = 60
SMALL = ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8", "--random-range-ratio", "1"]


class Worker:
    def __init__(self, *flags):
        self.process = subprocess.Popen([BINARY, "bench", "worker", *flags], stdout=subprocess.PIPE, text=True)
        self.url = re.fullmatch(r"listening on (http://\S+)\n", self.process.stdout.readline())[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def bench(url, *flags, **settings):
    return subprocess.run([BINARY, "bench", "--base-url", url, *SMALL, *flags], capture_output=True, text=True,
                          timeout=WAIT, **settings)


def figure(table, label):
    return re.search(rf"^{re.escape(label)} +(\S+)", table, re.M)[1]


def check_results(worker, folder):
    path = folder / "results.jsonl"
    for backend in ("sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat"):
        run = bench(worker.url, "--backend", backend, "--num-prompts", "20", "--request-rate", "500", "--output-file",
                    str(path), "--output-details", "--tag", "t")
        assert run.returncode == 0, run
        assert run.stderr == "", run.stderr
        assert figure(run.stdout, "Successful requests:") == "20", run.stdout
        assert figure(run.stdout, "Failed requests:") == "0", run.stdout
        assert figure(run.stdout, "Total generated tokens:") == "160", run.stdout
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5, "each run appends one line"
    for line in lines:
        assert line["tag"] == "t" and line["completed"] == 20 and line["request_rate"] == 500, line
        assert len(line["ttfts"]) == len(line["itls"]) == len(line["errors"]) == 20
        assert all(ttft > 0 for ttft in line["ttfts"])
        assert line["mean_ttft_ms"] <= line["p99_ttft_ms"] <= line["p99_e2e_latency_ms"], line
        assert line["server_info"] is not None or line["backend"].startswith("vllm")
        assert line["options"]["random-input-len"] == 16


def check_failures(folder):
    # Two requests that the server refuses are shown with its reason, and the rest goes on.
    with Worker("--fault", "status", "--fault-status", "429", "--fault-times", "2", "--time-scale", "50") as worker:
        run = bench(worker.url, "--num-prompts", "10", "--warmup-requests", "0")
        assert run.returncode == 0, run
        assert figure(run.stdout, "Failed requests:") == "2", run.stdout
        assert "2 x HTTP 429" in run.stdout, run.stdout
        url = worker.url
    run = bench(url, "--num-prompts", "3", "--warmup-requests", "0", "--output-file", str(folder / "failed.jsonl"))
    assert run.returncode == 1, run
    assert figure(run.stdout, "Mean TTFT (ms):") == "n/a", run.stdout
    assert json.loads((folder / "failed.jsonl").read_text())["mean_ttft_ms"] is None
    run = bench(url, "--output-file", str(folder / "missing" / "x.jsonl"))
    assert run.returncode == 2 and "--output-file" in run.stderr and "Warming up" not in run.stdout, run
    run = bench(url)
    assert run.returncode == 1 and run.stderr.startswith("sluice: the warm-up failed: cannot connect"), run
    run = bench(url, "--profile")
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run


def check_interrupt(worker):
    """Ctrl-C reports what there is: the second request is due in an hour."""
    process = subprocess.Popen([BINARY, "bench", "--base-url", worker.url, *SMALL, "--num-prompts", "2", "--request-rate",
                                "0.0001", "--warmup-requests", "0"], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "Starting\n":
        pass
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=WAIT)[0]
    assert out.startswith("Interrupted"), out
    assert "Serving Benchmark Result" in out, out


def check_progress(worker):
    shown = shown_on_terminal("stderr", [BINARY, "bench", "--base-url", worker.url, *SMALL, "--num-prompts", "30",
                                         "--request-rate", "60"], WAIT, stdout=subprocess.DEVNULL)
    assert re.search(rb"\d+%\|.*\| \d+/30 \[", shown), shown


def main():
    with tempfile.TemporaryDirectory() as folder, Worker("--time-scale", "50") as worker:
        check_results(worker, Path(folder))
        check_failures(Path(folder))
        check_interrupt(worker)
        check_progress(worker)


if __name__ == "__main__":
    main()
