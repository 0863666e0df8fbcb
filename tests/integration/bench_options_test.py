#!/usr/bin/env python3
"""What each option of `sluice bench` changes: in the requests that a server gets, in the results, in what is said.

usage: bench_options_test.py <sluice binary> <folder of fixtures>"""
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from bench_server import ANSWER, CACHED_TOKENS, PROMPT_TOKENS, BenchServer
from terminal import shown_on_terminal

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import wait_until  # noqa: E402

FIXTURES = Path(sys.argv.pop())
BINARY = sys.argv.pop()
TOKENIZER = FIXTURES / "tiny-qwen2"
WAIT = 60


class BenchCase(unittest.TestCase):
    """A server, and `sluice bench` with three random prompts, which it sends one after another."""
    dataset = ("--dataset-name", "random", "--random-input-len", 4, "--random-output-len", 4, "--num-prompts", 3)
    load = ("--max-concurrency", 1, "--warmup-requests", 0)

    def setUp(self):
        self.server = self.start_server()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def start_server(self, *where):
        server = BenchServer(*where)
        self.addCleanup(server.stop)
        return server

    def command(self, *flags):
        target = () if "--port" in flags else ("--base-url", self.server.url)
        return [BINARY, "bench", *map(str, (*target, *self.dataset, *self.load, *flags))]

    def bench(self, *flags, status=0):
        """What it prints."""
        self.server.received.clear()
        ran = subprocess.run(self.command(*flags), capture_output=True, text=True, timeout=WAIT)
        self.assertEqual((ran.returncode, ran.stderr if status == 0 else ""), (status, ""), ran)
        return ran.stdout

    def bodies(self, *flags):
        self.bench(*flags)
        return [request.body for request in self.server.prompts()]

    def texts(self, *flags):
        return [body["text"] for body in self.bodies(*flags)]

    def word_counts(self, *flags):
        return [len(text.split()) for text in self.texts(*flags)]

    def answer_lengths(self, *flags):
        """The most tokens that each request asks for, each of them once."""
        return {body["sampling_params"]["max_new_tokens"] for body in self.bodies(*flags)}

    def record(self, *flags):
        """The line in the file of results."""
        path = self.folder / "record"
        path.unlink(missing_ok=True)
        self.bench("--output-file", path, *flags)
        return json.loads(path.read_text())

    def file(self, *conversations, lines=False):
        """Of (question, answer)."""
        records = [{"conversations": [{"value": text} for text in turns]} for turns in conversations]
        path = self.folder / "conversations"
        path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
        return path


class BenchTargetTest(BenchCase):
    def test_backend(self):
        for backends, path in ((("sglang", "sglang-native"), "/generate"),
                               (("sglang-oai", "vllm", "lmdeploy"), "/v1/completions"),
                               (("sglang-oai-chat", "vllm-chat", "lmdeploy-chat"), "/v1/chat/completions")):
            for backend in backends:
                self.bench("--backend", backend)
                self.assertEqual([request.path for request in self.server.prompts()], 3 * [path], backend)

    def test_base_url(self):
        other = self.start_server()
        self.assertEqual(self.bodies("--base-url", other.url), [])
        self.assertEqual(len(other.prompts()), 3)

    def test_host(self):
        self.server = self.start_server("127.0.0.2")
        self.bench("--port", self.server.port, status=1)
        self.assertEqual(len(self.bodies("--host", "127.0.0.2", "--port", self.server.port)), 3)

    def test_port(self):
        self.assertEqual(len(self.bodies("--port", self.server.port)), 3)

    def test_model(self):
        def models(*flags):
            return {body["model"] for body in self.bodies("--backend", "sglang-oai", *flags)}
        self.assertEqual(models(), {"first-model"})
        self.assertEqual(models("--model", "mine"), {"mine"})

    def test_served_model_name(self):
        flags = ("--backend", "sglang-oai", "--model", "mine", "--served-model-name", "theirs")
        self.assertEqual({body["model"] for body in self.bodies(*flags)}, {"theirs"})

    def test_header(self):
        self.bench("--header", "X-Team=blue", "X-Shift=late")
        self.assertEqual({(request.headers["X-Team"], request.headers["X-Shift"]) for request in self.server.prompts()},
                         {("blue", "late")})


