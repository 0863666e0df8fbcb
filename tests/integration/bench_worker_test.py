#!/usr/bin/env python3
"""What each option of `sluice bench worker` changes in how it answers.

Times are not measured. A worker that is to take hours has not answered when another one, without the option, has answered the
same request again and again.

usage: bench_worker_test.py <sluice binary>"""
import http.client
import os
import socket
import sys
import threading
import unittest
import urllib.parse
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv.pop()


def words(count):
    return " ".join(f"w{i}" for i in range(count))


class WorkerCase(unittest.TestCase):
    def worker(self, *flags):
        started = Sluice(BINARY, "bench", "worker", *flags)
        self.addCleanup(started.kill)
        return started

    def generate(self, worker, text="one two three", tokens=4, **more):
        limit = {} if tokens is None else {"sampling_params": {"max_new_tokens": tokens}}
        return call(f"{worker.url}/generate", {"text": text, **limit, **more})

    def meta(self, worker, *request, **settings):
        status, _, answer = self.generate(worker, *request, **settings)
        self.assertEqual(status, 200, answer)
        return answer["meta_info"]

    def status(self, worker, *request, **settings):
        return self.generate(worker, *request, **settings)[0]

    def counter(self, worker, name):
        return call(f"{worker.url}/sim/counters")[2][name]

    def cached(self, worker, text):
        """Tokens that the worker still has of a prompt that it was sent before."""
        self.meta(worker, text)
        return self.meta(worker, text)["cached_tokens"]

    def begin(self, ask):
        """Asks without waiting for the answer, which may never come: the thread that waits for it."""
        def run():
            try:
                ask()
            except (OSError, http.client.HTTPException):  # the worker has been killed
                pass
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def assert_held(self, flags, base=(), under_way="active", ask=None):
        """With `flags` beside `base` a request has no answer while a worker with `base` alone answers it three times."""
        ask = ask or self.generate
        held, other = self.worker(*base, *flags), self.worker(*base)
        waiting = self.begin(lambda: ask(held))
        wait_until("it is under way", lambda: self.counter(held, under_way) == 1, within=30)
        for _ in range(3):
            self.assertEqual(ask(other)[0], 200)
        self.assertTrue(waiting.is_alive())


