#!/usr/bin/env python3
"""X13, K1: requests with any two features together, of any length, in batches of any size, many at once, on real servers. Nothing that a
client can ask for may end a process, be answered with another status than the rules of docs/engine-api.md say, break what an
answer promises, change another request's tokens, or leave anything behind.

Rows are a covering array: every value of every feature meets every value of every other one. The rest (lengths, ids, seeds, when a
client leaves) is drawn at random.

usage: features_test.py <sluice binary> <folder of fixtures> [--servers NAME ...] [--rounds 1] [--clients 10] [--seed 1]"""
import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import random
import re
import sys
import time
import urllib.parse
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../integration"))
from layout_fixture import DEEPEP, DPA, NEAR_TIE, call, first_difference, holds_nothing  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, descendants, wait_until  # noqa: E402

CONTEXT = 256
COMMON = ("--context-length", CONTEXT, "--max-total-tokens", 1024, "--threads", 1, "--dtype", "float32", "--enable-return-hidden-states",
          "--enable-priority-scheduling", "--log-level", "warning")
# What each server is started with: the model, and flags that features of requests may not get on with.
SERVERS = {
    "one-rank": ("tiny-llama", "--max-running-requests", 6, "--chunked-prefill-size", 48, "--enable-mixed-chunk", "--page-size", 4),
    "groups": ("tiny-qwen3-moe", "--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--chunked-prefill-size", 64, "--max-running-requests", 12,
               "--enable-return-routed-experts", "--schedule-policy", "lof"),
    "states": ("tiny-minimax-text-01", "--dp-size", 2, "--max-running-requests", 5, "--chunked-prefill-size", 32,
               "--disable-overlap-schedule"),
    "followers": ("tiny-deepseek-v3", "--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, "--enable-two-batch-overlap", "--kv-cache-dtype", "fp8_e4m3",
                  "--enable-mixed-chunk"),
}
SHORT = ("one-rank", "groups")
LETTERS = "abcde the"
STOP, REGEX, BIAS = [" the", "e"], "(ab|cd){1,4}", {"17": 5, "300": -100, "42": 2.5}
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False})

# A value that stands several times is drawn more often where a row is free to choose.
FEATURES = {
    "input": ["text", "ids", "embeds"],
    "length": ["one", "short", "any", "longest"],
    "batch": [1, 2, 9],
    "n": [1, 1, 3],
    "stream": [False, True],
    "tokens": [0, 1, 20, 20, "the rest"],
    "least": [0, 0, 5],
    "ignore_eos": [False, True],
    "drawn": ["greedy", "greedy", "seed", "top_k", "top_p", "min_p"],
    "penalty": [None, "frequency_penalty", "presence_penalty", "repetition_penalty"],
    "bias": [False, True],
    "grammar": [None, None, "regex", "json_schema", "ebnf"],
    "stop": [None, None, "stop", "stop_token_ids", "stop_regex"],
    "trim": [None, "no_stop_trim", "keep_special"],
    "logprobs": [None, "output", "input", "top", "ids"],
    "insides": [None, "hidden", "experts"],
    "key": [None, "extra_key", "cache_salt", "routing_key"],
    "priority": [None, 5, -3],
    "rank": [None, 0],
    "background": [False, True],
    "end": ["whole", "whole", "whole", "left", "aborted"],
    "wrong": [None],
}
# What is refused, whatever else is asked for: a change of the body, and what the error names.
WRONG = {
    "too long": (lambda body: body["sampling_params"].update(max_new_tokens=CONTEXT), "context"),
    "a session": (lambda body: body.update(session_params={"id": "s"}), "session_params"),
    "no such rank": (lambda body: body.update(routed_dp_rank=99), "rank 99 .* range is 0 to"),
    "two grammars": (lambda body: body["sampling_params"].update(regex="a", ebnf='root ::= "a"'), "regex|ebnf"),
    "more than all": (lambda body: body["sampling_params"].update(min_new_tokens=CONTEXT, max_new_tokens=1), "min_new_tokens"),
    "an unknown parameter": (lambda body: body["sampling_params"].update(top_q=1), "top_q"),
    "a stream in the background": (lambda body: body.update(stream=True, background=True), "background"),
    "a word for a number": (lambda body: body["sampling_params"].update(temperature="hot"), "temperature"),
    "labels": (lambda body: body.update(custom_labels={"a": "b"}), "custom_labels"),
    "an adapter": (lambda body: body.update(lora_path="x"), "lora_path"),
}
PLAIN = {name: values[0] for name, values in FEATURES.items()} | {"input": "ids", "length": "any", "tokens": 20, "ignore_eos": True}


