#!/usr/bin/env python3
"""Mixed traffic with faults through a real gateway in front of simulated workers: whole answers and streams, clients that
leave, bad requests, workers that reset, stall, break streams, are busy, are killed and come back, are removed and added.
Afterwards the books must balance: every request had one outcome that the contract allows, nothing is in flight, and the
gateway ends with status 0.

usage: soak_test.py <sluice binary> [--requests N] [--clients N] [--seed N]

The length is a number of requests. ./test runs a short one; a long one is, say, --requests 1000000 --clients 32."""
import argparse
import collections
import http.client
import json
import random
import re
import signal
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))
from sluice_process import Sluice, call  # noqa: E402

BOUND = 60  # seconds for one answer: far above what any of them may take
FAULTS = [
    {"kind": "none"},
    {"kind": "reset", "times": 3},
    {"kind": "status", "status": 500, "times": 3},
    {"kind": "status", "status": 503, "times": 3},
    {"kind": "status", "status": 429, "retry_after": 1, "times": 2},
    {"kind": "die", "chunks": 2, "times": 3},
    {"kind": "mute", "chunks": 1, "times": 1},
    {"kind": "half_event", "chunks": 1, "times": 1},
    {"kind": "stall", "times": 1},
    {"kind": "slow_head", "delay_ms": 50, "times": 5},
]
# What a request may get besides 200: the worker's own error, no worker, a broken connection, too late, too many.
ALLOWED = {429, 500, 502, 503, 504, 408}


class Worker:
    """A simulated worker at a fixed port once it has one."""

    def __init__(self, binary):
        self.binary, self.port = binary, 0
        self.start()

    def start(self):
        self.process = Sluice(self.binary, "bench", "worker", "--port", self.port, "--time-scale", 20)
        self.url = self.process.url
        self.port = urllib.parse.urlparse(self.url).port

    def kill(self):
        self.process.kill()


class Client(threading.Thread):
    """Sends requests one after the other until none are left."""

    def __init__(self, address, tickets, seed):
        super().__init__(daemon=True)
        self.address, self.tickets, self.random = address, tickets, random.Random(seed)
        self.outcomes, self.problems, self.sent = collections.Counter(), [], 0

    def run(self):
        while self.tickets.take():
            kind = self.random.choices(["whole", "stream", "leave", "bad"], [4, 4, 2, 1])[0]
            try:
                self.outcomes[getattr(self, kind)()] += 1
            except Exception as problem:  # a client of the contract never sees one
                self.problems.append(f"{kind}: {problem!r}")

    def send(self, body):
        self.sent += 1
        connection = http.client.HTTPConnection(*self.address, timeout=BOUND)
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        return connection

    def body(self, stream):
        text = f"prompt {self.random.randrange(8)} " + "word " * self.random.randrange(40) + str(self.random.random())
        return json.dumps({"text": text, "stream": stream,
                           "sampling_params": {"max_new_tokens": self.random.randrange(1, 12)}})

    def expect(self, condition, what):
        if not condition:
            self.problems.append(what)

    def whole(self):
        connection = self.send(self.body(False))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status == 200:
            self.expect("text" in json.loads(text), f"a 200 without an answer: {text[:200]}")
        else:
            self.expect(answer.status in ALLOWED, f"status {answer.status}: {text[:200]}")
        return f"whole {answer.status}"

    def stream(self):
        connection = self.send(self.body(True))
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        connection.close()
        if answer.status != 200:
            self.expect(answer.status in ALLOWED, f"status {answer.status}: {text[:200]}")
            return f"stream {answer.status}"
        done, broken = text.endswith("data: [DONE]\n\n"), '"type":"stream_error"' in text
        self.expect(done != broken, f"a stream must end in one of two ways: {text[-300:]!r}")
        return "stream 200" if done else "stream broken"

    def leave(self):
        connection = self.send(self.body(self.random.random() < 0.5))
        time.sleep(self.random.random() * 0.02)
        connection.close()
        return "left"

    def bad(self):
        connection = self.send('{"text": ')
        answer = connection.getresponse()
        answer.read()
        connection.close()
        self.expect(answer.status == 400, f"bad JSON got {answer.status}")
        return "bad 400"


class Tickets:
    def __init__(self, count):
        self.left, self.lock = count, threading.Lock()

    def take(self):
        with self.lock:
            self.left -= 1
            return self.left >= 0


def trouble(rng, gateway, workers):
    """One thing that happens to the fleet."""
    worker = rng.choice(workers)
    what = rng.choices(["fault", "restart", "replace"], [8, 1, 1])[0]
    if what == "fault":
        call(worker.url + "/sim/fault", rng.choice(FAULTS))
    elif what == "restart":
        worker.kill()
        worker.start()
    else:
        call(gateway.url + "/workers/" + urllib.parse.quote(worker.url, safe=""), method="DELETE")
        call(gateway.url + "/workers", {"url": worker.url})
    return what


def metric(address, family):
    text = urllib.request.urlopen(address + "/metrics", timeout=BOUND).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(family + r"[{ ]", line))


def settle(metrics, sent):
    """Waits until what left early has been noticed everywhere; then the books must balance."""
    for _ in range(600):
        counted, active = metric(metrics, "smg_router_requests_total"), metric(metrics, "smg_admission_inflight")
        if counted == sent and active == 0:
            break
        time.sleep(0.05)
    assert counted == sent, f"{sent} requests were sent, {counted} counted"
    assert active == 0, f"{active} requests are in flight and nobody sends"
    active = metric(metrics, "smg_worker_requests_active")
    assert active == 0, f"{active} leases are held and nobody sends"


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--requests", type=int, default=600)
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)

    workers = [Worker(options.binary) for _ in range(3)]
    with Sluice(options.binary, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1",
                "--prometheus-port", 0, "--worker-urls", *[w.url for w in workers], "--policy", "cache_aware",
                "--stream-idle-timeout-secs", 1, "--response-head-timeout-secs", 1, "--drain-settle-secs", 0,
                "--health-check-interval-secs", 1, "--cb-timeout-duration-secs", 1, "--max-concurrent-requests", 6,
                "--shutdown-grace-period-secs", 10, "--log-level", "error") as gateway:
        while call(gateway.url + "/readiness")[0] != 200:
            time.sleep(0.05)
        metrics = gateway.metrics_url()
        parts = urllib.parse.urlparse(gateway.url)
        tickets = Tickets(options.requests)
        clients = [Client((parts.hostname, parts.port), tickets, options.seed * 1000 + i) for i in range(options.clients)]
        for client in clients:
            client.start()
        # One piece of trouble after about every 25 requests, so that the length decides how much there is.
        troubles, next_at = collections.Counter(), options.requests
        while any(client.is_alive() for client in clients):
            if tickets.left <= next_at and tickets.left > 0:
                troubles[trouble(rng, gateway, workers)] += 1
                next_at = tickets.left - 25
            time.sleep(0.01)

        sent = sum(client.sent for client in clients)
        settle(metrics, sent)
        problems = [problem for client in clients for problem in client.problems]
        outcomes = sum((client.outcomes for client in clients), collections.Counter())
        assert not problems, f"{len(problems)} problems, the first of them:\n" + "\n".join(problems[:10])
        assert outcomes["whole 200"] and outcomes["stream 200"], outcomes
        assert gateway.stop(signal.SIGTERM) == 0
    for worker in workers:
        worker.kill()
    print(f"{sent} requests: {dict(sorted(outcomes.items()))}; trouble: {dict(troubles)}")


if __name__ == "__main__":
    main()
