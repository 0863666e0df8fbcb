#!/usr/bin/env python3
"""Divided instances of every fixture under random requests, and what becomes of them when any of their ranks dies or hangs.

usage: layouts_soak.py <sluice binary> <folder of fixtures> [tokens] [failures] [standstill] [--requests 200] [--deterministic | --bf16] [--models NAME ...] [--phases idle ...] [--seed 1]

tokens: for (tp, dp) = (2, 2), (4, 2), (4, 4) with DP attention, with deepep where there are experts, and each with mixed chunks too: random lengths and arrivals, a fifth
of the requests left by their client or aborted. The tokens are those of one rank up to the first step whose margin there is below
the arithmetic's tolerance; the share of such answers is printed, and bounded. Nothing is held when all have ended.

failures: each rank of (4, 2) with deepep in turn, killed (SIGKILL), stopped (SIGSTOP) and with an error that is thrown (an allocation that fails),
while it is idle, prefills, decodes, decodes in two halves, is in an all-to-all (dispatch or combine), moves experts and loads, the last three as the
log says where it was last seen. Every request ends, the log names the rank and its step within 3 s (killed, an error) or 5 s (silent for 4), the instance serves again, and no process is left over.

standstill: all processes of an instance are stopped for longer than a rank may be silent, in the middle of a load, and go on, as those of a
container that is frozen or a virtual machine that is moved: no request fails."""
import argparse
import dataclasses
import itertools
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../integration"))
from layout_fixture import (BF16_TIE, CLOSEST_TIE, DEEPEP, DPA, MIXED, NEAR_TIE, STEP, THROW, answers, call, can_throw, differences, generate, holds_nothing,  # noqa: E402
                            mixed_seconds, preload_throwing, rank_processes, start_server, workload)

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import alive, wait_until  # noqa: E402

MODELS = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3-moe", "tiny-deepseek-v2", "tiny-deepseek-v3", "tiny-deepseek-v3-fp8",
          "tiny-kimi-k2", "tiny-minimax-m2", "tiny-minimax-text-01"]
DENSE = {"tiny-llama", "tiny-qwen2", "tiny-qwen3"}


# Phases that end too soon to be waited for: a rank is killed in some step, and again until it was there. By what the log calls them.
WITHIN = {"all-to-all": ("dispatch", "combine"), "rebalance": ("rebalance",), "load": ("load",)}
# Experts that are large beside what a step computes.
LARGE = ("--load-format", "dummy", "--json-model-override-args", json.dumps({"n_routed_experts": 64, "moe_intermediate_size": 2048}))
MORE = {"load": LARGE, "halves": ("--enable-two-batch-overlap",),
        "rebalance": (*LARGE, "--enable-eplb", "--eplb-rebalance-num-iterations", 1, "--ep-num-redundant-experts", 16)}
NAMES = {signal.SIGKILL: "SIGKILL", signal.SIGSTOP: "SIGSTOP", THROW: "an error"}


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def tokens(options):
    for model in options.models:
        requests = workload(options.requests, seed=options.seed, longest=120, cut_short=0.2, pause=0.005)
        fixed, tie, most = arithmetic_of(options, model)
        with start_server(options.binary, options.fixtures / model, *fixed) as alone:
            want = answers(alone.url, [dataclasses.replace(request, end="whole") for request in requests])
        backends = ((),) if model in DENSE else ((), DEEPEP)
        for (tp, dp), flags, mixed in itertools.product(((2, 2), (4, 2), (4, 4)), backends, ((), MIXED)):
            with start_server(options.binary, options.fixtures / model, "--tp", tp, "--dp-size", dp, *DPA, *flags, *mixed, *fixed) as divided:
                parted = differences(requests, answers(divided.url, requests, clients=24), want)
                check(all(margin < tie for _, margin in parted), f"{model} {tp} {dp} {flags} {mixed}: {parted}")
                check(len(parted) <= len(requests) * most, f"{model} {tp} {dp} {flags} {mixed}: {len(parted)} answers part")
                wait_until("an instance that holds nothing", lambda: holds_nothing(divided.url))
                check(not mixed or mixed_seconds(divided.url) > 0, "no step was mixed")
            cut = sum(request.end != "whole" for request in requests)
            print(f"{model} tp {tp} dp {dp} {'deepep' if flags else 'none'}{', mixed chunks' if mixed else ''}: {len(requests)} requests, "
                  f"{cut} cut short, {len(parted)} part at a near tie{largest_of(parted)}", flush=True)


def arithmetic_of(options, model):
    """Flags of all servers, the margin below which tokens may part, and the share of answers that may."""
    if options.deterministic:
        return ("--deterministic",), CLOSEST_TIE, 1 / 8
    if not options.bf16:
        return (), NEAR_TIE, 1 / 8
    return ("--dtype", "bfloat16"), *((BF16_TIE, 1 / 8) if model in DENSE else (math.inf, 1 / 3))


def largest_of(parted):
    return f", of {max(margin for _, margin in parted):.4f} at most" if parted else ""


def requests_of(phase, url, results):
    """Requests that keep the instance in a phase for seconds."""
    if phase in ("idle", "load"):
        return []
    lengths = (900, 1) if phase == "prefill" else (20, 400)

    def ask(i):
        while True:
            status = generate(url, [i + 1] * lengths[0], lengths[1])[0]
            results.append(status)
            if status != 200 or phase != "prefill":
                return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    return threads


