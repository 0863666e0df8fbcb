#!/usr/bin/env python3
"""What a server tells of its model's inside: hidden states, routed experts and weights; and rows in place of embeddings. Of one
rank against the reference and the checkpoint's files, of divided instances against one rank.

usage: insides_test.py <sluice binary> <folder of fixtures>"""
import base64
import json
import os
import shutil
import struct
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(__file__))
from layout_fixture import DEEPEP, DPA, Sluice, call  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
INSIDES = ("--enable-return-hidden-states", "--enable-return-routed-experts")
# float32 sums in another order, of values around 1.
CLOSE = 2e-3


def tensors(path):
    """Of a safetensors file: name -> rows of floats (a vector is one row)."""
    data = path.read_bytes()
    size, = struct.unpack_from("<Q", data)
    out = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        raw = data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]]
        if entry["dtype"] == "BF16":
            raw = b"".join(b"\0\0" + raw[i:i + 2] for i in range(0, len(raw), 2))
        values = struct.unpack(f"<{len(raw) // 4}f", raw)
        width = entry["shape"][-1]
        out[name] = [list(values[i:i + width]) for i in range(0, len(values), width)]
    return out


def server(model, *more):
    return Sluice(BINARY, "server", "--model-path", FIXTURES / model, "--port", 0, "--max-total-tokens", 2048, "--threads", 1,
                  "--dtype", "float32", *more)


def generate(url, tokens=6, **fields):
    status, _, answer = call(url + "/generate", {
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}, **fields}, timeout=120)
    assert status == 200, answer
    return answer


def positions(answer):
    """Hidden states of every token but the last."""
    prompt, *output = answer["meta_info"]["hidden_states"]
    return [*prompt, *output]


def experts(answer):
    raw = base64.b64decode(answer["meta_info"]["routed_experts"])
    return list(struct.unpack(f"<{len(raw) // 4}i", raw))


def furthest(rows, others):
    assert len(rows) == len(others), (len(rows), len(others))
    return max(abs(a - b) for row, other in zip(rows, others) for a, b in zip(row, other))


class OneRankTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = FIXTURES / "tiny-llama"
        cls.server = server("tiny-llama", *INSIDES, "--chunked-prefill-size", 32)
        cls.url = cls.server.url
        cls.prompts = json.loads((cls.folder / "reference.json").read_text())["prompts"]
        cls.weights = tensors(cls.folder / "model.safetensors")

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def test_hidden_states_times_the_head_are_the_reference_logits(self):
        """Of all positions, also of prompts in chunks and of those that the prefix cache has."""
        logits = tensors(self.folder / "reference.safetensors")
        head = self.weights["lm_head.weight"]
        for _ in range(2):
            for number, prompt in enumerate(self.prompts[:4]):
                answer = generate(self.url, input_ids=prompt["input_ids"], return_hidden_states=True)
                rows = positions(answer)
                self.assertEqual(len(answer["meta_info"]["hidden_states"]), 6)
                self.assertEqual(len(rows), len(prompt["input_ids"]) + 5)
                for row, want in list(zip(rows, logits[f"logits.{number}"]))[::7]:
                    got = [sum(a * b for a, b in zip(row, weight)) for weight in head]
                    self.assertLess(furthest([got], [want]), CLOSE)

    def test_openai_endpoints_give_the_state_of_the_last_token(self):
        body = {"prompt": self.prompts[0]["input_ids"], "temperature": 0, "max_tokens": 6, "ignore_eos": True,
                "return_hidden_states": True}
        want = positions(generate(self.url, input_ids=self.prompts[0]["input_ids"], return_hidden_states=True))[-1]
        status, _, answer = call(self.url + "/v1/completions", body)
        self.assertEqual(status, 200, answer)
        self.assertLess(furthest([answer["choices"][0]["hidden_states"]], [want]), CLOSE)
        status, _, answer = call(self.url + "/v1/chat/completions", {
            "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0, "ignore_eos": True,
            "return_hidden_states": True})
        self.assertEqual(len(answer["choices"][0]["hidden_states"]), 64)

    def test_rows_of_the_embedding_are_as_good_as_ids(self):
        table = self.weights["model.embed_tokens.weight"]
        for prompt in self.prompts[:4]:
            ids = prompt["input_ids"]
            by_ids = generate(self.url, tokens=16, input_ids=ids, return_logprob=True)
            for _ in range(2):  # the second finds the first's prefix
                by_rows = generate(self.url, tokens=16, input_embeds=[table[i] for i in ids], return_logprob=True)
                self.assertEqual(by_rows["output_ids"], by_ids["output_ids"])
                self.assertEqual(by_rows["meta_info"]["prompt_tokens"], len(ids))
                for got, want in zip(by_rows["meta_info"]["output_token_logprobs"],
                                     by_ids["meta_info"]["output_token_logprobs"]):
                    self.assertAlmostEqual(got[0], want[0], delta=CLOSE)
            self.assertGreaterEqual(by_rows["meta_info"]["cached_tokens"], len(ids) - 1)
        batch = generate(self.url, input_embeds=[[table[i] for i in p["input_ids"]] for p in self.prompts[:2]])
        for prompt, answer in zip(self.prompts, batch):
            self.assertEqual(answer["output_ids"], generate(self.url, input_ids=prompt["input_ids"])["output_ids"])

    def test_rows_of_other_embeddings_give_other_tokens(self):
        table = self.weights["model.embed_tokens.weight"]
        ids = self.prompts[1]["input_ids"]
        wrong = [[-x for x in table[i]] for i in ids]
        self.assertNotEqual(generate(self.url, tokens=16, input_embeds=wrong)["output_ids"],
                            generate(self.url, tokens=16, input_ids=ids)["output_ids"])

    def test_weights_are_those_of_the_files(self):
        for name, rows in (("lm_head.weight", 3), ("model.layers.1.mlp.down_proj.weight", 100)):
            status, _, answer = call(self.url + "/get_weights_by_name", {"name": name, "truncate_size": rows})
            self.assertEqual(status, 200, answer)
            self.assertEqual(answer, self.weights[name][:rows])
        status, _, answer = call(self.url + "/get_weights_by_name", {"name": "model.norm.weight", "truncate_size": 5})
        self.assertEqual(answer, self.weights["model.norm.weight"][0][:5])
        status, _, answer = call(self.url + "/get_weights_by_name", {"name": "no.such.weight"})
        self.assertEqual(status, 400)
        self.assertIn("no.such.weight", answer["message"])


