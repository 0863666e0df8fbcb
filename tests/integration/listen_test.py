#!/usr/bin/env python3
"""Every command that listens takes port 0, prints "listening on http://HOST:PORT" on stdout once, answers there, and ends
with status 0 on SIGTERM. A bad command line is one line on stderr and status 2.

usage: listen_test.py <sluice binary> <folder of fixtures>"""
import json
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
WAIT = 60

# Their --port is where somebody else listens, or would.
CLIENTS = {"bench", "check-cluster", "explain"}

# What a command needs besides its port.
NEEDS = {
    "gateway": ["--prometheus-port", "0"],
    "server": ["--model-path", str(FIXTURES / "tiny-llama")],
    "serve": ["--model-path", str(FIXTURES / "tiny-llama"), "--router-prometheus-port", "0"],
    "bench worker": [],
}


def read_until(process, pattern, bound):
    """stdout up to the line that matches, within the bound."""
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    seen, end = "", time.monotonic() + bound
    while True:
        found = re.search(pattern, seen, re.M)
        if found:
            return found
        assert selector.select(max(0, end - time.monotonic())), f"nothing like {pattern} within {bound} s: {seen!r}"
        part = process.stdout.read1(4096).decode()
        assert part, f"ended without a line like {pattern}: {seen!r}"
        seen += part


def known(options, flags):
    """The flags of NEEDS that this command has."""
    names = {"--" + row["name"] for row in options}
    kept, keep = [], True
    for word in flags:
        if word.startswith("--"):
            keep = word in names
        if keep:
            kept.append(word)
    return kept


def check(command, options):
    assert command in NEEDS, f"{command} has --port; say in NEEDS how it is started"
    arguments = [BINARY, *command.split(), "--host", "127.0.0.1", "--port", "0", *known(options, NEEDS[command])]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors)
        try:
            line = read_until(process, r"^listening on http://127\.0\.0\.1:(\d+)$", WAIT)
            port = int(line[1])
            assert port > 0
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as connection:
                connection.settimeout(WAIT)
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 "), answer
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=WAIT)[0].decode()
            assert process.returncode == 0, f"status {process.returncode} on SIGTERM"
            assert "listening on" not in rest, "announced twice"
        except BaseException:
            process.kill()
            process.wait()
            errors.seek(0)
            print(errors.read().decode()[-4000:], file=sys.stderr)
            raise
    print(f"{command}: port {port}")


def check_bad_command_lines(commands):
    for command in commands:
        for flags in (["--port", "70000"], ["--no-such-flag"], ["--port"]):
            run = subprocess.run([BINARY, *command.split(), *flags], capture_output=True, text=True, timeout=WAIT)
            assert run.returncode == 2, (command, flags, run)
            assert run.stdout == "" and run.stderr.count("\n") == 1, (command, flags, run)


def main():
    documents = json.loads(subprocess.run([BINARY, "options", "--json"], check=True, capture_output=True).stdout)
    listening = {d["command"]: d["options"] for d in documents if any(row["name"] == "port" for row in d["options"])
                 and d["command"] not in CLIENTS}
    assert listening, "no command listens"
    check_bad_command_lines(listening)
    for command, options in listening.items():
        check(command, options)


if __name__ == "__main__":
    main()
