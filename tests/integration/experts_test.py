#!/usr/bin/env python3
"""What the experts of an instance of several ranks get: the recorder of their loads, and copies of experts.

usage: experts_test.py <sluice binary> <folder of fixtures>"""
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, call  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
# Three layers, each with 8 experts of which a token goes to 2.
MODEL, LAYERS, EXPERTS, TOP_K = "tiny-qwen3-moe", 3, 8, 2


def server(*more, model=MODEL):
    return Sluice(BINARY, "server", "--model-path", FIXTURES / model, "--port", 0, "--max-total-tokens", 2048,
                  "--threads", 1, "--dtype", "float32", *more)


def generate(url, ids, tokens):
    status, _, answer = call(url + "/generate", {
        "input_ids": ids, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}})
    assert status == 200, answer
    return answer


class RecordingTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        os.environ["SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR"] = folder.name
        self.addCleanup(os.environ.pop, "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR")

    def record(self, url, command):
        return call(f"{url}/{command}_expert_distribution_record", {})

    def dump(self, url):
        status, _, text = self.record(url, "dump")
        self.assertEqual(status, 200, text)
        return re.search(r"into (.*)\. Balancedness", text)[1].split(", "), text


class RecorderTest(RecordingTest):
    def recorded(self, *more):
        """The sums, and the files of each rank, of one request of 20 and 5 tokens."""
        with server(*more) as running:
            self.assertEqual(self.record(running.url, "start")[0], 200)
            generate(running.url, list(range(20)), 5)
            self.assertEqual(self.record(running.url, "stop")[0], 200)
            generate(running.url, list(range(100, 120)), 3)
            files, text = self.dump(running.url)
            empty, _ = self.dump(running.url)
            self.assertEqual(sum(map(sum, json.loads(Path(empty[0]).read_text())["logical_count"])), 0)
        sums = json.loads(Path(files[0]).read_text())
        counts = sums["logical_count"]
        # The last token of an answer is not computed with.
        self.assertEqual([sum(layer) for layer in counts], [TOP_K * (20 + 5 - 1)] * LAYERS)
        self.assertEqual([len(layer) for layer in counts], [EXPERTS] * LAYERS)
        self.assertEqual(sums["steps"], 5)
        return counts, sums, [json.loads(Path(file).read_text()) for file in files[1:]]

    def test_all_layouts_count_alike(self):
        alone, sums, _ = self.recorded("--expert-distribution-recorder-mode", "stat")
        self.assertEqual(sums["average_utilization_rate_over_window"], 1, "one rank")
        for layout in (("--tp", 2), ("--tp", 2, "--ep", 2, "--dp-size", 2, "--enable-dp-attention"),
                       ("--tp", 2, "--dp-size", 2, "--enable-dp-attention", "--moe-a2a-backend", "deepep"),
                       ("--tp", 2, "--moe-a2a-backend", "deepep")):
            with self.subTest(layout):
                counts, sums, _ = self.recorded(*layout, "--expert-distribution-recorder-mode", "stat_approx")
                self.assertEqual(counts, alone)
                if "--ep" in layout or "deepep" in layout:
                    self.assertEqual(len(sums["rank_tokens"]), 2)
                    self.assertTrue(0.5 <= sums["average_utilization_rate_over_window"] < 1, sums)

    def test_each_step_and_each_token(self):
        layout = ("--tp", 2, "--dp-size", 2, "--enable-dp-attention", "--moe-a2a-backend", "deepep")
        counts, _, ranks = self.recorded(*layout, "--expert-distribution-recorder-mode", "per_pass")
        self.assertEqual(len(ranks), 2)
        for rank in ranks:
            self.assertEqual([[sum(of) for of in zip(*layer)] for layer in zip(*(s["counts"] for s in rank["steps"]))],
                             rank["counts"])
            self.assertEqual(rank["counts"], [[counts[layer][e] for e in own] for layer, own in enumerate(rank["own"])])
        counts, _, ranks = self.recorded(*layout, "--expert-distribution-recorder-mode", "per_token")
        chosen = [[0] * EXPERTS for _ in range(LAYERS)]
        ids = []
        for step in (step for rank in ranks for step in rank["steps"]):
            ids += step["input_ids"]
            for layer, tokens in enumerate(step["topk_ids_of_layer"]):
                for expert in (expert for token in tokens for expert in token):
                    chosen[layer][expert] += 1
        self.assertEqual(chosen, counts)
        self.assertEqual(ids[:20], list(range(20)))

    def test_the_buffer_keeps_the_latest_steps(self):
        with server("--expert-distribution-recorder-mode", "stat", "--expert-distribution-recorder-buffer-size", 3) as running:
            self.record(running.url, "start")
            generate(running.url, list(range(20)), 8)
            files, text = self.dump(running.url)
        self.assertIn("over 3 steps", text)
        self.assertEqual(sum(json.loads(Path(files[0]).read_text())["logical_count"][0]), 3 * TOP_K)

    def test_who_records_nothing_says_why(self):
        with server() as running:
            status, _, text = self.record(running.url, "start")
            self.assertEqual(status, 400)
            self.assertIn("--expert-distribution-recorder-mode", str(text))
        with server("--expert-distribution-recorder-mode", "stat", model="tiny-llama") as running:
            status, _, text = self.record(running.url, "dump")
            self.assertEqual(status, 400)
            self.assertIn("no experts", str(text))


