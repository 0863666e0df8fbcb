"""What the tests of divided instances share: servers of tiny models, requests of any length and end, and answers held against those of
one rank."""
import concurrent.futures
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, call, descendants, wait_until  # noqa: E402

DPA = ("--enable-dp-attention",)
DEEPEP = ("--moe-a2a-backend", "deepep", "--moe-runner-backend", "deep_gemm")
MIXED = ("--enable-mixed-chunk", "--enable-metrics")
# With --deterministic.
CLOSEST_TIE = 1e-4
# Sums in another order move a logit of these models by less, as do routers that it tips by more: those are few.
NEAR_TIE = 2e-3
# With --dtype bfloat16, which has 8 bits: other roundings on the way moved a logit by up to 0.08. Where they tip a router another expert
# computes, and any token may be another: with experts only the share of answers that part is held to a bound. On one rank, too, other company
# in a step rounds otherwise: of 100 answers of tiny-deepseek-v3 6 parted with mixed chunks, of its FP8 form 9 without and 13 with them.
BF16_TIE = 0.15
# In the log: where a rank was that has computed before, its step and what it did there.
STEP = r"step [1-9]\d*(, layer \d+)?, [a-z]+"


def start_server(binary, model, *more, env=None):
    arithmetic = () if {"--deterministic", "--dtype"} & set(more) else ("--dtype", "float32")
    return Sluice(binary, "server", "--model-path", model, "--port", 0, "--max-total-tokens", 2048, "--threads", 1,
                  *arithmetic, *more, env=env)


# To a process that has throw_on_signal.cc in it: the next allocation of its first thread fails.
THROW = signal.Signals(signal.SIGRTMIN) + 5


