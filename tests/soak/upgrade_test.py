#!/usr/bin/env python3
"""A gateway is replaced by a new process again and again (SIGUSR2) while clients send: over kept connections, over new ones,
streams, scrapes of the metrics and health ports. No request may fail, and no connection be refused. An upgrade that fails
leaves the gateway as it was.

usage: upgrade_test.py <sluice binary> [--upgrades N] [--clients N]

./test runs 3 upgrades; the full length is --upgrades 100."""
import argparse
import http.client
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))
from sluice_process import Sluice, alive, call, wait_until  # noqa: E402

BOUND = 60


class Client(threading.Thread):
    """Sends one kind of request until it is told to stop; everything but a whole 200 is a failure."""

    def __init__(self, address, kind, number):
        super().__init__(daemon=True)
        self.address, self.kind, self.number = address, kind, number
        self.ended, self.sent, self.failures = threading.Event(), 0, []

    def run(self):
        connection = None
        while not self.ended.is_set():
            self.sent += 1
            try:
                connection = connection or http.client.HTTPConnection(*self.address, timeout=BOUND)
                if self.kind in ("/metrics", "/readiness"):
                    connection.request("GET", self.kind)
                else:
                    body = {"text": f"client {self.number} " + "word " * 20, "stream": self.kind == "stream",
                            "sampling_params": {"max_new_tokens": 4}}
                    connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200 or (self.kind == "stream" and not text.endswith(b"data: [DONE]\n\n")):
                    self.failures.append(f"{self.kind}: {answer.status} {text[-300:]!r}")
            except OSError as problem:
                self.failures.append(f"{self.kind}: {problem!r}")
                connection = None
            except http.client.HTTPException as problem:
                self.failures.append(f"{self.kind}: {problem!r}")
                connection = None
            if self.kind != "kept" and connection is not None:
                connection.close()
                connection = None


def count(gateway, text):
    return sum(text in line for line in list(gateway.lines))


def upgrade(gateway, pid):
    """The process that took over from `pid`."""
    before = count(gateway, "a successor serves")
    os.kill(pid, signal.SIGUSR2)
    wait_until("an upgrade", lambda: count(gateway, "a successor serves") > before, within=90, every=0.01)
    return [int(n) for n in re.findall(r"process (\d+) is to take over", "".join(gateway.lines))][-1]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("--upgrades", type=int, default=3)
    arguments.add_argument("--clients", type=int, default=2, help="of each kind")
    options = arguments.parse_args()

    workers = [Sluice(options.binary, "bench", "worker", "--port", 0, "--time-scale", 20) for _ in range(3)]
    folder = tempfile.TemporaryDirectory()
    link = Path(folder.name) / "sluice"
    link.symlink_to(Path(options.binary).resolve())

    with socket.socket() as probe:  # the one port that cannot be 0
        probe.bind(("127.0.0.1", 0))
        health = probe.getsockname()

    def turn_link(target):
        fresh = link.with_name("fresh")
        fresh.symlink_to(target)
        fresh.rename(link)

    with Sluice(str(link), "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1",
                "--prometheus-port", 0, "--health-check-port", health[1], "--worker-urls", workers[0].url, workers[1].url,
                "--drain-settle-secs", 0, "--shutdown-grace-period-secs", 60, "--runtime-worker-threads", 2) as gateway:
        pids = [gateway.process.pid]
        try:
            wait_until("readiness", lambda: call(gateway.url + "/readiness")[0] == 200)
            # What was changed since the start is not lost: one worker more, one less.
            own = {"health": {"failure_threshold": 9}, "resilience": {"cb_failure_threshold": 3, "max_retries": 2}}
            assert call(gateway.url + "/workers", {"url": workers[2].url, "priority": 7, **own})[0] == 202
            gone = urllib.parse.quote(workers[0].url, safe="")
            assert call(gateway.url + "/workers/" + gone, method="DELETE")[0] == 202

            def urls():
                return {w["url"]: w for w in call(gateway.url + "/workers")[2]["workers"] if w["is_healthy"]}
            wait_until("two workers", lambda: set(urls()) == {workers[1].url, workers[2].url})

            parts = urllib.parse.urlparse(gateway.url)
            metrics = urllib.parse.urlparse(gateway.metrics_url())
            kinds = [("kept", (parts.hostname, parts.port)), ("new", (parts.hostname, parts.port)),
                     ("stream", (parts.hostname, parts.port))] * options.clients
            kinds += [("/metrics", (metrics.hostname, metrics.port)), ("/readiness", health)]
            clients = [Client(address, kind, i) for i, (kind, address) in enumerate(kinds)]
            for client in clients:
                client.start()
            for _ in range(options.upgrades):
                before = [client.sent for client in clients]
                pids.append(upgrade(gateway, pids[-1]))
                wait_until("every client has gone on",
                           lambda: all(c.sent > n + 3 or c.failures for c, n in zip(clients, before)))
                failures = [failure for client in clients for failure in client.failures]
                assert not failures, f"{len(failures)} failures, the first of them:\n" + "\n".join(failures[:10])
            kept = urls()
            assert set(kept) == {workers[1].url, workers[2].url}, kept
            assert kept[workers[2].url]["priority"] == 7, kept
            shown = [call(gateway.url + "/workers/" + kept[worker.url]["id"])[2] for worker in workers[1:]]
            for group, rules in own.items():
                for name, value in rules.items():
                    assert shown[1][group][name] == value, (group, name, shown[1])
                    assert shown[0][group][name] != value, f"{name} of one worker has become another's"

            # One that does not start changes nothing, and says why.
            turn_link("/bin/false")
            os.kill(pids[-1], signal.SIGUSR2)
            wait_until("a refusal", lambda: count(gateway, "this process goes on: it ended: exit 1"), within=90)
            turn_link(Path(options.binary).resolve())
            pids.append(upgrade(gateway, pids[-1]))

            for client in clients:
                client.ended.set()
            for client in clients:
                client.join(BOUND)
            failures = [failure for client in clients for failure in client.failures]
            assert not failures, f"{len(failures)} failures, the first of them:\n" + "\n".join(failures[:10])
            gateway.process.wait(90)
            for pid in pids[1:-1]:
                wait_until("the predecessors have ended", lambda p=pid: not alive(p), within=90)
            assert alive(pids[-1])
            os.kill(pids[-1], signal.SIGTERM)
            wait_until("the last one ends", lambda: not alive(pids[-1]), within=90)
        finally:
            for pid in pids[1:]:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    print(f"{len(pids) - 1} upgrades, {sum(c.sent for c in clients)} requests, none failed")


if __name__ == "__main__":
    main()
