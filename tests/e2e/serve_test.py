"""The main job, end to end: `sluice serve --dp-size 2` with the real model, used through the openai package.

usage: serve_test.py <sluice binary>; the model comes from SLUICE_TEST_MODEL."""
import json
import os
import re
import signal
import sys
import threading
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from sluice_process import Sluice, call, descendants, wait_until  # noqa: E402

BINARY = sys.argv[1] if len(sys.argv) > 1 else None
MODEL = os.environ.get("SLUICE_TEST_MODEL")
NAME = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
# What the model answers when it always takes its most likely token, and the prompt as its chat template writes it.
GREEDY_ANSWER = "The capital of Japan is Tokyo."
GREEDY_IDS = [504, 3575, 282, 3085, 314, 19081, 30, 2]
PROMPT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
          "<|im_start|>user\nWhat is the capital of Japan?<|im_end|>\n<|im_start|>assistant\n")


def serve(*more):
    return Sluice(BINARY, "serve", "--model-path", MODEL, "--served-model-name", NAME, "--dp-size", 2, "--port", 0,
                  "--router-prometheus-port", 0, "--router-expose-worker-header", "--router-policy", "cache_aware",
                  "--context-length", 2048, "--max-total-tokens", 16384, *more)


def workers(url):
    return call(url + "/workers")[2]["workers"]


def wait_for_workers(server, count=2):
    return wait_until(f"{count} healthy workers", lambda: server.process.poll() is not None or
                      [w for w in workers(server.url) if w["is_healthy"]].__len__() == count, within=180)


def worker_processes(server):
    return {pid: line for pid, line in descendants(server.process.pid).items() if " server " in line + " "}


class ServeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = serve()
        wait_for_workers(cls.server)
        import openai
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def chat(self, messages, **more):
        return self.client.chat.completions.with_raw_response.create(model=NAME, messages=messages, temperature=0,
                                                                     max_tokens=more.pop("max_tokens", 24), **more)

    def test_answers_a_factual_question(self):
        answer = self.chat(QUESTION).parse()
        self.assertEqual(answer.choices[0].message.content, GREEDY_ANSWER)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertGreater(answer.usage.prompt_tokens, 5)

    def test_its_greedy_ids_are_the_known_ones_by_a_margin(self):
        status, _, answer = call(self.server.url + "/generate", {
            "text": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 24}, "return_logprob": True,
            "top_logprobs_num": 2})
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["output_ids"], GREEDY_IDS)
        # Far above what bf16 and float32, or two kernels, can differ by: the ids hold on every machine.
        margins = [first[0] - second[0] for first, second in answer["meta_info"]["output_top_logprobs"]]
        self.assertGreater(min(margins), 0.5, margins)

    def test_streams_the_same_answer(self):
        text, finish = "", None
        for chunk in self.client.chat.completions.create(model=NAME, messages=QUESTION, temperature=0, max_tokens=24,
                                                         stream=True):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        self.assertEqual(text, GREEDY_ANSWER)
        self.assertEqual(finish, "stop")

    def test_a_second_turn_finds_its_cache_on_the_same_worker(self):
        conversation = [{"role": "user", "content": "My name is Ada and I collect antique clocks. Please say hello to me "
                                                    "and tell me one fact about clocks that I may not know."}]
        first = self.chat(conversation)
        conversation += [{"role": "assistant", "content": first.parse().choices[0].message.content},
                         {"role": "user", "content": "What is my name?"}]
        second = self.chat(conversation)
        self.assertEqual(first.headers["x-smg-routed-worker-id"], second.headers["x-smg-routed-worker-id"])
        self.assertGreater(second.parse().usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_conversation_goes_to_the_other_worker_while_one_is_busy(self):
        first = self.chat([{"role": "user", "content": "Rivers: tell me something about rivers"}], max_tokens=1500,
                          stream=True, extra_body={"ignore_eos": True})
        with first.parse() as chunks:
            next(iter(chunks))
            second = self.chat([{"role": "user", "content": "Chess: tell me something about chess"}], max_tokens=4)
            self.assertNotEqual(first.headers["x-smg-routed-worker-id"], second.headers["x-smg-routed-worker-id"])

    def test_lists_its_model(self):
        self.assertIn(NAME, [model.id for model in self.client.models.list()])


class Stream(threading.Thread):
    """One streamed chat of 64 tokens: which worker it went to, its events, and how it ended."""

    def __init__(self, server, number):
        super().__init__(daemon=True)
        self.server, self.number = server, number
        self.status, self.worker, self.events = None, None, []
        self.started = threading.Event()
        self.start()

    def run(self):
        body = {"model": NAME, "stream": True, "temperature": 0, "max_tokens": 64, "ignore_eos": True,
                "messages": [{"role": "user", "content": f"{self.number} tell me a long story"}]}
        request = urllib.request.Request(self.server.url + "/v1/chat/completions", data=json.dumps(body).encode(),
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                self.status, self.worker = answer.status, answer.headers["x-smg-routed-worker-id"]
                for line in answer:
                    if line.startswith(b"data:"):
                        self.events.append(line[5:].strip())
                        if len(self.events) == 2:
                            self.started.set()
        except OSError as error:
            self.status = getattr(error, "code", None) or repr(error)
        self.started.set()

    def finished(self):
        return bool(self.events) and self.events[-1] == b"[DONE]"

    def broken(self):
        """Ended by an error event, without [DONE]."""
        return bool(self.events) and not self.finished() and "error" in json.loads(self.events[-1])


class WorkerDeathTest(unittest.TestCase):
    def test_kill_9_under_load_loses_nothing_that_had_not_started_and_the_worker_returns(self):
        with serve() as server:
            wait_for_workers(server)
            before = worker_processes(server)
            streams = [Stream(server, number) for number in range(8)]
            for stream in streams:
                self.assertTrue(stream.started.wait(120), "a stream did not start")
            # The process of a worker that is in the middle of answers.
            port = streams[-1].worker.rsplit(":", 1)[1]
            victim = next(pid for pid, line in before.items() if f"--port={port}" in line)
            # Some that the worker has not begun to answer when it dies, and some that come while it is gone.
            queued = [Stream(server, number) for number in range(8, 12)]
            os.kill(victim, signal.SIGKILL)
            late = [call(server.url + "/v1/chat/completions",
                         {"model": NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 4})[0] for _ in range(4)]
            self.assertEqual(late, [200] * 4)
            for stream in streams + queued:
                stream.join(300)
                self.assertEqual(stream.status, 200, "a request that had not started streaming was lost")
                self.assertTrue(stream.finished() or stream.broken(), stream.events[-2:])
            self.assertTrue(any(stream.broken() for stream in streams), "no stream was cut: the test proves nothing")
            self.assertTrue(any(stream.finished() for stream in streams + queued))
            # The first backoff is one second.
            wait_until("a new process of the worker", lambda: len(worker_processes(server)) == 2, within=10)
            wait_for_workers(server)
            after = worker_processes(server)
            self.assertNotIn(victim, after)
            self.assertEqual(len(set(before) & set(after)), 1, "the other worker lived on")
            metrics = call(re.search(r"metrics +(\S+)", server.output())[1])[2]
            self.assertIn("smg_worker_restarts_total{worker=", metrics)


if __name__ == "__main__":
    if not MODEL or not os.path.exists(MODEL):
        print("SLUICE_TEST_MODEL names no model")
        sys.exit(1 if os.environ.get("CI") else 77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