DPA = ("--enable-dp-attention",)
DEEPEP = ("--moe-a2a-backend", "deepep")


class CopiesTest(RecordingTest):
    def answers(self, url):
        return [generate(url, [(7 * i + j) % 512 for j in range(30 + i)], 8)["output_ids"] for i in range(6)]

    def test_copies_change_no_token(self):
        with server() as alone:
            want = self.answers(alone.url)
        everywhere = {"physical_to_logical_map": [[7, 6, 5, 4, 3, 0, 0, 2, 1, 0, 0, 0]] * LAYERS}
        copies = ("--ep-num-redundant-experts", 4)
        for flags in (("--tp", 2, "--ep", 2, *copies), ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, *copies),
                      ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, *copies, "--init-expert-location", json.dumps(everywhere)),
                      ("--tp", 2, "--dp-size", 2, *DPA, "--ep", 2, *copies, "--ep-dispatch-algorithm", "dynamic",
                       "--init-expert-location", json.dumps(everywhere))):
            with self.subTest(flags), server(*flags) as copied:
                self.assertEqual(self.answers(copied.url), want)

    def test_modes_of_deepep_change_no_token(self):
        with server() as alone:
            want = self.answers(alone.url)
        layout = ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP)
        for mode in (("--deepep-mode", "normal"), ("--deepep-mode", "low_latency", "--chunked-prefill-size", 128),
                     ("--deepep-mode", "auto", "--ep-num-redundant-experts", 4)):
            with self.subTest(mode), server(*layout, *mode) as running:
                self.assertEqual(self.answers(running.url), want)

    def test_a_record_balances_the_next_start(self):
        def loads(*more):
            with server("--tp", 2, "--ep", 2, "--expert-distribution-recorder-mode", "stat", *more) as running:
                self.record(running.url, "start")
                for start in range(0, 400, 80):
                    generate(running.url, list(range(start, start + 80)), 1)
                files, _ = self.dump(running.url)
            return files[0], json.loads(Path(files[0]).read_text())

        file, before = loads()
        _, after = loads("--init-expert-location", file, "--ep-num-redundant-experts", 4)
        self.assertEqual(after["logical_count"], before["logical_count"])
        self.assertGreater(after["average_utilization_rate_over_window"], 0.9)
        self.assertGreater(after["average_utilization_rate_over_window"],
                           before["average_utilization_rate_over_window"] + 0.05)

    def test_what_cannot_be_placed_is_refused(self):
        def refused(*flags, model=MODEL):
            run = subprocess.run([BINARY, "server", "--model-path", FIXTURES / model, "--port", "0", *map(str, flags)],
                                 capture_output=True, text=True, timeout=60)
            self.assertEqual(run.returncode, 2, run.stderr)
            return run.stderr

        self.assertIn("the nearest that are: 0, 2", refused("--tp", 2, "--ep", 2, "--ep-num-redundant-experts", 1))
        self.assertIn("--ep-size 1", refused("--ep-num-redundant-experts", 2))
        self.assertIn("the model has no experts", refused("--tp", 2, "--ep-num-redundant-experts", 2, model="tiny-llama"))
        self.assertIn("has no copy of expert 7", refused("--tp", 2, "--ep", 2, "--init-expert-location", json.dumps(
            {"physical_to_logical_map": [[0, 1, 2, 3, 4, 5, 6, 6]] * LAYERS})))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
