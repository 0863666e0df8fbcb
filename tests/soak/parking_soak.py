#!/usr/bin/env python3
"""Rounds of parking and waking of a real instance of four ranks: each piece of work wakes all of them, whether it finds them parked
or on their way there, and none is lost.

usage: parking_soak.py <sluice binary> <folder of fixtures> [--rounds N] [--seed S] [--idle SECONDS]

Rounds take turns: a request is sent when all four ranks are seen asleep in poll (/proc/<pid>/syscall), up to three milliseconds after
the last answer, about when they park, or at once, before they do. What waking costs is the median of what the first of each turn took
more than the third, so that a machine that is slower for a while does not count. A parked rank wakes for its next message alone, so a
wake-up that is lost is a request without an answer. With --idle the ranks are then left alone for so long, and it is counted how often
one of their threads was switched to, whether it slept before or another had taken its core."""
import argparse
import http.client
import json
import os
import random
import re
import statistics
import sys
import time
import urllib.parse
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../integration"))
from layout_fixture import DEEPEP, DPA, rank_processes, start_server, waits_without_limit  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import call, wait_until  # noqa: E402

POLL, SHORT_WAIT_MS = "7", 1  # the number of x86-64; the wait of a rank that knows of work on its way to another
LOST = 20  # seconds


def sleeps(pid):
    """Whether the rank's thread waits for its next message, and for nothing else."""
    fields = Path(f"/proc/{pid}/syscall").read_text().split()
    return fields[0] == POLL and int(fields[3], 16) > SHORT_WAIT_MS  # without a limit: more than any number


def switches(tasks):
    """To all threads together since their start: voluntary, and those by which another one took the core."""
    texts = [(task / "status").read_text() for task in tasks]
    return tuple(sum(int(re.search(rf"^{kind}_ctxt_switches:\s+(\d+)", text, re.M)[1]) for text in texts) for kind in ("voluntary", "nonvoluntary"))


class Client:
    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LOST)

    def ask(self, ids, group):
        """Seconds to the answer, which is one token."""
        body = json.dumps({"input_ids": ids, "routed_dp_rank": group,
                           "sampling_params": {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True}})
        begun = time.monotonic()
        self.connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return time.monotonic() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--idle", type=float, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    took = {"parked": [], "racing": [], "awake": []}
    with start_server(options.binary, options.fixtures / "tiny-deepseek-v3", "--tp", 4, "--dp-size", 2, *DPA, *DEEPEP,
                      "--disable-radix-cache") as server:
        ranks = rank_processes(server)
        assert len(ranks) == 4, ranks
        client = Client(server.url)
        for number in range(options.rounds):
            kind = list(took)[number % 3]
            if kind == "parked":
                wait_until("four ranks asleep", lambda: all(sleeps(pid) for pid in ranks), within=LOST, every=0)
            elif kind == "racing":
                time.sleep(rng.uniform(0, 0.003))  # not waited for: where in the parking it falls is the point
            ids = [rng.randrange(512) for _ in range(rng.randrange(1, 5))]
            try:
                took[kind].append(client.ask(ids, rng.randrange(2)))
            except TimeoutError:
                loads = call(server.url + "/v1/loads?include=all")[2]
                sys.exit(f"round {number} ({kind}, seed {options.seed}): no answer within {LOST} s; {loads}")
        states = call(server.url + "/server_info")[2]["internal_states"]
        steps = max(state["group_steps"] for state in states)
        assert steps >= options.rounds, f"{steps} steps for {options.rounds} requests of one token each"
        if options.idle > 0:
            tasks = [task for pid in ranks for task in Path(f"/proc/{pid}/task").iterdir()]
            wait_until("every thread waiting without a limit", lambda: all(map(waits_without_limit, tasks)))
            before = switches(tasks)
            time.sleep(options.idle)  # a span of the clock is what is measured
            voluntary, involuntary = (now - then for now, then in zip(switches(tasks), before))
            print(f"{voluntary} voluntary and {involuntary} involuntary switches of {len(tasks)} threads of four idle ranks in {options.idle:g} s")
    for kind, seconds in took.items():
        millis = sorted(1000 * s for s in seconds)
        print(f"{len(millis)} rounds {kind}: an answer after {statistics.median(millis):.2f} ms (median), "
              f"{millis[len(millis) * 99 // 100]:.2f} ms (p99), {millis[-1]:.1f} ms (longest)")
    more = [1000 * (parked - awake) for parked, awake in zip(took["parked"], took["awake"])]
    if more:
        print(f"from a park to the first token: {statistics.median(more):+.2f} ms more than at once (median of {len(more)} turns)")
    print(f"{options.rounds} rounds, {steps} steps, nothing lost")


if __name__ == "__main__":
    main()
