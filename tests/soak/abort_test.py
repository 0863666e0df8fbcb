#!/usr/bin/env python3
"""E1, K1: clients that leave, and aborts, in every phase of a request - before its head is answered, while it waits, while its
prompt is computed, between two tokens - leave nothing behind in the ranks: no request, no KV slot, no process.

usage: abort_test.py <sluice binary> <folder of fixtures> [--aborts N] [--seed S]"""
import argparse
import collections
import json
import os
import random
import socket
import sys
import threading
import urllib.parse
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, call, descendants, wait_until  # noqa: E402

CLIENTS = 12  # more than run at once, so that some wait
PROMPT = list(range(10, 42))


def reference(url, rank):
    return call(url + "/generate", {"input_ids": PROMPT, "routed_dp_rank": rank,
                                    "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}})


class Client:
    def __init__(self, url, rng):
        self.url, self.rng = url, rng
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)

    def one(self, number):
        """Sends a request that would run for long, and ends it; returns the phase in which it did."""
        rng = self.rng
        phase = rng.choice(["at once", "before the head", "in the stream", "by rid", "by rid in the stream"])
        rid = f"abort-{number}"
        body = {"rid": rid, "input_ids": [rng.randrange(3, 500) for _ in range(rng.randrange(1, 400))],
                "stream": phase.endswith("stream") or rng.random() < 0.5,
                "sampling_params": {"max_new_tokens": 100_000 if rng.random() < 0.8 else rng.randrange(1, 40),
                                    "ignore_eos": True, "n": rng.choice([1, 1, 1, 2])}}
        # What is asked for must fit into a context.
        body["sampling_params"]["max_new_tokens"] = min(body["sampling_params"]["max_new_tokens"],
                                                        1000 - len(body["input_ids"]))
        text = json.dumps(body).encode()
        with socket.create_connection(self.address, timeout=120) as s:
            s.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                      + str(len(text)).encode() + b"\r\n\r\n" + text)
            over = phase.endswith("in the stream") and not self.read_events(s, rng.randrange(1, 12))
            if phase == "before the head":
                # Something of another request's happens meanwhile.
                call(self.url + "/v1/loads")
            if phase.startswith("by rid"):
                status, _, _ = call(self.url + "/abort_request", {"rid": rid})
                assert status == 200, status
                if not over and rng.random() < 0.5:
                    self.read_to_end(s)  # the answer to one that was aborted comes
        return phase

    @staticmethod
    def read_events(s, count):
        """False at the end of the stream."""
        seen = b""
        while seen.count(b"data:") < count:
            piece = s.recv(65536)
            seen += piece
            if not piece or b"[DONE]" in seen:
                return False
        return True

    @staticmethod
    def read_to_end(s):
        seen = b""
        while True:
            piece = s.recv(65536)
            seen += piece
            # The last chunk of a stream, or the whole of a body with its length.
            if not piece or seen.endswith(b"0\r\n\r\n"):
                return
            head, _, rest = seen.partition(b"\r\n\r\n")
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length" and len(rest) >= int(value):
                    return


def idle(url):
    loads = call(url + "/v1/loads")[2]["loads"]
    return all(load["num_running_reqs"] == load["num_waiting_reqs"] == load["num_used_tokens"] == 0 for load in loads)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("binary")
    arguments.add_argument("fixtures", type=Path)
    arguments.add_argument("--aborts", type=int, default=300)
    arguments.add_argument("--seed", type=int, default=1)
    args = arguments.parse_args()
    with Sluice(args.binary, "server", "--model-path", args.fixtures / "tiny-llama", "--port", 0, "--dp-size", 2,
                "--max-total-tokens", 2048, "--max-running-requests", 4, "--chunked-prefill-size", 64, "--threads", 1,
                "--log-level", "warning") as server:
        before = {rank: reference(server.url, rank)[2]["output_ids"] for rank in (0, 1)}
        processes = sorted(descendants(server.process.pid))
        numbers, phases, problems, lock = iter(range(args.aborts)), collections.Counter(), [], threading.Lock()

        def work(client):
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    phase = client.one(number)
                except Exception as error:  # a client's thread must not end in silence
                    with lock:
                        problems.append(f"request {number}: {error!r}")
                    return
                with lock:
                    phases[phase] += 1

        threads = [threading.Thread(target=work, args=(Client(server.url, random.Random(f"{args.seed}/{i}")),))
                   for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems, problems
        wait_until("ranks with nothing to do", lambda: idle(server.url))
        assert sorted(descendants(server.process.pid)) == processes, "a process was lost or left behind"
        states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in processes}
        assert "Z" not in states.values(), states
        for rank in (0, 1):
            status, _, answer = reference(server.url, rank)
            assert status == 200 and answer["output_ids"] == before[rank], answer
        wait_until("an empty server again", lambda: idle(server.url))
        assert call(server.url + "/flush_cache", method="POST")[0] == 200
        assert server.stop() == 0
    print(f"{args.aborts} requests, ended " + ", ".join(f"{phase}: {count}" for phase, count in sorted(phases.items())))


if __name__ == "__main__":
    main()