class WorkerListeningTest(WorkerCase):
    def test_host(self):
        worker = self.worker("--host", "127.0.0.2")
        self.assertEqual(worker.url.rsplit(":", 1)[0], "http://127.0.0.2")
        self.assertEqual(self.status(worker), 200)

    def test_port(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.assertEqual(self.status(self.worker("--port", port)), 200)
        self.assertEqual(call(f"http://127.0.0.1:{port}/health")[0], 200)

    def test_model(self):
        models = call(self.worker("--model", "mine").url + "/v1/models")[2]["data"]
        self.assertEqual([model["id"] for model in models], ["mine"])

    def test_api_key(self):
        worker = self.worker("--api-key", "secret")
        self.assertEqual(self.status(worker), 401)
        self.assertEqual(call(worker.url + "/v1/models", headers={"Authorization": "Bearer secret"})[0], 200)

    def test_threads(self):
        def loops(*flags):
            worker = self.worker(*flags)
            self.assertEqual(self.status(worker), 200)
            tasks = Path(f"/proc/{worker.process.pid}/task").iterdir()
            return sum((task / "comm").read_text().startswith("sim-") for task in tasks)
        self.assertEqual((loops(), loops("--threads", 3)), (1, 3))

    def test_max_body_bytes(self):
        worker = self.worker("--max-body-bytes", 200)
        self.assertEqual([self.status(worker, words(count)) for count in (3, 200)], [200, 413])

    def test_idle_timeout_ms(self):
        worker = self.worker("--idle-timeout-ms", 1)
        with socket.create_connection(("127.0.0.1", urllib.parse.urlparse(worker.url).port), timeout=30) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            while client.recv(4096):  # to the end, long before the 90 s of the default
                pass

    def test_log_level(self):
        def said(*flags):
            worker = self.worker(*flags)
            self.meta(worker)
            self.assertEqual(worker.stop(), 0)
            wait_until("its output has ended", lambda: worker.process.stdout.closed, within=10)
            return "1 of them for tokens" in worker.output()
        self.assertEqual((said(), said("--log-level", "error")), (True, False))


class WorkerCannedTest(WorkerCase):
    def test_canned(self):
        def answers(*flags):
            worker = self.worker(*flags)
            return [self.generate(worker, text)[2]["text"] for text in ("one", "two")]
        one, two = answers()
        self.assertNotEqual(one, two)
        one, two = answers("--canned")
        self.assertEqual(one, two)

    def test_canned_delay_ms(self):
        self.assert_held(("--canned-delay-ms", 1e8), base=("--canned",))

    def test_canned_interval_ms(self):
        self.assert_held(("--canned-interval-ms", 1e8), base=("--canned",),
                         ask=lambda worker: self.generate(worker, stream=True))

    def test_canned_chunks(self):
        self.assertEqual(self.meta(self.worker("--canned", "--canned-chunks", 5))["completion_tokens"], 5)

    def test_canned_stamp(self):
        def stamps(*flags):
            return self.generate(self.worker("--canned", *flags), stream=True)[2].count("sent_at_ns")
        self.assertEqual((stamps(), stamps("--canned-stamp")), (0, 8))

    def test_canned_prompt_tokens(self):
        self.assertEqual(self.meta(self.worker("--canned", "--canned-prompt-tokens", 77))["prompt_tokens"], 77)

    def test_canned_cached_tokens(self):
        self.assertEqual(self.meta(self.worker("--canned", "--canned-cached-tokens", 9))["cached_tokens"], 9)


class WorkerEngineTest(WorkerCase):
    def loads(self, worker):
        return call(worker.url + "/v1/loads")[2]["loads"]

    def test_dp_size(self):
        self.assertEqual(len(self.loads(self.worker("--dp-size", 3))), 3)

    def test_time_scale(self):
        self.assert_held(("--time-scale", 0.001))

    def test_default_tokens(self):
        self.assertEqual(self.meta(self.worker("--default-tokens", 5), tokens=None)["completion_tokens"], 5)

    def test_prefill_tokens_per_s(self):
        self.assert_held(("--prefill-tokens-per-s", 0.001))

    def test_decode_base_ms(self):
        self.assert_held(("--decode-base-ms", 1e8))

    def test_decode_per_request_ms(self):
        self.assert_held(("--decode-per-request-ms", 1e8))

    def test_max_running(self):
        for flags, expected in (((), (2, 0)), (("--max-running", 1), (1, 1))):
            worker = self.worker("--prefill-tokens-per-s", 0.001, *flags)
            self.begin(lambda: self.generate(worker, ["one", "two"]))

            def running_and_waiting():
                (load,) = self.loads(worker)
                return load["num_running_reqs"], load["num_waiting_reqs"]
            wait_until("both are there", lambda: sum(running_and_waiting()) == 2)
            wait_until("the step has begun", lambda: running_and_waiting() == expected)

    def test_max_queued(self):
        self.assertEqual(self.status(self.worker(), ["one", "two"]), 200)
        self.assertEqual(self.status(self.worker("--max-queued", 1), ["one", "two"]), 503)

    def test_kv_tokens(self):
        worker = self.worker("--kv-tokens", 32)
        self.assertEqual([self.status(worker, words(count)) for count in (20, 40)], [200, 400])

    def test_block_size(self):
        self.assertEqual(self.cached(self.worker(), words(10)), 0)
        self.assertEqual(self.cached(self.worker("--block-size", 4), words(10)), 8)

    def test_context_length(self):
        worker = self.worker("--context-length", 8)
        self.assertEqual([self.status(worker, words(count)) for count in (4, 5)], [200, 400])

    def test_disable_prefix_cache(self):
        self.assertEqual(self.cached(self.worker(), words(40)), 32)
        self.assertEqual(self.cached(self.worker("--disable-prefix-cache"), words(40)), 0)


class WorkerCacheSimulationTest(WorkerCase):
    text = 640 * "x"  # 160 tokens of four characters, ten blocks

    def test_cache_simulation(self):
        self.assertEqual(self.meta(self.worker(), self.text)["prompt_tokens"], 1)
        self.assertEqual(self.meta(self.worker("--cache-simulation"), self.text)["prompt_tokens"], 160)

    def test_cache_kv_blocks(self):
        self.assertEqual(self.cached(self.worker("--cache-simulation"), self.text), 160)
        self.assertEqual(self.cached(self.worker("--cache-simulation", "--cache-kv-blocks", 5), self.text), 80)

    def test_cache_prefill_base_ms(self):
        self.assert_held(("--cache-prefill-base-ms", 1e6), base=("--cache-simulation",))

    def test_cache_prefill_us_per_token(self):
        self.assert_held(("--cache-prefill-us-per-token", 1e6), base=("--cache-simulation",),
                         ask=lambda worker: self.generate(worker, [self.text + end for end in "abcdefgh"]))

    def test_cache_decode_ms(self):
        self.assert_held(("--cache-decode-ms", 1e7), base=("--cache-simulation",))

    def test_cache_decode_ms_per_token(self):
        self.assert_held(("--cache-decode-ms-per-token", 1e6), base=("--cache-simulation",))

    def test_cache_decode_slots(self):
        # The first request takes the only slot for hours.
        flags = ("--cache-simulation", "--cache-decode-ms", 0, "--cache-decode-ms-per-token", 10)
        one, many = self.worker(*flags, "--cache-decode-slots", 1), self.worker(*flags)
        for worker in (one, many):
            self.begin(lambda to=worker: self.generate(to, tokens=1000000))
            wait_until("it decodes", lambda to=worker: self.counter(to, "active") == 1)
        self.begin(lambda: self.generate(one))
        wait_until("the second one is there", lambda: self.counter(one, "generations") == 2)
        for _ in range(3):
            self.assertEqual(self.status(many), 200)
        self.assertEqual(self.counter(one, "completed"), 0)


class WorkerFaultTest(WorkerCase):
    def test_fault(self):
        with self.assertRaises(OSError):
            self.generate(self.worker("--fault", "reset"))
        self.assertEqual(self.status(self.worker("--fault", "status")), 503)

    def test_fault_scope(self):
        def models(*flags):
            return call(self.worker("--fault", "status", *flags).url + "/v1/models")[0]
        self.assertEqual((models(), models("--fault-scope", "everything")), (200, 503))

    def test_fault_status(self):
        self.assertEqual(self.status(self.worker("--fault", "status", "--fault-status", 418)), 418)

    def test_fault_body(self):
        self.assertEqual(self.generate(self.worker("--fault", "status", "--fault-body", "no tea"))[2], "no tea")

    def test_fault_retry_after(self):
        def wait(*flags):
            return self.generate(self.worker("--fault", "status", *flags))[1]["Retry-After"]
        self.assertEqual((wait(), wait("--fault-retry-after", 7)), (None, "7"))

    def test_fault_chunks(self):
        for chunks in (1, 3):
            with self.assertRaises(http.client.IncompleteRead) as cut:
                self.generate(self.worker("--fault", "die", "--fault-chunks", chunks), tokens=8, stream=True)
            self.assertEqual(cut.exception.partial.count(b"data: "), chunks)

    def test_fault_delay_ms(self):
        self.assert_held(("--fault-delay-ms", 1e8), base=("--fault", "slow_head"))

    def test_fault_times(self):
        worker = self.worker("--fault", "status", "--fault-times", 2)
        self.assertEqual([self.status(worker) for _ in range(3)], [503, 503, 200])

    def test_health_status(self):
        self.assertEqual(call(self.worker("--health-status", 418).url + "/health")[0], 418)

    def test_health_delay_ms(self):
        self.assert_held(("--health-delay-ms", 1e8), under_way="health_checks",
                         ask=lambda worker: call(worker.url + "/health"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