def possible(row, experts):
    """Whether a row may be asked for."""
    return not (row["least"] > 0 and row["tokens"] in (0, 1) or row["stream"] and row["background"] or
                row["logprobs"] == "input" and row["input"] == "embeds" or row["insides"] == "experts" and not experts or
                row["least"] > 0 and row["tokens"] == "the rest" and row["length"] == "longest")


def covering_rows(features, rng, may_be):
    """Rows of values so that each two values of two features are together in one of them, but for those that never may be."""
    values = {name: list(dict.fromkeys(given)) for name, given in features.items()}
    names = list(values)
    open_pairs = {((a, x), (b, y)) for i, a in enumerate(names) for b in names[i + 1:] for x in values[a] for y in values[b]}

    def pairs(row):
        return {((a, row[a]), (b, row[b])) for i, a in enumerate(names) for b in names[i + 1:]}

    def filled(pair):
        for _ in range(200):
            row = {name: rng.choice(given) for name, given in features.items()} | dict(pair)
            if may_be(row):
                return row
        return None

    rows = []
    while open_pairs:
        candidates = []
        for pair in rng.sample(sorted(open_pairs, key=repr), min(12, len(open_pairs))):
            if row := filled(pair):
                candidates.append(row)
            else:
                open_pairs.discard(pair)
        if candidates:
            rows.append(max(candidates, key=lambda row: len(pairs(row) & open_pairs)))
            open_pairs -= pairs(rows[-1])
    return rows


def all_rows(rng, experts):
    """In random order: each two features together, what is refused beside other features, and plain requests among them."""
    rows = covering_rows(FEATURES, rng, lambda row: possible(row, experts))
    for wrong in WRONG:
        for _ in range(2):
            rows.append(rng.choice(rows[:20]) | {"wrong": wrong, "end": "whole", "grammar": None})
    rows += [PLAIN | {"length": rng.choice(["one", "short", "any", "longest"]), "stream": rng.random() < 0.5} for _ in range(10)]
    rng.shuffle(rows)
    return rows


