#!/usr/bin/env python3
"""Experts that move from rank to rank while requests run.

usage: eplb_test.py <sluice binary> <folder of fixtures>"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(__file__))
from layout_fixture import DPA, DEEPEP, NEAR_TIE, answers, call, differences, generate, start_server, workload  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
EPLB = ("--enable-eplb", "--enable-metrics", "--eplb-rebalance-num-iterations", 10)


def value(url, name):
    """The sum over all series of one name, or of one with a label."""
    lines = call(url + "/metrics")[2].splitlines()
    pattern = re.compile(re.escape(name.split("{")[0]) + r"\{")
    label = name.split("{")[1].rstrip("}") if "{" in name else ""
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if pattern.match(line) and label in line)


def logged(server, pattern, times=1):
    """What the log says so, once it has: it comes by another way than answers."""
    def found():
        matches = re.findall(pattern, "".join(server.lines))
        return matches if len(matches) >= times else None

    return wait_until(f"{pattern} in the log", found)


class EplbTest(unittest.TestCase):
    def test_r26_experts_move_under_load_from_no_file_and_change_no_token(self):
        for model in ("tiny-qwen3-moe", "tiny-deepseek-v3-fp8"):
            requests = workload(60, seed=3)
            with start_server(BINARY, FIXTURES / model) as alone:
                want = answers(alone.url, requests)
            for flags in (("--tp", 2, "--ep", 2, "--eplb-rebalance-layers-per-chunk", 1),
                          ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, "--ep-num-redundant-experts", 4,
                           "--ep-dispatch-algorithm", "dynamic")):
                with self.subTest(model=model, flags=flags), tempfile.TemporaryDirectory() as folder:
                    copy = shutil.copytree(FIXTURES / model, Path(folder) / "model")
                    with start_server(BINARY, copy, *flags, *EPLB) as running:
                        shutil.rmtree(copy)
                        parted = differences(requests, answers(running.url, requests), want)
                        self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                        self.assertLess(len(parted), 5)
                        self.assertGreater(value(running.url, 'sluice:eplb_layers_total{outcome="moved"}'), 0)
                        self.assertEqual(value(running.url, 'sluice:eplb_layers_total{outcome="rolled_back"}'), 0)
                        self.assertGreater(value(running.url, "sluice:eplb_moved_bytes_total"), 0)
                        self.assertGreater(value(running.url, 'sglang:eplb_balancedness_count{forward_mode="decode"}'), 0)
                        # Every rank has some of each layer's tokens, and all of them are somebody's.
                        layers = set(re.findall(r'sglang:eplb_gpu_physical_count_count\{.*layer="(\d+)"', call(running.url + "/metrics")[2]))
                        self.assertGreater(len(layers), 1)
                        for layer in layers:
                            of_layer = f'sglang:eplb_gpu_physical_count_count{{layer="{layer}"}}'
                            self.assertGreater(value(running.url, of_layer), 0)
                        logged(running, r"balancedness is 0\.\d+ over 10 steps; the experts of \d of")

    def test_ranks_get_about_as_many_tokens_afterwards(self):
        with start_server(BINARY, FIXTURES / "tiny-qwen3-moe", "--tp", 2, "--ep", 2, *EPLB) as running:
            # The same prompt again and again: loads are those of the steps before.
            for _ in range(35):
                self.assertEqual(generate(running.url, list(range(200, 320)), 1)[0], 200)
                self.assertEqual(call(running.url + "/flush_cache", {})[0], 200)
            seen = [float(found) for found in logged(running, r"balancedness is ([\d.]+) over", times=3)]
            self.assertLess(seen[0], 0.9)
            self.assertGreater(seen[-1], seen[0] + 0.1)
            logged(running, r"the experts of [123] layers have moved, [\d.]+ MiB from rank to rank")

    def test_nothing_moves_where_it_is_balanced_enough(self):
        with start_server(BINARY, FIXTURES / "tiny-qwen3-moe", "--tp", 2, "--ep", 2, *EPLB,
                          "--eplb-min-rebalancing-utilization-threshold", 0.05) as running:
            self.assertEqual(generate(running.url, list(range(50)), 15)[0], 200)
            logged(running, "above 0.05: no expert moves")
            self.assertEqual(value(running.url, 'sluice:eplb_layers_total{outcome="moved"}'), 0)

    def test_where_experts_cannot_move_it_is_refused(self):
        def refused(*flags, model="tiny-qwen3-moe"):
            run = subprocess.run([BINARY, "server", "--model-path", FIXTURES / model, "--port", "0", *map(str, flags)],
                                 capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 2, run.stderr)
            return run.stderr

        self.assertIn("--enable-eplb: experts must be divided", refused("--enable-eplb", "--tp", 2))
        self.assertIn("--enable-eplb: the model has no experts", refused("--enable-eplb", "--tp", 2, "--ep", 2, model="tiny-llama"))
        self.assertIn("--eplb-rebalance-num-iterations needs --enable-eplb", refused("--eplb-rebalance-num-iterations", 5))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