class BenchPromptsTest(BenchCase):
    def test_tokenizer(self):
        of_length = ("--random-input-len", 16, "--random-range-ratio", 1)
        self.assertIn("48 words in the prompts", self.bench(*of_length))
        self.assertIn("48 tokens in the prompts", self.bench(*of_length, "--tokenizer", TOKENIZER))
        self.assertIsNone(self.record()["total_output_tokens_retokenized"])
        self.assertGreater(self.record("--tokenizer", TOKENIZER)["total_output_tokens_retokenized"], 0)

    def test_dataset_name(self):
        def pairs_of_words(name):
            text, *_ = self.texts("--dataset-name", name, "--random-input-len", 400, "--random-range-ratio", 1)
            return len(set(itertools.pairwise(text.split())))
        self.assertGreater(pairs_of_words("random"), 350)
        self.assertLess(pairs_of_words("random-ids"), 250, "consecutive ones, which come again")
        self.assertEqual(len(set(self.texts("--dataset-name", "fixed"))), 1)
        groups = self.texts("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", 1)
        self.assertEqual(len({text.split("\n\n")[0] for text in groups}), 1)
        for name in ("sharegpt", "custom"):
            path = self.file(("who goes there", "a friend"), lines=name == "custom")
            self.assertEqual(self.texts("--dataset-name", name, "--dataset-path", path), ["who goes there"])

    def test_dataset_path(self):
        path = self.file(("red green blue", "so"))
        of_length = ("--random-input-len", 5, "--random-range-ratio", 1)
        self.assertEqual(set(self.texts(*of_length, "--dataset-path", path)), {"red green blue red green"})

    def test_num_prompts(self):
        self.assertEqual(len(self.bodies("--num-prompts", 5)), 5)

    def test_seed(self):
        self.load = ("--warmup-requests", 0, "--request-rate", 2000)

        def sent(seed):
            due = self.record("--seed", seed, "--output-details")["due_times"]
            return due, sorted(request.body["text"] for request in self.server.prompts())
        first, again, other = sent(7), sent(7), sent(8)
        self.assertEqual(first, again)
        self.assertNotEqual(first[0], other[0])
        self.assertNotEqual(first[1], other[1])

    def test_apply_chat_template(self):
        flags = ("--dataset-name", "sharegpt", "--dataset-path", self.file(("who goes there", "a friend")),
                 "--tokenizer", TOKENIZER)
        self.assertEqual(self.texts(*flags), ["who goes there"])
        self.assertEqual(self.texts(*flags, "--apply-chat-template"),
                         ["<|im_start|>user\nwho goes there<|im_end|>\n<|im_start|>assistant\n"])

    def test_tokenize_prompt(self):
        for body in self.bodies("--tokenizer", TOKENIZER, "--random-range-ratio", 1, "--tokenize-prompt"):
            self.assertNotIn("text", body)
            self.assertEqual([type(token) for token in body["input_ids"]], 4 * [int])


class BenchRandomTest(BenchCase):
    def test_random_input_len(self):
        self.assertEqual(self.word_counts("--random-input-len", 9, "--random-range-ratio", 1), [9, 9, 9])

    def test_random_output_len(self):
        self.assertEqual(self.answer_lengths("--random-output-len", 9, "--random-range-ratio", 1), {9})

    def test_random_range_ratio(self):
        many = ("--num-prompts", 40, "--random-input-len", 100, "--random-output-len", 100)
        for ratio in (0, 0.5, 1):
            least = max(1, int(100 * ratio))
            bodies = self.bodies(*many, "--random-range-ratio", ratio)
            for lengths in ({len(body["text"].split()) for body in bodies},
                            {body["sampling_params"]["max_new_tokens"] for body in bodies}):
                self.assertGreaterEqual(min(lengths), least)
                self.assertLess(min(lengths), least + 25, "the whole range is drawn from")
                self.assertLessEqual(max(lengths), 100)
                self.assertEqual(len(lengths) > 1, ratio < 1)


class BenchConversationsTest(BenchCase):
    def setUp(self):
        super().setUp()
        self.flags = ("--dataset-name", "sharegpt", "--dataset-path", self.file(("a b c", "d e"), ("f g h i j", "k l m")))

    def test_sharegpt_output_len(self):
        self.assertEqual(self.answer_lengths(*self.flags), {2, 3})
        self.assertEqual(self.answer_lengths(*self.flags, "--sharegpt-output-len", 6), {6})

    def test_sharegpt_context_len(self):
        self.assertEqual(sorted(self.texts(*self.flags)), ["a b c", "f g h i j"])
        self.assertEqual(self.texts(*self.flags, "--sharegpt-context-len", 7), ["a b c"])


