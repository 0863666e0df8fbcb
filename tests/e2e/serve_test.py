"""The main job, end to end: `sluice serve --dp-size 2` with the real model, used through the openai package.

usage: serve_test.py <sluice binary>; the model comes from SLUICE_TEST_MODEL."""
import json
import os
import signal
import sys
import threading
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from sluice_process import Sluice, alive, call, descendants, wait_until  # noqa: E402

BINARY = sys.argv[1] if len(sys.argv) > 1 else None
MODEL = os.environ.get("SLUICE_TEST_MODEL")
NAME = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# What the model answers when it always takes its most likely token.
GREEDY_ANSWER = "The capital of France is Paris."


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

    def test_different_conversations_use_both_workers(self):
        topics = ["rivers", "chess", "volcanoes", "bread", "bridges", "whales", "music", "glass"]
        used = {self.chat([{"role": "user", "content": f"{topic}: tell me something about {topic}"}], max_tokens=4)
                .headers["x-smg-routed-worker-id"] for topic in topics}
        self.assertEqual(len(used), 2)

    def test_lists_its_model(self):
        self.assertIn(NAME, [model.id for model in self.client.models.list()])


class WorkerDeathTest(unittest.TestCase):
    def test_kill_9_under_load_loses_nothing_that_had_not_started_and_the_worker_returns(self):
        with serve() as server:
            wait_for_workers(server)
            outcomes, lock = [], threading.Lock()
            streaming = threading.Semaphore(0)

            def stream(number):
                body = json.dumps({"model": NAME, "stream": True, "temperature": 0, "max_tokens": 200,
                                   "ignore_eos": True,
                                   "messages": [{"role": "user", "content": f"{number} tell me a long story"}]}).encode()
                request = urllib.request.Request(server.url + "/v1/chat/completions", data=body,
                                                 headers={"Content-Type": "application/json"})
                events, status = [], None
                try:
                    with urllib.request.urlopen(request, timeout=120) as answer:
                        status = answer.status
                        for line in answer:
                            if line.startswith(b"data:"):
                                events.append(line[5:].strip())
                                if len(events) == 2:
                                    streaming.release()
                except OSError as error:
                    status = getattr(error, "code", status) or repr(error)
                with lock:
                    outcomes.append((status, events))

            threads = [threading.Thread(target=stream, args=(n,)) for n in range(12)]
            for thread in threads:
                thread.start()
            for _ in range(6):
                self.assertTrue(streaming.acquire(timeout=60), "streams did not start")
            victim = sorted(worker_processes(server))[0]
            os.kill(victim, signal.SIGKILL)
            # New requests while the worker is gone: none may fail.
            late = [call(server.url + "/v1/chat/completions",
                         {"model": NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 4})[0] for _ in range(6)]
            for thread in threads:
                thread.join(120)
            self.assertEqual(late, [200] * 6)
            finished = broken = 0
            for status, events in outcomes:
                self.assertEqual(status, 200, "a request that had not started streaming was lost")
                if events and events[-1] == b"[DONE]":
                    finished += 1
                else:
                    # A stream that had started ends with an error event and without [DONE].
                    self.assertTrue(events and "error" in json.loads(events[-1]), events[-1:])
                    broken += 1
            self.assertEqual(finished + broken, 12)
            wait_for_workers(server)
            self.assertEqual(len(worker_processes(server)), 2)


class EndTest(unittest.TestCase):
    def test_ctrl_c_ends_everything_and_exits_0(self):
        with serve() as server:
            wait_for_workers(server)
            below = descendants(server.process.pid)
            self.assertGreaterEqual(len(below), 4, "two workers with a rank each")
            self.assertEqual(server.stop(signal.SIGINT), 0)
            wait_until("no process is left", lambda: not [p for p in below if alive(p)], within=30)

    def test_no_orphan_survives_kill_9_of_the_parent(self):
        with serve() as server:
            wait_for_workers(server)
            below = descendants(server.process.pid)
            server.kill()
            wait_until("no process is left", lambda: not [p for p in below if alive(p)], within=30)


if __name__ == "__main__":
    if not MODEL:
        print("skipped: SLUICE_TEST_MODEL names no model")
        sys.exit(77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
