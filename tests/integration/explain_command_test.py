#!/usr/bin/env python3
"""What each flag of `sluice explain` that no server has changes in what it says.

usage: explain_command_test.py <sluice binary> <folder of fixtures>"""
import json
import subprocess
import sys
import unittest
from pathlib import Path

FIXTURES = Path(sys.argv.pop())
BINARY = sys.argv.pop()
MODEL = FIXTURES / "published-configs/Llama-3.1-8B-Instruct.json"


def run(*flags):
    command = [BINARY, "explain", "--model-path", str(MODEL), *flags]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def explain(*flags):
    hardware = () if "--hardware" in flags else ("--hardware", "h100")
    return json.loads(run("--json", *hardware, *flags))


def first(said):
    return said["layout"]["predictions"][0]


class ExplainOptionsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.plain = explain()

    def test_json(self):
        self.assertEqual(json.loads(run("--hardware", "h100", "--json"))["hardware"]["name"], "h100")
        self.assertNotEqual(run("--hardware", "h100").lstrip()[:1], "{")

    def test_hardware(self):
        h200 = explain("--hardware", "h200")
        self.assertEqual(h200["hardware"]["name"], "h200")
        self.assertGreater(h200["layout"]["unique_tokens"], self.plain["layout"]["unique_tokens"])

    def test_num_gpus(self):
        self.assertEqual(self.plain["hardware"]["devices"], 1)
        four = explain("--num-gpus", "4")
        self.assertEqual(four["hardware"]["devices"], 4)
        self.assertGreater(len(four["layouts"]), len(self.plain["layouts"]))

    def test_gpu_memory(self):
        more = explain("--gpu-memory", "160")
        self.assertEqual(more["hardware"]["memory_bytes"], 160 << 30)
        self.assertGreater(more["layout"]["unique_tokens"], self.plain["layout"]["unique_tokens"])

    def test_gpu_bandwidth(self):
        slow = explain("--gpu-bandwidth", "1000")
        self.assertEqual(slow["hardware"]["bandwidth"], 1e12)
        self.assertGreater(first(slow)["decode_step_ms"], first(self.plain)["decode_step_ms"])

    def test_gpu_flops(self):
        slow = explain("--gpu-flops", "100")
        self.assertEqual(slow["hardware"]["flops"], 1e14)
        self.assertLess(first(slow)["output_tokens_per_s"], first(self.plain)["output_tokens_per_s"])

    def test_link_bandwidth(self):
        divided = ["--tp-size", "2"]
        fast, slow = explain(*divided), explain(*divided, "--link-bandwidth", "1")
        self.assertEqual(slow["hardware"]["link_bandwidth"], 1e9)
        self.assertGreater(first(slow)["wire_ms"], first(fast)["wire_ms"])

    def test_link_latency(self):
        divided = ["--tp-size", "2"]
        near, far = explain(*divided), explain(*divided, "--link-latency", "50")
        self.assertAlmostEqual(far["hardware"]["link_latency"], 50e-6)
        self.assertGreater(first(far)["wire_ms"], first(near)["wire_ms"])

    def test_efficiency(self):
        half = explain("--efficiency", "0.35")  # half of the default
        self.assertAlmostEqual(half["hardware"]["bandwidth"], self.plain["hardware"]["bandwidth"] / 2)
        self.assertAlmostEqual(half["hardware"]["flops"], self.plain["hardware"]["flops"] / 2)

    def test_input_len(self):
        longer = explain("--input-len", "4096")
        self.assertEqual(longer["workload"]["input_tokens"], 4096)
        self.assertGreater(first(longer)["kv_ms"], first(self.plain)["kv_ms"])

    def test_output_len(self):
        longer = explain("--output-len", "2048")
        self.assertEqual(longer["workload"]["output_tokens"], 2048)
        self.assertGreater(first(longer)["kv_ms"], first(self.plain)["kv_ms"])

    def test_concurrency(self):
        said = explain("--concurrency", "2", "7")
        self.assertEqual([row["concurrency"] for row in said["layout"]["predictions"]], [2, 7])


if __name__ == "__main__":
    unittest.main()