class Request:
    """A row as a request to /generate."""

    def __init__(self, number, row, rng, config, heads):
        self.number, self.row, self.rng, self.config, self.heads = number, row, rng, config, heads
        self.rid = f"case-{number}"
        self.refusal = None  # what its error names
        self.prompts = [self.prompt() for _ in range(row["batch"])]
        self.body = self.make_body()

    def prompt(self):
        rng, length = self.rng, self.row["length"]
        count = {"one": 1, "short": rng.randrange(2, 12), "any": rng.randrange(1, CONTEXT - 30), "longest": CONTEXT - 22}[length]
        # Most begin as others do, of whatever tenant, so that there is something to find in a cache.
        head = rng.choice(self.heads)[:rng.randrange(count) if rng.random() < 0.7 else 0]
        if self.row["input"] == "text":
            # A token for each character at most.
            return "".join(LETTERS[i % len(LETTERS)] for i in head) + "".join(rng.choice(LETTERS) for _ in range(count - len(head)))
        if self.row["input"] == "ids":
            return head + [rng.randrange(3, self.config["vocab_size"]) for _ in range(count - len(head))]
        return [[round(rng.gauss(0, 0.02), 4) for _ in range(self.config["hidden_size"])] for _ in range(count)]

    def make_body(self):
        row, rng = self.row, self.rng
        longest = max(len(prompt) for prompt in self.prompts)
        tokens = CONTEXT - longest - 2 if row["tokens"] == "the rest" else row["tokens"]
        sampling = {"max_new_tokens": tokens, "min_new_tokens": row["least"], "n": row["n"], "ignore_eos": row["ignore_eos"]}
        sampling |= {"greedy": {"temperature": 0}, "seed": {"temperature": 1, "sampling_seed": rng.randrange(1000)},
                     "top_k": {"temperature": 0.8, "top_k": 5}, "top_p": {"temperature": 1.3, "top_p": 0.7},
                     "min_p": {"temperature": 1, "min_p": 0.05}}[row["drawn"]]
        if row["penalty"]:
            sampling[row["penalty"]] = {"repetition_penalty": 1.2}.get(row["penalty"], 0.7)
        if row["bias"]:
            sampling["logit_bias"] = BIAS
        if row["grammar"]:
            sampling[row["grammar"]] = {"regex": REGEX, "json_schema": SCHEMA, "ebnf": 'root ::= "x" root | "y"'}[row["grammar"]]
        if row["stop"]:
            sampling[row["stop"]] = {"stop": STOP, "stop_token_ids": [7, 260], "stop_regex": "[aeiou]{2}"}[row["stop"]]
        if row["trim"]:
            sampling |= {"no_stop_trim": {"no_stop_trim": True}, "keep_special": {"skip_special_tokens": False}}[row["trim"]]
        name = {"text": "text", "ids": "input_ids", "embeds": "input_embeds"}[row["input"]]
        body = {name: self.prompts if row["batch"] > 1 else self.prompts[0], "sampling_params": sampling, "stream": row["stream"],
                "rid": self.rid}
        if row["logprobs"]:
            body |= {"return_logprob": True}
            body |= {"output": {}, "input": {"logprob_start_len": 0}, "top": {"top_logprobs_num": 3}, "ids": {"token_ids_logprob": [1, 9]}}[row["logprobs"]]
        if row["insides"] == "hidden":
            body["return_hidden_states"] = True
        if row["insides"] == "experts":
            body["return_routed_experts"] = True
        if row["key"]:
            body[row["key"]] = f"tenant-{rng.randrange(3)}"
        if row["priority"] is not None:
            body["priority"] = row["priority"]
        if row["rank"] is not None:
            body["routed_dp_rank"] = row["rank"]
        if row["background"]:
            body["background"] = True
        if row["wrong"]:
            change, self.refusal = WRONG[row["wrong"]]
            change(body)
        return body

    def plain_greedy(self):
        """Whether its tokens are those of the largest logits."""
        row = self.row
        return not self.refusal and row["end"] == "whole" and row["drawn"] == "greedy" and not row["bias"] and not row["penalty"] and \
            not row["grammar"] and not row["least"]


class Outcome:
    """Samples of a whole answer, or an error."""

    def __init__(self, status, samples=None, error=None, cut=False):
        self.status, self.samples, self.error, self.cut = status, samples, error, cut


