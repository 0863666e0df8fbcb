#!/usr/bin/env python3
"""What only whole processes show of the engine's API: grammars and their compiler, pauses, other weights, profiles and
embeddings, with two ranks.

usage: engine_api_test.py <sluice binary> <folder of fixtures>"""
import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, call, descendants, wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
MODEL = FIXTURES / "tiny-llama"
PROMPT = list(range(10, 42))


def server(*more, env=None):
    return Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 4096, "--threads", 1, *more,
                  env=env)


def generate(url, rank=None, tokens=8, **params):
    body = {"input_ids": PROMPT,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **params}}
    if rank is not None:
        body["routed_dp_rank"] = rank
    return call(url + "/generate", body)


def compilers(running):
    return [pid for pid, line in descendants(running.process.pid).items() if line.endswith("sluice grammar")]


def grammars_are_built(url):
    return call(url + "/server_info")[2]["grammar_backend"] != "none" and generate(url, regex="a", tokens=2)[0] == 200


def other_weights(folder):
    """A copy of the model in which one matrix is all zeros."""
    shutil.copytree(MODEL, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    size, = struct.unpack_from("<Q", data)
    begin, end = json.loads(data[8:8 + size])["model.layers.0.mlp.down_proj.weight"]["data_offsets"]
    data[8 + size + begin:8 + size + end] = bytes(end - begin)
    path.write_bytes(data)


class EngineApiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = server("--dp-size", 2, "--is-embedding")
        cls.url = cls.server.url
        cls.grammars = grammars_are_built(cls.url)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def both(self, tokens=8):
        answers = [generate(self.url, rank, tokens) for rank in (0, 1)]
        self.assertEqual([a[0] for a in answers], [200, 200])
        self.assertEqual(answers[0][2]["output_ids"], answers[1][2]["output_ids"])
        return answers[0][2]["output_ids"]

    # ---- grammars

    def needs_grammars(self):
        if not self.grammars:
            self.skipTest("this build is without grammars")

    def test_an_answer_is_held_to_its_regular_expression(self):
        self.needs_grammars()
        for seed in range(4):
            status, _, answer = generate(self.url, tokens=40, regex="(ab|cd){3}-[0-9]+!", temperature=1,
                                         sampling_seed=seed)
            self.assertEqual(status, 200)
            if answer["meta_info"]["finish_reason"]["type"] == "stop":
                self.assertRegex(answer["text"], r"^(ab|cd){3}-[0-9]+!$")
            else:
                self.assertRegex(answer["text"], r"^(ab|cd){3}-[0-9]+$")

    def test_samples_of_one_prompt_are_each_held_to_the_schema(self):
        self.needs_grammars()
        schema = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}, "ok": {"type": "boolean"}},
                  "required": ["color", "ok"], "additionalProperties": False}
        status, _, answer = generate(self.url, tokens=120, json_schema=json.dumps(schema), temperature=1, n=4,
                                     sampling_seed=3, ignore_eos=False)
        self.assertEqual(status, 200)
        for sample in answer:
            if sample["meta_info"]["finish_reason"]["type"] == "stop":
                value = json.loads(sample["text"])
                self.assertEqual(set(value), {"color", "ok"})
        self.assertIn("stop", [s["meta_info"]["finish_reason"]["type"] for s in answer])

    def test_a_grammar_that_is_wrong_is_400_naming_the_field(self):
        self.needs_grammars()
        for field, text in (("regex", "a(b"), ("ebnf", "root := 1"), ("json_schema", "{"), ("structural_tag", "{}")):
            status, _, answer = generate(self.url, **{field: text})
            self.assertEqual(status, 400, field)
            self.assertIn("sampling_params." + field, answer["error"]["message"])

    def test_what_is_too_much_for_the_compiler_is_400_and_costs_nobody_else_anything(self):
        """The rank serves others meanwhile, and grammars afterwards."""
        self.needs_grammars()
        nested = "(" * 50_000 + "a" + ")" * 50_000
        heavy = "((a{1,400}|b{1,400}){1,400}|(c{1,400}|[a-z]{1,400}x){1,400}){1,400}"
        answers = {}

        def ask(name, text):
            answers[name] = generate(self.url, 0, regex=text)

        threads = [threading.Thread(target=ask, args=(name, text)) for name, text in (("nested", nested), ("heavy", heavy))]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        self.assertEqual(generate(self.url, 0)[0], 200)
        self.assertLess(time.monotonic() - began, 9, "a request without a grammar waited for the compiler")
        for thread in threads:
            thread.join()
        for name, (status, _, answer) in answers.items():
            self.assertIn(status, (200, 400), name)
            if status == 400:
                self.assertIn("sampling_params.regex", answer["error"]["message"])
        self.assertEqual(generate(self.url, 0, regex="[ab]+", tokens=4)[0], 200)

    def test_a_compiler_that_dies_is_started_again(self):
        self.needs_grammars()
        self.assertEqual(generate(self.url, 0, regex="first", tokens=4)[0], 200)
        for pid in compilers(self.server):
            os.kill(pid, signal.SIGKILL)
        generate(self.url, 0, regex="second", tokens=4)  # may find out that it is gone
        status, _, answer = generate(self.url, 0, regex="third", tokens=16, ignore_eos=False)
        self.assertEqual((status, answer["text"]), (200, "third"))

    # ---- pauses

    def test_a_pause_in_place_goes_on_where_it_was(self):
        whole = self.both(tokens=200)
        for mode in ("in_place", "retract"):
            result = []
            thread = threading.Thread(target=lambda: result.append(generate(self.url, 1, 200)))
            thread.start()
            self.assertEqual(call(self.url + "/pause_generation", {"mode": mode})[0], 200)
            waiting = call(self.url + "/v1/loads?include=all")[2]["loads"][1]["queues"]["paused"]
            self.assertIn(waiting, (0, 1))  # it may not have arrived, or be over
            self.assertEqual(call(self.url + "/health")[0], 200)
            self.assertEqual(call(self.url + "/continue_generation", {})[0], 200)
            thread.join()
            self.assertEqual(result[0][2]["output_ids"], whole, mode)

    def test_a_pause_with_abort_ends_what_runs_and_holds_what_comes(self):
        self.assertEqual(call(self.url + "/pause_generation", {})[0], 200)
        result = []
        thread = threading.Thread(target=lambda: result.append(generate(self.url, 0)))
        thread.start()
        wait_until("the request waits", lambda: call(self.url + "/v1/loads?include=all")[2]["loads"][0]["queues"]["paused"])
        self.assertFalse(result)
        self.assertEqual(call(self.url + "/pause_generation", {"mode": "abort"})[0], 200)
        thread.join()
        self.assertEqual(result[0][2]["meta_info"]["finish_reason"]["type"], "abort")
        self.assertEqual(call(self.url + "/continue_generation", {})[0], 200)
        self.assertEqual(generate(self.url, 0)[0], 200)

    # ---- other weights

    def test_other_weights_reach_every_rank_and_the_ones_that_start_later(self):
        before = self.both()
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / "new"
            other_weights(new)
            status, _, answer = call(self.url + "/update_weights_from_disk", {"model_path": str(new), "weight_version": "2"})
            self.assertEqual((status, answer["success"]), (200, True), answer)
            changed = self.both()
            self.assertNotEqual(changed, before)
            self.assertEqual(call(self.url + "/model_info")[2]["weight_version"], "2")

            rank = call(self.url + "/server_info")[2]["internal_states"][0]["pid"]
            os.kill(rank, signal.SIGKILL)
            wait_until("the rank is back", lambda: generate(self.url, 0)[0] == 200)
            self.assertEqual(self.both(), changed)

            status, _, answer = call(self.url + "/update_weights_from_disk", {"model_path": str(FIXTURES / "tiny-qwen2")})
            self.assertEqual((status, answer["success"]), (400, False))
            self.assertIn("architecture", answer["message"])
            self.assertEqual(self.both(), changed)
            self.assertEqual(call(self.url + "/update_weights_from_disk", {"model_path": str(MODEL)})[0], 200)
        self.assertEqual(self.both(), before)

    # ---- profiles and embeddings

    def test_a_profile_has_a_file_of_each_rank(self):
        with tempfile.TemporaryDirectory() as folder:
            status, _, _ = call(self.url + "/start_profile", {"output_dir": folder, "profile_id": "t"})
            self.assertEqual(status, 200)
            self.both()
            self.assertEqual(call(self.url + "/stop_profile", method="POST")[0], 200)
            for rank in (0, 1):
                trace = json.loads((Path(folder) / f"t-DP-{rank}.trace.json").read_text())
                names = [e["name"] for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == 1]
                self.assertIn("prefill", names)
                self.assertGreaterEqual(names.count("decode"), 7)

    def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(self):
        status, _, one = call(self.url + "/v1/embeddings", {"input": "a river"})
        self.assertEqual(status, 200)
        _, _, many = call(self.url + "/v1/embeddings", {"input": ["a river", "a mountain", "a river"]})
        vectors = [entry["embedding"] for entry in many["data"]]
        self.assertAlmostEqual(sum(x * x for x in vectors[1]), 1, places=4)
        for vector in (vectors[0], vectors[2]):
            self.assertGreater(sum(x * y for x, y in zip(vector, one["data"][0]["embedding"])), 0.999)
        self.assertLess(sum(x * y for x, y in zip(vectors[0], vectors[1])), 0.999)

    def test_scores_are_the_probabilities_that_generating_reports(self):
        status, _, answer = call(self.url + "/v1/score", {"query": PROMPT, "items": [[42], [43]], "label_token_ids": [5, 6]})
        self.assertEqual(status, 200)
        for item, scores in zip((42, 43), answer["scores"]):
            body = {"input_ids": PROMPT + [item], "return_logprob": True, "token_ids_logprob": [5, 6],
                    "sampling_params": {"max_new_tokens": 1}}
            logprobs = call(self.url + "/generate", body)[2]["meta_info"]["output_token_ids_logprobs"][0]
            for (logprob, _, _), score in zip(logprobs, scores):
                self.assertAlmostEqual(score, 2.718281828459045 ** logprob, places=5)


