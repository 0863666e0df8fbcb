#!/usr/bin/env python3
"""The engine beside llama.cpp: the same model file, threads and prompts, one after the other in the same run.

    bench/engine_compare/run.py --peer BIN --models FILE... [--build build/release] [--parts forward,server,shared,load,memory]
                                [--repeats 5] [--threads 2] [--output results.jsonl]

BIN is the folder of llama-batched-bench and llama-server, built from the llama.cpp sources of the llama-cpp-python 0.3.36
source package (GGML_NATIVE=ON). FILEs are one model in several precisions, made with its llama-quantize
(--allow-requantize); what a line says of a file is its name's part before .gguf. Each repeat runs both sides, so that a
machine which changes its speed changes it for both. Printed: medians, least and most, and the ratio of the medians; every
single figure goes to --output.

Settings: both keep their defaults but for what is stated here. KV in bf16 for us (f16 for llama.cpp, its default), flash
attention as it chooses, ubatch 512 against prompt chunks of 512.
"""
import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, type=Path)
    parser.add_argument("--models", required=True, nargs="+", type=Path)
    parser.add_argument("--build", default="build/release", type=Path)
    parser.add_argument("--parts", default="forward,server,shared,load,memory")
    parser.add_argument("--repeats", default=5, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--output", default=None, type=Path)
    return parser.parse_args()


class Record:
    """Single figures by (part, case, side), and what is said of them."""

    def __init__(self, path):
        self.path, self.values = path, {}

    def add(self, part, model, case, side, **figures):
        line = {"part": part, "model": model, "case": case, "side": side, **figures}
        if self.path:
            with open(self.path, "a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        for name, value in figures.items():
            self.values.setdefault((part, model, case, name), {}).setdefault(side, []).append(value)

    def report(self):
        print(f"{'model':<36}{'case':<24}{'figure':<22}{'sluice':>30}{'llama.cpp':>30}{'ratio':>8}")
        for (_, model, case, name), sides in self.values.items():
            cells, medians = [], []
            for side in ("sluice", "llama.cpp"):
                values = sides.get(side, [])
                if not values:
                    cells.append("-")
                    continue
                medians.append(statistics.median(values))
                cells.append(f"{medians[-1]:.4g} ({min(values):.4g} to {max(values):.4g})")
            ratio = f"{medians[0] / medians[1]:.2f}" if len(medians) == 2 and medians[1] else "-"
            print(f"{model:<36}{case:<24}{name:<22}{cells[0]:>30}{cells[1]:>30}{ratio:>8}")


def output_of(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


# Prompt tokens, steps, sequences.
PREFILL = [(512, 1, 1), (2048, 1, 1)]
DECODE = [(128, 32, 1), (128, 32, 16), (128, 32, 64)]


def forward_of_sluice(a, model, prompt, steps, batch):
    text = output_of([a.build / "bench/engine_bench", model, "--threads", a.threads, "--prompt", prompt, "--steps", steps,
                      "--repeats", 1, "--batches", batch])
    return {kind: float(re.search(rf"{kind} +batch +\d+ +([\d.]+) tokens/s", text)[1]) for kind in ("prefill", "decode")}


def forward_of_peer(a, model, prompt, steps, batch):
    text = output_of([a.peer / "llama-batched-bench", "-m", model, "-t", a.threads, "-c", batch * (prompt + steps) + 64,
                      "-npp", prompt, "-ntg", steps, "-npl", batch, "--output-format", "jsonl"])
    line = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    return {"prefill": line["speed_pp"], "decode": line["speed_tg"]}


def forward(a, record, model):
    for kind, cases in (("prefill", PREFILL), ("decode", DECODE)):
        for case in cases:
            name = f"prefill {case[0]}" if kind == "prefill" else f"decode batch {case[2]}"
            for _ in range(a.repeats):
                for side, run in (("sluice", forward_of_sluice), ("llama.cpp", forward_of_peer)):
                    record.add("forward", model.stem, name, side, tokens_per_second=run(a, model, *case)[kind])


class Server:
    """A server of either side, from its start until it is ready to its end."""

    def __init__(self, a, side, model, cache):
        self.side, self.port = side, free_port()
        if side == "sluice":
            command = [a.build / "sluice", "server", "--model-path", model, "--threads", a.threads]
            command += [] if cache else ["--disable-radix-cache"]
        else:
            command = [a.peer / "llama-server", "-m", model, "-t", a.threads, "-np", 16, "-c", 16 * 1024, "--no-webui"]
            command += [] if cache else ["--no-cache-prompt", "--cache-ram", 0]
        command += ["--host", "127.0.0.1", "--port", self.port]
        began = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, start_new_session=True)
        while not self.ready():
            if self.process.poll() is not None:
                sys.exit(f"{' '.join(map(str, command))} ended with {self.process.returncode}")
            if time.monotonic() - began > 120:
                sys.exit(f"{command[0]}: not ready after 120 s")
            time.sleep(0.005)
        self.seconds_to_ready = time.monotonic() - began

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def pss_mib(self):
        """Of the process and all that it started."""
        total = 0
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(path.name)) != self.process.pid and os.getsid(int(path.name)) != self.process.pid:
                    continue
                rollup = (path / "smaps_rollup").read_text()
            except OSError:
                continue
            total += int(re.search(r"^Pss: +(\d+) kB", rollup, re.M)[1])
        return total / 1024

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def load(a, server, model, arguments):
    """One run of `sluice bench` on /v1/completions; a failed request ends everything."""
    line = a.build / f"engine_compare.{os.getpid()}.json"
    line.unlink(missing_ok=True)
    output_of([a.build / "sluice", "bench", "--backend", "vllm", "--base-url", f"http://127.0.0.1:{server.port}",
               "--tokenizer", model, "--max-concurrency", 16, "--cache-report", "--disable-keep-alive", "--output-file", line, *arguments])
    result = json.loads(line.read_text().splitlines()[-1])
    line.unlink()
    if result.get("failed", 0):
        sys.exit(f"{server.side}: {result['failed']} requests failed")
    return result


UNIQUE = ["--dataset-name", "random", "--random-input-len", 128, "--random-output-len", 64, "--random-range-ratio", 1,
          "--num-prompts", 64]
SHARED = ["--dataset-name", "generated-shared-prefix", "--gsp-num-groups", 8, "--gsp-prompts-per-group", 8,
          "--gsp-system-prompt-len", 512, "--gsp-question-len", 128, "--gsp-output-len", 64]


def figures(result):
    return {"output_tokens_per_second": result["output_throughput"], "mean_ttft_ms": result["mean_ttft_ms"],
            "p99_tpot_ms": result["p99_tpot_ms"]}


def serve(a, record, model, part):
    for repeat in range(a.repeats):
        for side in ("sluice", "llama.cpp"):
            server = Server(a, side, model, cache=part == "shared")
            try:
                arguments = (UNIQUE if part == "server" else SHARED) + ["--seed", repeat + 1]
                result = load(a, server, model, arguments)
                values = figures(result)
                if part == "shared":
                    values["cached_percent"] = 100 * result.get("total_cached_tokens", 0) / result["total_input_tokens"]
                record.add(part, model.stem, "16 users", side, **values)
            finally:
                server.stop()


def beside_other_work(a, record, model):
    """With a program that takes half of one core: what is lost, beside the share of the CPU that it takes."""
    for repeat in range(a.repeats):
        for side in ("sluice", "llama.cpp"):
            server = Server(a, side, model, cache=False)
            try:
                arguments = UNIQUE + ["--seed", repeat + 1]
                alone = load(a, server, model, arguments)["output_throughput"]
                with subprocess.Popen([sys.executable, "-c", HALF_A_CORE]) as other:
                    try:
                        beside = load(a, server, model, arguments)["output_throughput"]
                    finally:
                        other.kill()
                record.add("load", model.stem, "half a core taken", side, percent_lost=100 * (1 - beside / alone))
            finally:
                server.stop()


HALF_A_CORE = """
import time
while True:
    end = time.monotonic() + 0.01
    while time.monotonic() < end: pass
    time.sleep(0.01)
"""


def memory(a, record, model):
    for repeat in range(a.repeats):
        for side in ("sluice", "llama.cpp"):
            server = Server(a, side, model, cache=True)
            try:
                idle = server.pss_mib()
                load(a, server, model, UNIQUE + ["--seed", repeat + 1])
                record.add("memory", model.stem, "start", side, seconds_to_ready=server.seconds_to_ready, idle_mib=idle,
                           after_load_mib=server.pss_mib())
            finally:
                server.stop()


def main():
    a = parse()
    record = Record(a.output)
    parts = a.parts.split(",")
    for model in a.models:
        if "forward" in parts:
            forward(a, record, model)
        for part in ("server", "shared"):
            if part in parts:
                serve(a, record, model, part)
        if "load" in parts:
            beside_other_work(a, record, model)
        if "memory" in parts:
            memory(a, record, model)
    record.report()


if __name__ == "__main__":
    main()
