#!/usr/bin/env python3
"""Gateways side by side on one machine: sluice, sglang-router, smg, vllm-router, HAProxy and none at all.

    for p in sglang-router==0.3.2 smg==1.13.0 vllm-router==0.1.17; do
      python3 -m venv PEERS/${p%%=*} && PEERS/${p%%=*}/bin/pip install $p
    done
    bench/gateway_compare/run.py --peers PEERS --output runs.jsonl
    bench/gateway_compare/report.py runs.jsonl --svg docs/images

The gateway is alone on the first core, load and simulated workers are on the last one. Every run is a line of JSON; a run of
which more than 0.1 % failed is marked void, and the exit status is then 1. HAProxy is a Debian package.
"""
import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from parts import LOADS, PARTS, SIZES
from stand import Stand

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("sglang-router", "smg", "vllm-router")


def arguments_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=ROOT / "build/release", help="folder with sluice and bench/")
    parser.add_argument("--peers", help="folder with a virtual environment for each peer; none given = without them")
    parser.add_argument("--gateways", help="names, separated by commas; default: all that are there")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--output", help="file to which lines are appended; default: standard output")
    parser.add_argument("--priority", type=int, default=0, help="nice value of everything that is measured; negative needs root")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=12, help="rounds of the parts stream and latency")
    parser.add_argument("--seconds", type=float, default=3, help="of a measured window")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--cases", help="loads of the cache simulation, separated by semicolons; default: all of "
                        + "; ".join(LOADS))
    parser.add_argument("--contenders", help="of the cache simulation: gateway:policy, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="without the runs of the cache simulation that --output has")
    parser.add_argument("--time-limit", type=float, default=0,
                        help="begin no run of the cache simulation that might end after so many seconds; 0 = none")
    parser.add_argument("--simulated-seconds", type=float, default=30)
    parser.add_argument("--quick", action="store_true", help="one short run of each; says that the harness works, no more")
    parser.add_argument("--worker-arguments", default="", help="more flags of `sluice bench worker`")
    settings = parser.parse_args(argv)
    settings.warm_up, settings.streams, settings.connections = 1, 200, 2000
    settings.memory_repeats, settings.index_seconds, settings.dp_repeats, settings.budget_steps = 3, 16, 3, 20
    if settings.quick:
        settings.repeats = settings.pairs = settings.memory_repeats = settings.dp_repeats = settings.seeds = 1
        settings.seconds, settings.warm_up, settings.index_seconds, settings.simulated_seconds = 0.3, 0.1, 0.5, 1
        settings.streams, settings.connections, settings.budget_steps = 20, 50, 2
    settings.sizes = settings.sizes.split(",")
    settings.cases = settings.cases.split(";") if settings.cases else []
    settings.contenders = [tuple((c + "::").split(":")[:3]) for c in (settings.contenders or "").split(",") if c]
    return settings


def version_of(stand, name):
    if name == "sluice":
        command = [stand.sluice, "--version"]
    elif name == "haproxy":
        command = ["haproxy", "-v"]
    elif name in PEERS:
        command = [stand.peers / name / "bin/python", "-c", f"import importlib.metadata as m; print(m.version('{name}'))"]
    else:
        return ""
    return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0]


def header(stand, names, settings):
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"part": "header", "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "processor": model,
            "cores": os.cpu_count(), "kernel": platform.release(), "commit": commit, "priority": settings.priority,
            "gateway_core": stand.gateway_core, "load_core": stand.load_core, "load_average": os.getloadavg()[0],
            "versions": {name: version_of(stand, name) for name in names},
            "settings": {key: value for key, value in vars(settings).items() if key not in ("build", "peers", "output")}}


def main(argv):
    settings = arguments_of(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends as well
    void = 0
    out = open(settings.output, "a") if settings.output else sys.stdout
    with Stand(settings) as stand:
        there = ["direct", "sluice", *(["haproxy"] if shutil.which("haproxy") else ()), *(PEERS if stand.peers else ())]
        names = settings.gateways.split(",") if settings.gateways else there

        def record(line):
            nonlocal void
            line["time"] = time.strftime("%H:%M:%S")
            out.write(json.dumps(line).replace(str(stand.folder), "TMP").replace(str(stand.build), "BUILD")
                      .replace(str(stand.peers), "PEERS") + "\n")
            out.flush()
            void += bool(line.get("void"))
            if out is not sys.stdout:
                shown = {k: v for k, v in line.items() if k in ("part", "size", "mode", "case", "gateway", "policy", "workers",
                                                                "repeat", "seed", "us_per_request", "us_per_chunk", "p50_ms",
                                                                "p99_ms", "requests_per_s", "hit_rate", "void", "errors",
                                                                "start", "per_connection", "per_stream", "per_prompt_byte",
                                                                "other_programs")}
                print(line["time"], " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()
                                             if v not in (0, {}, False) or k == "repeat"), flush=True)

        record(header(stand, names, settings))
        for part in settings.only.split(","):
            PARTS[part](stand, names, record, settings)
    if void:
        print(f"{void} void runs", file=sys.stderr)
    return 1 if void else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