class SeveralRanksTest(unittest.TestCase):
    """An instance of two attention groups of two ranks: what plans, what only computes, and what sleeps."""

    @classmethod
    def setUpClass(cls):
        cls.server = server("--tp-size", 4, "--dp-size", 2, "--enable-dp-attention")
        cls.url = cls.server.url
        cls.grammars = call(cls.url + "/server_info")[2]["grammar_backend"] != "none"

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def test_a_grammar_that_takes_its_time_wakes_the_others_when_it_is_there(self):
        if not self.grammars:
            self.skipTest("this build is without grammars")
        for rank in (0, 1):
            status, _, answer = generate(self.url, rank, tokens=12, regex=f"(ab|cd){{3}}-{rank}", ignore_eos=False)
            self.assertEqual(status, 200)
            self.assertRegex(answer["text"], f"^(ab|cd){{3}}-{rank}$")

    def test_pauses_and_other_weights(self):
        before = generate(self.url, 0)[2]["output_ids"]
        self.assertEqual(call(self.url + "/pause_generation", {"mode": "retract"})[0], 200)
        result = []
        thread = threading.Thread(target=lambda: result.append(generate(self.url, 1)))
        thread.start()
        wait_until("the request waits", lambda: call(self.url + "/v1/loads?include=all")[2]["loads"][1]["queues"]["paused"])
        self.assertEqual(call(self.url + "/continue_generation", {})[0], 200)
        thread.join()
        self.assertEqual(result[0][2]["output_ids"], before)
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / "new"
            other_weights(new)
            status, _, answer = call(self.url + "/update_weights_from_disk", {"model_path": str(new)})
            self.assertEqual((status, answer["success"]), (200, True), answer)
            changed = generate(self.url, 1)[2]["output_ids"]
            self.assertNotEqual(changed, before)
            self.assertEqual(generate(self.url, 0)[2]["output_ids"], changed)
            self.assertEqual(call(self.url + "/update_weights_from_disk", {"model_path": str(MODEL)})[0], 200)
        self.assertEqual(generate(self.url, 1)[2]["output_ids"], before)


class OptionsTest(unittest.TestCase):
    def test_without_a_grammar_backend_the_fields_are_400(self):
        with server("--grammar-backend", "none") as running:
            status, _, answer = generate(running.url, regex="a")
            self.assertEqual(status, 400)
            self.assertIn("sampling_params.regex is not supported", answer["error"]["message"])

    def test_a_request_that_runs_for_too_long_is_503(self):
        with server(env={"SGLANG_REQ_RUNNING_TIMEOUT": "0.05"}) as running:
            status, _, answer = generate(running.url, tokens=1900)
            self.assertEqual(status, 503)
            self.assertIn("running timeout", answer["message"])

    def test_a_request_that_waits_for_too_long_is_503(self):
        with server("--max-running-requests", 1, env={"SGLANG_REQ_WAITING_TIMEOUT": "0.05"}) as running:
            self.assertEqual(call(running.url + "/pause_generation", {})[0], 200)
            status, _, answer = generate(running.url)
            self.assertEqual(status, 503)
            self.assertIn("waiting timeout", answer["message"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