def preload_throwing(folder):
    """The environment of a server whose ranks throw when they are told to."""
    library = os.path.join(folder, "throw_on_signal.so")
    source = os.path.join(os.path.dirname(__file__), "../soak/throw_on_signal.cc")
    subprocess.run(["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": library}


def sanitized(binary):
    return re.search(r"lib[at]san", subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout) is not None


def can_throw(pid):
    """Whether the process has come so far that it takes the signal."""
    try:
        caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return False
    return bool(int(caught[1], 16) >> (THROW - 1) & 1)


def waits_without_limit(task):
    """Whether the thread (/proc/P/task/T) is in a system call that ends by an event alone. The numbers are those of x86-64."""
    number, *arguments = (task / "syscall").read_text().split()
    # read, poll, futex, epoll_wait: which argument is the limit, and what says that there is none.
    at, none = {"0": (None, None), "7": (2, 0xFFFFFFFF), "202": (3, 0), "232": (3, 0xFFFFFFFF)}.get(number, (None, ""))
    return none is None or (at is not None and int(arguments[at], 16) & 0xFFFFFFFF == none)


def rank_processes(running):
    return sorted(pid for pid, line in descendants(running.process.pid).items() if line.endswith("sluice rank"))


def body_of(ids, tokens, temperature=0):
    return {"input_ids": ids, "return_logprob": True, "top_logprobs_num": 2,
            "sampling_params": {"temperature": temperature, "max_new_tokens": tokens, "ignore_eos": True}}


def generate(url, ids, tokens, rank=None, timeout=120, temperature=0):
    body = body_of(ids, tokens, temperature)
    if rank is not None:
        body["routed_dp_rank"] = rank
    return call(url + "/generate", body, timeout=timeout)


@dataclass
class Request:
    ids: list
    tokens: int
    end: str = "whole"  # or "left" by its client, or "aborted" by another, after so many events
    events: int = 0
    pause: float = 0  # seconds before it is sent, after the one before


def workload(count, seed=5, longest=60, cut_short=0.0, pause=0.0):
    rng = random.Random(seed)
    requests = []
    for _ in range(count):
        one = Request([rng.randrange(512) for _ in range(rng.randrange(1, longest))], rng.randrange(1, 16))
        if rng.random() < cut_short:
            one.end, one.events, one.tokens = rng.choice(["left", "aborted"]), rng.randrange(0, 8), rng.randrange(10, 30)
        one.pause = rng.expovariate(1 / pause) if pause else 0
        requests.append(one)
    return requests


def cut_short(url, number, request):
    """The tokens of a streamed answer up to its end, which comes early."""
    body = {**body_of(request.ids, request.tokens), "stream": True, "rid": f"request-{number}"}
    ids, seen = [], 0
    post = urllib.request.Request(url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(post, timeout=120) as stream:
        while True:
            if seen == request.events:
                if request.end == "left":
                    return ids
                status, _, answer = call(url + "/abort_request", {"rid": body["rid"]})
                assert status == 200, answer
            seen += 1
            line = b""
            while not line.startswith(b"data:"):
                line = stream.readline()
                assert line, "the stream ends without [DONE]"
            if line.startswith(b"data: [DONE]"):
                return ids
            event = json.loads(line[5:])
            assert "error" not in event, event
            ids = event["output_ids"]


def answers(url, requests, clients=16):
    """Of each request its whole answer, or the tokens that came before it was cut short."""
    def one(number, request):
        if request.end != "whole":
            return cut_short(url, number, request)
        status, _, answer = generate(url, request.ids, request.tokens)
        assert status == 200, answer
        return answer

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        pending = []
        for number, request in enumerate(requests):
            time.sleep(request.pause)
            pending.append(pool.submit(one, number, request))
        return [future.result() for future in pending]


def first_difference(got, want):
    """(position, margin of the one rank) where the tokens part, or None. `got` may be shorter."""
    for i, (a, b) in enumerate(zip(got, want["output_ids"])):
        if a != b:
            top = want["meta_info"]["output_top_logprobs"][i]
            return i, top[0][0] - top[1][0]
    return None


def differences(requests, got, want):
    """Where answers part from those of one rank to the same requests, none of them cut short."""
    parted = []
    for request, mine, expected in zip(requests, got, want):
        whole = request.end == "whole"
        ids = mine["output_ids"] if whole else mine
        assert not whole or len(ids) == len(expected["output_ids"]), (len(ids), request)
        if difference := first_difference(ids, expected):
            parted.append(difference)
    return parted


def mixed_seconds(url):
    """Of steps in which some sequences prefilled and others decoded. A server with MIXED."""
    seconds = re.findall(r'^sglang:forward_execution_seconds_total\{.*category="mixed".*\} (\S+)$', call(url + "/metrics")[2], re.M)
    assert seconds, "no such metric"
    return sum(map(float, seconds))


def fill_pools(url, traces, vocabulary, per_pool=8):
    """Fills the KV pool of each attention group with requests that are all unlike until one has to give up its slots. Of each group the
    tokens that were in its pool after the step before, by the trace of its steps in the folder `traces`, and those that it has room for.
    A server whose requests share nothing (--disable-radix-cache), with --schedule-conservativeness 0 and
    SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION=1, so that nothing is kept free for answers. With ignore_eos lengths would be known, and only
    what fits to its end be let in: nobody would ever be retracted."""
    def loads():
        return call(url + "/v1/loads?include=all")[2]["loads"]

    rooms = [load["max_total_num_tokens"] for load in loads()]
    profile = {"output_dir": str(traces), "profile_prefix": "fill", "profile_id": "1"}
    status, _, body = call(url + "/start_profile", profile)
    assert status == 200, body

    def ask(group, number):
        rng = random.Random(group * per_pool + number)
        ids = [rng.randrange(vocabulary) for _ in range(rooms[group] // per_pool - 8)]
        return call(url + "/generate", {"input_ids": ids, "routed_dp_rank": group, "sampling_params": {
            "temperature": 0, "max_new_tokens": 400, "min_new_tokens": 400}}, timeout=600)[0]

    retracting = set()  # groups: a request waits for a while after it has given up its slots, not for ever

    def each_has_retracted():
        retracting.update(group for group, load in enumerate(loads()) if load["queues"]["retracted"] > 0)
        return len(retracting) == len(rooms)

    with concurrent.futures.ThreadPoolExecutor(per_pool * len(rooms)) as pool:
        asked = [pool.submit(ask, group, number) for number in range(per_pool) for group in range(len(rooms))]
        try:
            wait_until("a request of each pool that had to leave it", within=600, every=0.02,
                       condition=each_has_retracted)
        finally:
            call(url + "/abort_request", {"abort_all": True})
        for request in asked:
            request.result()
    status, _, body = call(url + "/stop_profile", method="POST")
    assert status == 200, body
    return [(tokens_before_retraction(Path(traces) / f"fill-1-DP-{group}.trace.json"), room) for group, room in enumerate(rooms)]


def tokens_before_retraction(trace):
    """In a pool, by the trace of a rank's steps, after the step before the first in which a request gave up its slots."""
    used = 0
    retracted = False
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event["ph"] == "X" and "retracted" in event["args"]:
            retracted = event["args"]["retracted"] > 0
        elif event["ph"] == "C" and event["name"] == "KV tokens":
            if retracted:
                return used
            used = event["args"]["used"]
    raise AssertionError(f"{trace}: no request gave up its slots")


def holds_nothing(url):
    """Whether no request is left in any phase, and no token in any pool that the prefix cache could not give up."""
    loads = call(url + "/v1/loads?include=all")[2]["loads"]
    return all(load["num_running_reqs"] == load["num_waiting_reqs"] == load["num_used_tokens"] == 0 for load in loads)
