#!/usr/bin/env python3
"""What each option of `sluice bench policy` changes in the figures, which are those of virtual time: the same in every run.

usage: bench_policy_test.py <sluice binary>"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from bench_server import BenchServer

BINARY = sys.argv.pop()
WAIT = 60


class PolicyCase(unittest.TestCase):
    base = ("--policies", "round_robin", "--duration-secs", 10, "--warm-up-secs", 0, "--seeds", 1, "--request-rate", 50,
            "--groups", 8, "--system-chars", 1024, "--question-chars", 64)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def bench(self, *flags):
        command = [BINARY, "bench", "policy", *map(str, (*self.base, *flags))]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=WAIT)

    def rows(self, *flags):
        """The lines of its file: one for each policy and seed."""
        path = self.folder / "figures"
        path.unlink(missing_ok=True)
        self.bench(*flags, "--output-file", path)
        return [json.loads(line) for line in path.read_text().splitlines()]

    def figure(self, name, *flags):
        (row,) = self.rows(*flags)
        return row[name]

    def assert_changes(self, name, *flags, by):
        """`by`: what the figure without the flags is multiplied with, at least (above 1) or at most (below 1)."""
        bound, changed = by * self.figure(name), self.figure(name, *flags)
        (self.assertGreaterEqual if by > 1 else self.assertLessEqual)(changed, bound)

    def trace(self):
        """Three requests of ten tokens each."""
        path = self.folder / "trace"
        path.write_text("".join(json.dumps({"timestamp": at, "text": f"question {at}", "output_length": 10}) + "\n"
                                for at in range(3)))
        return path


class PolicyRunTest(PolicyCase):
    def test_policies(self):
        self.assertEqual([row["policy"] for row in self.rows()], ["round_robin"])
        self.base = tuple(flag for flag in self.base if flag not in ("--policies", "round_robin"))
        self.assertEqual([row["policy"] for row in self.rows("--policies", "random", "oracle")], ["random", "oracle"])
        self.assertGreater(len(self.rows()), 5, "all of them")

    def test_url_backend_and_model(self):
        self.base = ("--seeds", 1, "--warm-up-secs", 0, "--trace", self.trace())
        server = BenchServer()
        self.addCleanup(server.stop)
        (row,) = self.rows("--url", server.url)
        self.assertEqual((row["policy"], row["requests"]), ("sockets", 3))
        self.rows("--url", server.url, "--backend", "sglang-oai-chat")
        self.rows("--url", server.url, "--backend", "sglang-oai", "--model", "theirs")
        self.assertEqual([(request.path, request.body.get("model")) for request in server.prompts()],
                         3 * [("/generate", None)] + 3 * [("/v1/chat/completions", "sim-model")] +
                         3 * [("/v1/completions", "theirs")])

    def test_request_rate(self):
        self.assert_changes("requests", "--request-rate", 150, by=2.5)

    def test_max_concurrency(self):
        # Each of two that are always in flight takes at least the 100 ms of decoding.
        self.assertGreater(self.figure("requests_per_s"), 40)
        self.assertAlmostEqual(self.figure("requests_per_s", "--max-concurrency", 2), 20, delta=1)

    def test_duration_secs(self):
        self.assert_changes("requests", "--duration-secs", 30, by=2.5)

    def test_warm_up_secs(self):
        # The caches are filled before the figures begin.
        self.assert_changes("ttft_p99_s", "--warm-up-secs", 5, by=0.5)

    def test_seeds(self):
        rows = self.rows("--seeds", 2)
        self.assertEqual([row["seed"] for row in rows], [1, 2])
        self.assertNotEqual(rows[0]["requests"], rows[1]["requests"])

    def test_first_seed(self):
        third = self.rows("--seeds", 3)[2]
        self.assertEqual(self.rows("--first-seed", 3), [third])

    def test_streamed(self):
        # A first token that the gateway sees is work that it no longer counts.
        flags = ("--policies", "least_load")
        whole, streamed = self.rows(*flags)[-1], self.rows(*flags, "--streamed")[-1]
        self.assertNotEqual(whole["imbalance"], streamed["imbalance"])

    def test_output_file(self):
        path = self.folder / "given"
        for _ in range(2):
            self.bench("--output-file", path)
        first, second = path.read_text().splitlines()
        self.assertEqual(first, second)


class PolicyWorkloadTest(PolicyCase):
    def test_workload(self):
        # Half of the requests begin alike, and the hash of the beginning chooses the worker.
        flags = ("--policies", "prefix_hash")
        uniform, hot = self.rows(*flags)[-1], self.rows(*flags, "--workload", "hot")[-1]
        self.assertGreater(hot["imbalance"], 1.5 * uniform["imbalance"])

    def test_trace(self):
        self.assertEqual(self.figure("requests", "--trace", self.trace()), 3)

    def test_groups(self):
        self.assert_changes("hit_rate", "--groups", 80, by=0.6)

    def test_system_chars(self):
        self.assert_changes("ttft_p99_s", "--system-chars", 4096, by=3)

    def test_question_chars(self):
        self.assert_changes("hit_rate", "--question-chars", 1024, by=0.6)


class PolicyWorkersTest(PolicyCase):
    def test_workers(self):
        # Fewer caches have fewer first times. Four workers and eight groups: 32 of some 500; with one worker 8.
        def not_cached(*flags):
            (row,) = self.rows(*flags, "--question-chars", 1)
            return row["requests"] * (1 - row["hit_rate"])
        self.assertAlmostEqual(not_cached(), 4 * not_cached("--workers", 1), delta=2)

    def test_kv_blocks(self):
        self.assert_changes("hit_rate", "--kv-blocks", 16, by=0.2)

    def test_decode_slots(self):
        self.assert_changes("latency_p99_s", "--decode-slots", 1, by=5)

    def test_prefill_base_ms(self):
        self.assertAlmostEqual(self.figure("ttft_p50_s", "--prefill-base-ms", 10), self.figure("ttft_p50_s") + 0.009, places=6)

    def test_prefill_us_per_token(self):
        base = 0.001
        self.assertAlmostEqual(self.figure("ttft_p50_s", "--prefill-us-per-token", 200) - base,
                               10 * (self.figure("ttft_p50_s") - base), places=6)

    def test_decode_ms(self):
        self.assertAlmostEqual(self.figure("latency_p50_s", "--decode-ms", 200), self.figure("latency_p50_s") + 0.1, places=6)

    def test_trace_decode_ms_per_token(self):
        trace = ("--trace", self.trace())
        self.assertAlmostEqual(self.figure("latency_p50_s", *trace, "--trace-decode-ms-per-token", 7),
                               self.figure("latency_p50_s", *trace) + 10 * 0.002, places=6)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