def fail_one(options, phase, how, victim):
    """Seconds until it was named, and whether it was in the phase."""
    layout = ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, *MORE.get(phase, ()))
    with start_server(options.binary, options.fixtures / "tiny-deepseek-v3", *layout, env=options.env) as running:
        results = []
        before = rank_processes(running)
        check(len(before) == 4, before)
        if phase == "load":
            # Its instance is about to start again.
            os.kill(before[0], signal.SIGKILL)
            wait_until("the first end in the log", lambda: any("start again" in line for line in running.lines), every=0.002)
            before = wait_until("ranks that load", lambda: fresh(running, before), every=0.002)
            wait_until("a rank that can throw", lambda: can_throw(before[victim]), every=0.002)
            time.sleep(options.rng.uniform(0, 0.4))  # anywhere in its start
        threads = requests_of(phase, running.url, results)
        if threads:
            wait_until("running requests", lambda: sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in
                                                      call(running.url + "/v1/loads")[2]["loads"]) > 0, every=0.01)
        lines = len(running.lines)
        os.kill(before[victim], how)
        since = time.monotonic()
        found = threading.Event()

        def ask():  # a rank that is stopped is missed when there is something to do
            while True:
                results.append(generate(running.url, [1, 2], 3)[0])
                if found.wait(0.05) or phase == "idle":
                    return

        if phase in ("idle", "load"):
            threads = [threading.Thread(target=ask)]
            threads[0].start()

        def named():
            ends = [line for line in running.lines[lines:] if "has ended" in line and "start again" in line]
            return next((line for line in ends if f"rank {victim}" in line), None)

        line = wait_until(f"{phase}: the end of rank {victim} in the log", named, within=60, every=0.01)
        seconds = time.monotonic() - since
        found.set()
        for thread in threads:
            thread.join(60)
            check(not thread.is_alive(), "a request has not ended")
        check(len(results) >= len(threads), "a request had no answer")
        check(all(status in (200, 500, 503) for status in results), results)
        wait_until("the instance serving again", lambda: generate(running.url, [5, 6, 7], 3)[0] == 200, within=60)
        check(not any(alive(pid) for pid in before), "an old rank is left over")
        there = phase not in WITHIN or any(name in line for name in WITHIN[phase])
        # One that is hit while it starts may not have said yet where it is.
        check(phase == "load" or re.search(rf"rank {victim}\b.*\b{STEP}", line), f"no step of rank {victim}: {line}")
        return seconds, there and (how != THROW or "bad_alloc" in line)


def fresh(running, before):
    now = rank_processes(running)
    return now if len(now) == 4 and not set(now) & set(before) else None


def failures(options):
    with tempfile.TemporaryDirectory() as folder:
        options.env = preload_throwing(folder)
        fail_all(options)


def fail_all(options):
    for phase in options.phases:
        for how, limit in ((signal.SIGKILL, 3), (signal.SIGSTOP, 5), (THROW, 3)):
            took = []
            for victim in range(4):
                for _ in range(20):
                    seconds, was_there = fail_one(options, phase, how, victim)
                    took.append(seconds)
                    if was_there:
                        break
                check(was_there, f"{phase}, {NAMES[how]}: rank {victim} was not there in {len(took)} tries")
            print(f"{phase}, {NAMES[how]}: named after {', '.join(f'{seconds:.1f}' for seconds in took)} s", flush=True)
            check(max(took) < limit, f"{phase}, {NAMES[how]}: {took}")


def stand_still(options, layout, after, backwards):
    with start_server(options.binary, options.fixtures / "tiny-deepseek-v3", *layout) as running:
        results, over = [], threading.Event()

        def ask(i):
            while not over.is_set():
                results.append(generate(running.url, [i + 3] * 20, 100)[0])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(after)
        pids = [running.process.pid, *rank_processes(running)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(8)  # a rank may be silent for 5
        for pid in reversed(pids) if backwards else pids:
            os.kill(pid, signal.SIGCONT)
        before = len(results)
        wait_until("answers", lambda: len(results) >= before + 50, within=60)
        over.set()
        for thread in threads:
            thread.join(60)
        check(all(status == 200 for status in results), f"{layout}: {sum(status != 200 for status in results)} of {len(results)} failed")


def standstill(options):
    for layout in (("--tp", 2), ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP)):
        for backwards in (False, True) * 3:
            stand_still(options, layout, options.rng.uniform(0.5, 2), backwards)
        print(f"{' '.join(map(str, layout))}: stood still for 8 s, 6 times, and no request failed", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("parts", nargs="*", choices=["tokens", "failures", "standstill", []], default=["tokens", "failures", "standstill"])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--phases", nargs="+", default=["idle", "prefill", "decode", "halves", "all-to-all", "rebalance", "load"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deterministic", action="store_true", help="tokens: servers with that flag, and a closer tie")
    parser.add_argument("--bf16", action="store_true", help="tokens: all servers in bf16, and a wider tie")
    options = parser.parse_args()
    options.rng = random.Random(options.seed)
    for part in options.parts:
        {"tokens": tokens, "failures": failures, "standstill": standstill}[part](options)
    print("ok")


if __name__ == "__main__":
    main()
