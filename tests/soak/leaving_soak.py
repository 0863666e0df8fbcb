#!/usr/bin/env python3
"""X10: how long after its client has left a request still holds its place and its KV slots in the engine, by a real clock: before
its first token, and in its stream, alone and beside others that decode.

usage: leaving_soak.py <sluice binary> <model> [--clients N] [--beside N] [--prompt TOKENS]"""
import argparse
import http.client
import json
import os
import random
import socket
import statistics
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice  # noqa: E402

BOUND = 120


class Engine:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.connection = http.client.HTTPConnection(*self.address, timeout=BOUND)

    def running(self):
        """Requests that run or wait, as the rank published it last."""
        self.connection.request("GET", "/v1/loads")
        load = json.loads(self.connection.getresponse().read())["loads"][0]
        return load["num_running_reqs"] + load["num_waiting_reqs"]

    def wait_for(self, count):
        """Seconds until so many are there."""
        begun = time.monotonic()
        while self.running() != count:
            if time.monotonic() - begun > BOUND:
                raise AssertionError(f"{self.running()} requests after {BOUND} s, not {count}")
        return time.monotonic() - begun

    def send(self, prompt, tokens):
        body = json.dumps({"input_ids": prompt, "stream": True,
                           "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}}).encode()
        s = socket.create_connection(self.address, timeout=BOUND)
        s.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                  + str(len(body)).encode() + b"\r\n\r\n" + body)
        return s


def read_until_gone(s):
    try:
        while s.recv(65536):
            pass
    except OSError:
        pass  # closed below


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--beside", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    options = parser.parse_args()
    rng = random.Random(1)
    with Sluice(options.binary, "server", "--model-path", options.model, "--port", 0) as server:
        engine = Engine(server.url)
        for beside in (0, options.beside):
            others = [engine.send([rng.randrange(3, 400) for _ in range(16)], 7000) for _ in range(beside)]
            for s in others:
                threading.Thread(target=read_until_gone, args=(s,), daemon=True).start()
            engine.wait_for(beside)
            for phase in ("before the first token", "in the stream"):
                times = []
                for _ in range(options.clients):
                    s = engine.send([rng.randrange(3, 400) for _ in range(options.prompt)], 1000)
                    if phase == "in the stream":
                        seen = b""
                        while seen.count(b"data:") < 2:
                            seen += s.recv(65536)
                    else:
                        engine.wait_for(beside + 1)
                    s.close()
                    times.append(1000 * engine.wait_for(beside))
                times.sort()
                print(f"{beside} beside, left {phase}: {statistics.median(times):.1f} ms at the median, "
                      f"{times[int(0.99 * len(times))]:.1f} ms p99, {times[-1]:.1f} ms at most, of {len(times)}", flush=True)
            for s in others:
                s.shutdown(socket.SHUT_RDWR)
                s.close()
            engine.wait_for(0)


if __name__ == "__main__":
    main()
