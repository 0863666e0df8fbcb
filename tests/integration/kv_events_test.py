#!/usr/bin/env python3
"""`sluice gateway` that knows the caches of a `sluice server` by the KV events of its ranks.

usage: kv_events_test.py <sluice binary> <folder of fixtures>"""
import json
import os
import socket
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
MODEL = FIXTURES / "tiny-llama"
PAGE = 8


def four_free_ports():
    """The first of them."""
    for port in range(20000 + os.getpid() % 20000, 60000, 4):
        try:
            with socket.create_server(("", port)), socket.create_server(("", port + 1)), \
                    socket.create_server(("", port + 2)), socket.create_server(("", port + 3)):
                return port
        except OSError:
            continue
    raise AssertionError("no four free ports side by side")


def chat(words):
    return {"messages": [{"role": "user", "content": words}], "max_tokens": 4, "temperature": 0}


class KnownCachesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        port = four_free_ports()
        config = {"publisher": "zmq", "endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{port + 2}"}
        cls.server = Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 4096, "--threads", 1,
                            "--dp-size", 2, "--page-size", PAGE, "--kv-events-config", json.dumps(config))
        cls.gateway = Sluice(BINARY, "gateway", "--port", 0, "--prometheus-port", 0, "--worker-urls", cls.server.url,
                             "--dp-aware", "--tokenizer-path", MODEL, "--policy", "cache_aware")

    @classmethod
    def tearDownClass(cls):
        for process in (cls.gateway, cls.server):
            process.kill()

    def ranks(self):
        workers = call(self.gateway.url + "/workers")[2]["workers"]
        return {worker["dp_rank"]: worker["kv_events"] for worker in workers if worker.get("dp_rank") is not None}

    def test_each_rank_is_known_by_its_own_events(self):
        def both():
            ranks = self.ranks()
            return ranks if len(ranks) == 2 and all(r["mode"] == "events" for r in ranks.values()) else None
        try:
            ranks = wait_until("both ranks on events", both, within=60)
        except AssertionError:
            self.fail(f"{self.ranks()}\n{self.gateway.output()}")
        for rank in ranks.values():
            self.assertEqual(rank["block_size"], PAGE)
        # Sent around the gateway, to one rank: only its events can tell the gateway of it.
        words = "the quick brown fox jumps over the lazy dog " * 6
        for rank in (1, 0):
            prompt = f"{rank} {words}"
            before = self.ranks()[rank]["blocks"]
            status, _, direct = call(self.server.url + "/v1/chat/completions", chat(prompt),
                                     headers={"X-Data-Parallel-Rank": str(rank)})
            self.assertEqual(status, 200, direct)
            wait_until("new blocks", lambda: self.ranks()[rank]["blocks"] > before, within=30)
            status, head, answer = call(self.gateway.url + "/v1/chat/completions", chat(prompt))
            self.assertEqual(status, 200, answer)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertGreater(cached, 0, "it went to the other rank")
            self.assertEqual(cached % PAGE, 0)
            # Noted when the answer has gone out.
            noted = f"{self.gateway.url}/debug/why/{head['x-request-id']}"
            why = wait_until("what was chosen is noted", lambda: next((w for w in [call(noted)[2]] if "tries" in w), None), within=30)
            tried = why["tries"][0]
            self.assertTrue(tried["worker"].endswith(f"@{rank}"), why)
            self.assertGreater(tried["matched_share"], 0.9, why)
        # A cache that is emptied is empty for the gateway as well.
        self.assertEqual(call(self.server.url + "/flush_cache", method="POST")[0], 200)
        wait_until("no blocks", lambda: all(r["blocks"] == 0 for r in self.ranks().values()), within=30)


class ConfigTest(unittest.TestCase):
    def test_a_port_that_is_taken_is_named_at_the_start(self):
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            refused = Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 512, "--threads", 1,
                             "--kv-events-config", json.dumps({"publisher": "zmq", "endpoint": f"tcp://*:{port}"}))
            self.assertEqual(refused.process.wait(60), 1)
            self.assertIn(f"rank 0 failed to start: KV events cannot be published at tcp://*:{port}", refused.output())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