def with_tensors(folder, added):
    """A copy of tiny-llama there whose file has more: name -> (dtype, shape, bytes)."""
    shutil.copytree(FIXTURES / "tiny-llama", folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size, = struct.unpack_from("<Q", data)
    header, values = json.loads(data[8:8 + size]), data[8 + size:]
    for name, (dtype, shape, raw) in added.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(values), len(values) + len(raw)]}
        values += raw
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + values)
    return folder


class UnusualTensorsTest(unittest.TestCase):
    def test_x9_whatever_tensor_is_asked_for_the_server_lives(self):
        with tempfile.TemporaryDirectory() as folder:
            model = with_tensors(Path(folder) / "model", {"scalar": ("F32", [], struct.pack("<f", 2.5)),
                                                          "nothing": ("F32", [0, 7], b""),
                                                          "numbers": ("I32", [2], struct.pack("<2i", 1, 2)),
                                                          "unscaled": ("F8_E4M3", [4], bytes(4))})
            with server(model) as running:
                for name, want in (("scalar", [2.5]), ("nothing", [])):
                    self.assertEqual(call(running.url + "/get_weights_by_name", {"name": name})[::2], (200, want))
                for name, why in (("numbers", "I32"), ("unscaled", "without scales")):
                    status, _, answer = call(running.url + "/get_weights_by_name", {"name": name})
                    self.assertEqual(status, 400, answer)
                    self.assertIn(why, answer["message"])
                self.assertEqual(len(generate(running.url, input_ids=[1, 2, 3])["output_ids"]), 6)


class LayoutsTest(unittest.TestCase):
    """Ranks of divided instances tell the same as one rank does."""

    def compare(self, model, *layouts, has_experts):
        prompts = [p["input_ids"] for p in json.loads((FIXTURES / model / "reference.json").read_text())["prompts"][:4]]
        config = json.loads((FIXTURES / model / "config.json").read_text())
        table = tensors(FIXTURES / model / "model.safetensors")["model.embed_tokens.weight"]
        fields = {"return_hidden_states": True, "return_routed_experts": has_experts}

        def ask(url):
            by_ids = [generate(url, input_ids=ids, **fields) for ids in [*prompts, prompts[2]]]
            by_rows = [generate(url, input_embeds=[table[i] for i in ids], **fields) for ids in prompts]
            return by_ids, by_rows

        with server(model, *INSIDES) as alone:
            want, want_rows = ask(alone.url)
        for ids, answer in zip(prompts, want if has_experts else []):
            count, layers, top_k = len(ids) + 5, config["num_hidden_layers"], config["num_experts_per_tok"]
            chosen = experts(answer)
            self.assertEqual(len(chosen), count * layers * top_k)
            for at in range(0, len(chosen), top_k):
                dense = at // top_k % layers < config.get("first_k_dense_replace", 0)
                self.assertEqual(len(set(chosen[at:at + top_k])), 1 if dense else top_k)
        for layout in layouts:
            with self.subTest(layout=" ".join(map(str, layout))), server(model, *INSIDES, *layout) as divided:
                for got, expected in zip(ask(divided.url), (want, want_rows)):
                    for mine, other in zip(got, expected):
                        self.assertEqual(mine["output_ids"], other["output_ids"])
                        self.assertLess(furthest(positions(mine), positions(other)), CLOSE)
                        if has_experts:
                            self.assertEqual(experts(mine), experts(other))

    def test_dense_model(self):
        self.compare("tiny-llama", ("--tp", 4), ("--tp", 4, "--dp-size", 2, *DPA),
                     ("--tp", 2, "--dp-size", 2, *DPA, "--enable-dp-lm-head"), ("--tp", 2, "--dp-size", 2), has_experts=False)

    def test_model_with_experts(self):
        self.compare("tiny-deepseek-v3", ("--tp", 4, "--ep", 2), ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP),
                     ("--tp", 2, "--dp-size", 2, *DPA), has_experts=True)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