def send(url, request):
    """What a client does, and what it gets. Each wait has an end."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    try:
        connection.request("POST", "/generate", json.dumps(request.body), {"Content-Type": "application/json"})
        end = request.row["end"]
        if end == "left" and (not request.body["stream"] or request.rng.random() < 0.3):
            time.sleep(request.rng.random() * 0.05)
            return Outcome(0, cut=True)
        if end == "aborted" and not request.body["stream"]:
            time.sleep(request.rng.random() * 0.05)
            assert call(url + "/abort_request", {"rid": request.rid})[0] == 200
        answer = connection.getresponse()
        if not answer.getheader("Content-Type", "").startswith("text/event-stream"):
            text = json.loads(answer.read())
            if answer.status != 200:
                return Outcome(answer.status, error=json.dumps(text))
            return Outcome(200, samples=text if isinstance(text, list) else [text])
        return read_stream(url, request, answer)
    finally:
        connection.close()


def read_stream(url, request, answer):
    last, seen, stop_at = {}, 0, request.rng.randrange(6)
    while True:
        line = answer.readline()
        assert line, "the stream ends without [DONE]"
        if not line.startswith(b"data:"):
            continue
        if line.startswith(b"data: [DONE]"):
            return Outcome(answer.status, samples=[last[i] for i in sorted(last)])
        event = json.loads(line[5:])
        if "error" in event:
            return Outcome(400, error=json.dumps(event))
        last[event.get("index", 0)] = event
        seen += 1
        if seen > stop_at and request.row["end"] == "left":
            return Outcome(0, cut=True)
        if seen > stop_at and request.row["end"] == "aborted":
            stop_at = 1 << 30
            assert call(url + "/abort_request", {"rid": request.rid})[0] == 200


def check(request, outcome):
    """What an answer promises."""
    row, sampling = request.row, request.body["sampling_params"]

    def expect(condition, what):
        assert condition, f"{what}; row {row}; error {outcome.error}"

    if outcome.cut:
        return
    if request.refusal:
        expect(outcome.status == 400, f"it is answered with {outcome.status}")
        expect(re.search(request.refusal, outcome.error), f"the error does not name {request.refusal}")
        return
    expect(outcome.status == 200, f"it is answered with {outcome.status}")
    expect(len(outcome.samples) == row["batch"] * row["n"], f"{len(outcome.samples)} samples")
    for sample in outcome.samples:
        meta, ids = sample["meta_info"], sample["output_ids"]
        reason = meta["finish_reason"]
        if reason["type"] == "abort":
            expect(row["end"] == "aborted", f"nobody aborted it: {reason}")
            continue
        expect(meta["completion_tokens"] == len(ids) <= sampling["max_new_tokens"], f"{len(ids)} tokens, said are {meta['completion_tokens']}")
        if reason["type"] == "length":
            expect(len(ids) == reason["length"] == sampling["max_new_tokens"] or row["grammar"], f"it ends by length after {len(ids)}: {reason}")
        elif not row["grammar"] and isinstance(reason.get("matched"), int):  # strings may come sooner
            expect(len(ids) >= max(1, min(row["least"], sampling["max_new_tokens"])), f"it stops after {len(ids)} tokens")
        if row["ignore_eos"] and not row["stop"] and not row["grammar"]:
            expect(reason["type"] == "length", f"it stops: {reason}")
        if row["stop"] == "stop" and row["trim"] != "no_stop_trim" and reason.get("matched") in STOP:
            expect(not any(stop in sample["text"] for stop in STOP), "the stop string is in the text")
        if row["grammar"] == "regex" and reason["type"] == "stop" and not row["stop"] and row["trim"] != "keep_special":
            expect(re.fullmatch(REGEX, sample["text"]), f"'{sample['text']}' is not of its grammar")
        if row["logprobs"]:
            expect([entry[1] for entry in meta["output_token_logprobs"]] == ids, "log-probabilities of other tokens")
            expect(all(entry[0] <= 1e-6 for entry in meta["output_token_logprobs"]), "a probability above 1")
            if row["logprobs"] == "input":
                expect(len(meta["input_token_logprobs"]) == meta["prompt_tokens"], f"{len(meta['input_token_logprobs'])} of the prompt")
            if row["logprobs"] == "top":
                expect([len(entry) for entry in meta["output_top_logprobs"]] == [3] * len(ids), "other alternatives")
            if row["logprobs"] == "ids":
                expect(all([e[1] for e in entry] == [1, 9] for entry in meta["output_token_ids_logprobs"]), "other ids")
        if row["insides"] == "hidden":
            states = meta["hidden_states"]
            expect(len(states[0]) == meta["prompt_tokens"] and len(states) == max(1, len(ids)), f"{len(states)} hidden states")
            expect(all(len(rows) == request.config["hidden_size"] for rows in states[0]), "rows of another width")
        if row["insides"] == "experts":
            expect(len(meta["routed_experts"]) > 0, "no experts")


def check_tokens(url, request, outcome):
    """They are those of the same request when nobody else is there, up to a near tie. Returns the number of those."""
    near = 0
    body = dict(request.body, stream=False, return_logprob=True, top_logprobs_num=2, rid=request.rid + "-again")
    body.pop("background", None)
    body.pop("logprob_start_len", None)
    status, _, again = call(url + "/generate", body)
    assert status == 200, again
    for got, want in zip(outcome.samples, again if isinstance(again, list) else [again], strict=True):
        difference = first_difference(got["output_ids"], want)
        if difference:
            assert difference[1] < NEAR_TIE, f"another token at {difference} than alone; row {request.row}"
            near += 1
        else:
            lengths = len(got["output_ids"]), len(want["output_ids"])
            assert lengths[0] == lengths[1], f"{lengths[0]} tokens, and {lengths[1]} alone; row {request.row}"
    return near


def run_server(options, name, seed):
    model, *flags = SERVERS[name]
    rng = random.Random(f"{seed}/{name}")
    config = json.loads((options.fixtures / model / "config.json").read_text())
    heads = [[rng.randrange(3, config["vocab_size"]) for _ in range(CONTEXT)] for _ in range(5)]
    requests = [Request(number, row, random.Random(f"{seed}/{name}/{number}"), config, heads)
                for number, row in enumerate(all_rows(rng, "--enable-return-routed-experts" in flags))]
    with Sluice(options.binary, "server", "--model-path", options.fixtures / model, "--port", 0, *COMMON, *flags) as server:
        grammars = call(server.url + "/server_info")[2]["grammar_backend"] != "none"
        for request in requests:
            if request.row["grammar"] and not grammars:
                request.refusal = request.row["grammar"]
        processes = {pid for pid, line in descendants(server.process.pid).items() if line.endswith("sluice rank")}

        def one(request):
            try:
                outcome = send(server.url, request)
                check(request, outcome)
                return outcome
            except Exception as error:
                return f"request {request.number}: {error!r}; row {request.row}"

        with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
            outcomes = list(pool.map(one, requests))
        problems = [outcome for outcome in outcomes if isinstance(outcome, str)]
        alive = {pid for pid, line in descendants(server.process.pid).items() if line.endswith("sluice rank")}
        assert alive == processes, f"ranks ended:\n{server.output()}"
        assert not problems, "\n".join(problems[:10])
        wait_until("a server that holds nothing", lambda: holds_nothing(server.url))
        assert call(server.url + "/flush_cache", method="POST")[0] == 200  # the caches of others do not count from here on
        counts, near, compared = collections.Counter(), 0, 0
        for request, outcome in zip(requests, outcomes):
            counts["cut short" if outcome.cut else "refused" if outcome.status == 400 else "answered"] += 1
            if request.plain_greedy() and outcome.status == 200:
                near += check_tokens(server.url, request, outcome)
                compared += 1
        assert counts["answered"] > len(requests) / 4 and compared > 0, counts
        wait_until("a server that holds nothing again", lambda: holds_nothing(server.url))
        log = server.output()
        assert "has ended" not in log, log
        assert server.stop() == 0
    print(f"{name}, seed {seed}: {len(requests)} requests, " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) +
          f"; {compared} compared with themselves alone, {near} part at a near tie", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SHORT))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.rounds):
        for name in options.servers:
            run_server(options, name, seed)


if __name__ == "__main__":
    main()