class BenchGroupsTest(BenchCase):
    dataset = ("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", 3, "--gsp-prompts-per-group", 4,
               "--gsp-system-prompt-len", 6, "--gsp-question-len", 2, "--gsp-output-len", 5)

    def sizes(self, *flags):
        """How many requests each system prompt has."""
        systems = [text.split("\n\n")[0] for text in self.texts(*flags)]
        return sorted(systems.count(system) for system in set(systems))

    def lengths(self, part, *flags):
        """The words of the system prompts (part 0) or of the questions (part 1), each length once."""
        return {len(text.split("\n\n")[part].split()) for text in self.texts(*flags)}

    def changes(self, *flags):
        """How often a request is of another group than the one before."""
        systems = [text.split("\n\n")[0] for text in self.texts(*flags)]
        return sum(one != other for one, other in itertools.pairwise(systems))

    def test_gsp_num_groups(self):
        self.assertEqual(self.sizes("--gsp-num-groups", 5), 5 * [4])

    def test_gsp_prompts_per_group(self):
        self.assertEqual(self.sizes("--gsp-prompts-per-group", 2), 3 * [2])

    def test_gsp_system_prompt_len(self):
        self.assertEqual(self.lengths(0, "--gsp-system-prompt-len", 9), {9})

    def test_gsp_question_len(self):
        self.assertEqual(self.lengths(1, "--gsp-question-len", 8), {8})

    def test_gsp_output_len(self):
        self.assertEqual(self.answer_lengths("--gsp-output-len", 7), {7})

    def test_gsp_range_ratio(self):
        long = ("--gsp-num-groups", 12, "--gsp-prompts-per-group", 1, "--gsp-system-prompt-len", 50, "--gsp-question-len", 50)
        for part in (0, 1):
            self.assertEqual(self.lengths(part, *long), {50})
            drawn = self.lengths(part, *long, "--gsp-range-ratio", 0.5)
            self.assertGreater(len(drawn), 1)
            self.assertGreaterEqual(min(drawn), 25)

    def test_gsp_num_turns(self):
        bodies = self.bodies("--backend", "sglang-oai-chat", "--gsp-num-turns", 3)
        self.assertEqual(sorted(len(body["messages"]) for body in bodies), 12 * [1] + 12 * [3] + 12 * [5])
        for body in bodies:
            self.assertEqual({message["content"] for message in body["messages"][1::2]},
                             {ANSWER} if len(body["messages"]) > 1 else set())

    def test_gsp_ordered(self):
        self.assertGreater(self.changes(), 2)
        self.assertEqual(self.changes("--gsp-ordered"), 2)

    def test_gsp_send_routing_key(self):
        def keys(*flags):
            self.bench(*flags)
            found = {(request.body["text"].split("\n\n")[0], request.headers["x-smg-routing-key"])
                     for request in self.server.prompts()}
            self.assertEqual(len(found), 3, "one for each group")
            return {key for _, key in found}
        self.assertEqual(keys(), {None})
        self.assertEqual(len(keys("--gsp-send-routing-key") - {None}), 3)

    def test_gsp_fast_prepare(self):
        self.assertIn("12 requests, 96 words in the prompts", self.bench())
        self.assertIn("12 requests, 0 words in the prompts", self.bench("--gsp-fast-prepare"))


class BenchFixedTest(BenchCase):
    dataset = ("--dataset-name", "fixed", "--num-prompts", 2)

    def test_fixed_prompt(self):
        self.assertEqual(self.texts("--fixed-prompt", "Once upon a time"), 2 * ["Once upon a time"])

    def test_fixed_output_len(self):
        self.assertEqual(self.answer_lengths("--fixed-output-len", 9), {9})


