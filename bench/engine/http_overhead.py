#!/usr/bin/env python3
"""CPU time that the front process takes for one request: HTTP, JSON, text and the way to the rank and back, beside which the rank's
own work stands apart, since that is another process. Closed loops over so many connections, a number of requests in each round.

usage: http_overhead.py <sluice binary> <model> [--connections 64] [--requests 30000] [--rounds 5]"""
import argparse
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess

CASES = {
    "/ping": ("GET", "/ping", None),
    "/generate, 1 token after 1": ("POST", "/generate", {"input_ids": [7], "sampling_params": {
        "max_new_tokens": 1, "temperature": 0, "ignore_eos": True}}),
    "/generate, 1 token after a text of 20 words": ("POST", "/generate", {
        "text": "The quick brown fox jumps over the lazy dog and runs into the wood, where it looks for a place to sleep.",
        "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}}),
    "/v1/completions, 1 token after 1": ("POST", "/v1/completions", {
        "prompt": [7], "max_tokens": 1, "temperature": 0, "ignore_eos": True}),
}


def cpu_seconds(pid):
    """Of all threads of one process, its children's not counted."""
    return sum(int(open(f"/proc/{pid}/task/{task}/schedstat").read().split()[0]) for task in os.listdir(f"/proc/{pid}/task")) / 1e9


def children(pid):
    return [int(child) for task in os.listdir(f"/proc/{pid}/task")
            for child in open(f"/proc/{pid}/task/{task}/children").read().split()]


class Client:
    """Sends the same request over and over on each of its connections; ends when so many answers have come."""

    def __init__(self, port, connections, method, path, body):
        text = json.dumps(body).encode() if body is not None else b""
        self.request = (f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(text)}\r\n\r\n").encode() + text
        self.selector = selectors.DefaultSelector()
        self.sockets = []
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(connection)
            self.selector.register(connection, selectors.EVENT_READ, bytearray())

    def run(self, requests):
        for connection in self.sockets:
            connection.sendall(self.request)
        left = sent = requests
        sent -= len(self.sockets)
        while left > 0:
            for key, _ in self.selector.select(timeout=60) or self.fail("no answer within 60 s"):
                buffer = key.data
                buffer += key.fileobj.recv(65536) or self.fail("the server has closed a connection")
                head = buffer.find(b"\r\n\r\n")
                if head < 0:
                    continue
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", buffer[:head])
                if len(buffer) < head + 4 + int(length[1]):
                    continue
                if not buffer.startswith(b"HTTP/1.1 200"):
                    self.fail(bytes(buffer[:500]))
                buffer.clear()
                left -= 1
                if sent > 0:
                    key.fileobj.sendall(self.request)
                    sent -= 1

    @staticmethod
    def fail(why):
        raise SystemExit(f"http_overhead: {why}")

    def close(self):
        for connection in self.sockets:
            connection.close()


def measure(port, pid, arguments, case):
    client = Client(port, arguments.connections, *case)
    client.run(2000)
    rank, = children(pid)
    front, ranks = [], []
    for _ in range(arguments.rounds):
        before = cpu_seconds(pid), cpu_seconds(rank)
        client.run(arguments.requests)
        after = cpu_seconds(pid), cpu_seconds(rank)
        front.append((after[0] - before[0]) / arguments.requests * 1e6)
        ranks.append((after[1] - before[1]) / arguments.requests * 1e6)
    client.close()
    return front, ranks


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=30000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    server = subprocess.Popen([arguments.binary, "server", "--model-path", arguments.model, "--port", "0", "--threads", "1",
                               "--max-total-tokens", "16384", "--log-level", "warning"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(int(match[1]) for match in (re.match(r"listening on http://[^:]+:(\d+)", line) for line in server.stdout)
                    if match)
        print("| request | front, µs of CPU | least to most | rank, µs of CPU |\n|---|---|---|---|")
        for name, case in CASES.items():
            front, rank = measure(port, server.pid, arguments, case)
            print(f"| `{name}` | {statistics.median(front):.1f} | {min(front):.1f} to {max(front):.1f} | "
                  f"{statistics.median(rank):.1f} |", flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


if __name__ == "__main__":
    main()
