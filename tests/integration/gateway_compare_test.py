#!/usr/bin/env python3
"""The harness that compares gateways, in its quick form and with ours alone: a good run gives a record with requests and CPU
time, and one in which workers refuse is void and fails.

usage: gateway_compare_test.py <build folder>"""
import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "bench/gateway_compare/run.py"


def run(*flags):
    command = [sys.executable, RUN, "--build", sys.argv[1], "--gateways", "sluice", "--quick", "--only", "cpu", *flags]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert lines and lines[0]["part"] == "header", process.stderr
    return process.returncode, [line for line in lines if "requests" in line]


def main():
    status, good = run("--sizes", "small")
    assert status == 0 and len(good) == 2, (status, good)
    for line in good:
        assert line["requests"] > 0 and line["failed"] == 0 and line["us_per_request"] > 0 and not line["void"], line

    # Prompts of 8 KB are more than these workers take.
    status, refused = run("--sizes", "8 KB", "--worker-arguments=--max-body-bytes 4000")
    assert status == 1 and refused, (status, refused)
    for line in refused:
        assert line["void"] and line["errors"].get("status 413", 0) > 0, line
    print("a good run is recorded, a refused one is void")


if __name__ == "__main__":
    main()
