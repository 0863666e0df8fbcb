#!/usr/bin/env python3
"""X10: how long after its client has left a request still holds its place and its KV slots in the engine, by a real clock: before
its first token, and in its stream, alone and beside others that decode, on one rank and on several. Beside others, and on several
ranks, a step is not ended before its time, and two may be in flight: how long one takes with such a chunk is printed too. Fails
where 1 in 100 takes longer than --within ms.

usage: leaving_soak.py <sluice binary> <model> [--layouts one dp tp dpa] [--tp N] [--clients N] [--beside N] [--prompt TOKENS]
                       [--chunk TOKENS] [--within MS]"""
import argparse
import http.client
import json
import math
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
LAYOUTS = ("one", "dp", "tp", "dpa")


def layout(name, tp):
    return {"one": ("one rank", ()), "dp": ("two replicas", ("--dp-size", 2)), "tp": (f"{tp} ranks of one group", ("--tp", tp)),
            "dpa": ("two attention groups", ("--tp", 2, "--dp-size", 2, "--enable-dp-attention"))}[name]



class Engine:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.connection = http.client.HTTPConnection(*self.address, timeout=BOUND)

    def held(self):
        """Requests that run or wait, and the KV slots of them, as the ranks published it last."""
        try:
            self.connection.request("GET", "/v1/loads")
            answer = self.connection.getresponse()
        except http.client.RemoteDisconnected:  # it was idle for long: the next one is a new one
            self.connection.request("GET", "/v1/loads")
            answer = self.connection.getresponse()
        loads = json.loads(answer.read())["loads"]
        return (sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads),
                sum(load["num_used_tokens"] for load in loads))

    def wait_for(self, count):
        """Seconds until so many are there, and where there are none no slot is held."""
        begun = time.monotonic()
        while True:
            requests, slots = self.held()
            if requests == count and (count > 0 or slots == 0):
                return time.monotonic() - begun
            if time.monotonic() - begun > BOUND:
                raise AssertionError(f"{requests} requests with {slots} slots after {BOUND} s, not {count}")

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


def read(s, what, count=1, seen=b""):
    """What came, with so many of `what` in it."""
    while seen.count(what) < count:
        piece = s.recv(65536)
        assert piece, seen
        seen += piece
    return seen


def first_token(engine, prompt):
    """Seconds until the first token of a prompt."""
    begun = time.monotonic()
    with engine.send(prompt, 1) as s:
        seen = read(s, b"data:")
        took = time.monotonic() - begun
        read(s, b"[DONE]", seen=seen)
    return took


def measure(options, name, flags):
    """Whether all left in time."""
    rng = random.Random(1)
    in_time = True

    def prompt():
        return [rng.randrange(3, 400) for _ in range(options.prompt)]

    with Sluice(options.binary, "server", "--model-path", options.model, "--port", 0, "--chunked-prefill-size", options.chunk,
                "--log-level", "warning", *flags) as server:
        engine = Engine(server.url)
        for beside in (0, options.beside):
            others = [engine.send([rng.randrange(3, 400) for _ in range(16)], 7000) for _ in range(beside)]
            for s in others:
                threading.Thread(target=read_until_gone, args=(s,), daemon=True).start()
            engine.wait_for(beside)
            steps = -(-options.prompt // options.chunk)
            step = statistics.median(first_token(engine, prompt()) for _ in range(5)) / steps
            engine.wait_for(beside)
            print(f"{name}, {beside} beside: a step with a chunk of the prompt takes {1000 * step:.1f} ms", flush=True)
            for phase in ("before the first token", "in the stream"):
                times = []
                for _ in range(options.clients):
                    s = engine.send(prompt(), 1000)
                    if phase == "in the stream":
                        read(s, b"data:", 2)
                    else:
                        engine.wait_for(beside + 1)
                    s.close()
                    times.append(1000 * engine.wait_for(beside))
                times.sort()
                p99 = times[math.ceil(0.99 * len(times)) - 1]
                in_time = in_time and p99 <= options.within
                print(f"{name}, {beside} beside, left {phase}: {statistics.median(times):.1f} ms at the median, {p99:.1f} ms p99, "
                      f"{times[-1]:.1f} ms at most, of {len(times)}", flush=True)
            for s in others:
                s.shutdown(socket.SHUT_RDWR)
                s.close()
            engine.wait_for(0)
    return in_time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--tp", type=int, default=2, help="ranks of the layout tp, which must divide the model's attention heads")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--beside", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=2048, help="--chunked-prefill-size")
    parser.add_argument("--within", type=float, default=100, help="milliseconds, of 99 in 100")
    options = parser.parse_args()
    layouts = [layout(name, options.tp) for name in options.layouts]
    late = [name for name, flags in layouts if not measure(options, name, flags)]
    assert not late, f"longer than {options.within:g} ms: " + ", ".join(late)


if __name__ == "__main__":
    main()