class BenchLoadTest(BenchCase):
    def test_request_rate(self):
        self.load = ("--warmup-requests", 0, "--num-prompts", 20)

        def due(*flags):
            return self.record("--output-details", *flags)["due_times"]
        fast, slow = due("--request-rate", 2000), due("--request-rate", 500)
        self.assertEqual(due(), 20 * [0])
        self.assertEqual((fast[0], fast), (0, sorted(fast)))
        self.assertGreater(fast[-1], 0)
        for one, other in zip(fast, slow):
            self.assertAlmostEqual(4 * one, other, delta=1e-6)

    def test_max_concurrency(self):
        self.load = ("--warmup-requests", 0, "--num-prompts", 9)
        for flags, most in (((), 9), (("--max-concurrency", 3), 3)):
            self.server.most_under_way = 0
            meet = threading.Barrier(most)  # nobody is answered before so many are there
            self.server.hold = lambda: meet.wait(WAIT)
            self.assertEqual(len(self.bodies(*flags)), 9)
            self.assertEqual(self.server.most_under_way, most)

    def test_warmup_requests(self):
        bodies = self.bodies("--warmup-requests", 4, "--random-output-len", 100, "--random-range-ratio", 1)
        self.assertEqual([body["sampling_params"]["max_new_tokens"] for body in bodies], 4 * [32] + 3 * [100])
        self.assertEqual({body["text"] for body in bodies[:4]}, {bodies[4]["text"]})

    def test_flush_cache(self):
        self.bench("--warmup-requests", 1)
        self.assertEqual([request.path for request in self.server.received], 4 * ["/generate"])
        self.bench("--warmup-requests", 1, "--flush-cache")
        self.assertEqual([request.path for request in self.server.received],
                         ["/generate", "/flush_cache"] + 3 * ["/generate"])

    def test_disable_stream(self):
        self.assertEqual([body["stream"] for body in self.bodies()], 3 * [True])
        self.assertEqual([body["stream"] for body in self.bodies("--disable-stream")], 3 * [False])

    def test_disable_ignore_eos(self):
        def ignores(*flags):
            return {body["sampling_params"]["ignore_eos"] for body in self.bodies(*flags)}
        self.assertEqual((ignores(), ignores("--disable-ignore-eos")), ({True}, {False}))

    def test_return_logprob(self):
        def asked(*flags):
            return {body.get("return_logprob") for body in self.bodies(*flags)}
        self.assertEqual((asked(), asked("--return-logprob")), ({None}, {True}))

    def test_extra_request_body(self):
        extra = {"rid": "x", "sampling_params": {"temperature": 1}}
        for body in self.bodies("--extra-request-body", json.dumps(extra)):
            self.assertEqual({name: body[name] for name in extra}, extra)

    def test_silence_timeout_secs(self):
        end = threading.Event()
        self.addCleanup(end.set)
        self.server.hold = end.wait
        self.assertIn("took longer than 1 s", self.bench("--num-prompts", 1, "--silence-timeout-secs", 1, status=1))

    def test_disable_keep_alive(self):
        def connections(*flags):
            self.bench("--num-prompts", 12, *flags)
            return len({request.connection for request in self.server.prompts()})
        self.assertEqual((connections(), connections("--disable-keep-alive")), (1, 12))

    def test_threads(self):
        reached, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        self.server.hold = lambda: (reached.set(), go_on.wait())
        for flags, expected in ((("--threads", 3), 3), ((), 1)):
            reached.clear()
            go_on.clear()
            with subprocess.Popen(self.command(*flags), stdout=subprocess.DEVNULL) as process:
                self.assertTrue(reached.wait(WAIT))
                tasks = Path(f"/proc/{process.pid}/task")
                wait_until(f"it has {expected} loops", within=10, condition=lambda: expected == sum(
                    (task / "comm").read_text().startswith("bench") for task in tasks.iterdir()))
                go_on.set()


class BenchResultsTest(BenchCase):
    def test_output_file(self):
        path = self.folder / "results"
        self.bench("--output-file", path)
        self.bench("--output-file", path, "--num-prompts", 2)
        self.assertEqual([json.loads(line)["completed"] for line in path.read_text().splitlines()], [3, 2])

    def test_output_details(self):
        self.assertNotIn("generated_texts", self.record())
        details = self.record("--output-details")
        self.assertEqual(details["generated_texts"], 3 * [ANSWER])
        self.assertEqual(details["input_lens"], 3 * [PROMPT_TOKENS])
        self.assertEqual(details["errors"], 3 * [""])

    def test_cache_report(self):
        said = re.compile(r"^Total cached tokens: +(\d+)", re.M)
        self.assertEqual(said.findall(self.bench()), [])
        self.assertEqual(said.findall(self.bench("--cache-report")), [str(3 * CACHED_TOKENS)])

    def test_tag(self):
        self.assertEqual((self.record()["tag"], self.record("--tag", "night")["tag"]), (None, "night"))

    def test_disable_tqdm(self):
        def shown(*flags):
            return shown_on_terminal("stderr", self.command(*flags), WAIT, stdout=subprocess.DEVNULL)
        self.assertNotEqual(shown(), b"", "at least the place of the bar is cleared")
        self.assertEqual(shown("--disable-tqdm"), b"")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
