#!/usr/bin/env python3
"""`sluice server` with real rank processes: data parallelism, death and restart of a rank, failing starts, the end.

usage: server_test.py <sluice binary> <folder of fixtures>"""
import concurrent.futures
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from certificates import Folder, openssl  # noqa: E402
from sluice_process import Sluice, alive, call, descendants, wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
MODEL = FIXTURES / "tiny-llama"
PROMPT = list(range(10, 42))


def server(*more):
    return Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 4096, "--threads", 1, *more)


def generate(url, rank=None, tokens=8, **more):
    body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
            **more}
    if rank is not None:
        body["routed_dp_rank"] = rank
    return call(url + "/generate", body)


def stream(url, tokens, on_event=lambda: None, rank=None, **sampling):
    """(status, events, whether the stream ended with [DONE])."""
    body = {"input_ids": PROMPT, "stream": True,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **sampling}}
    if rank is not None:
        body["routed_dp_rank"] = rank
    request = urllib.request.Request(url + "/generate", data=json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    events = []
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if not line.startswith(b"data:"):
                    continue
                if line[5:].strip() == b"[DONE]":
                    return answer.status, events, True
                events.append(json.loads(line[5:]))
                on_event()
    except urllib.error.HTTPError as error:
        return error.code, events, False
    except OSError:
        pass
    return 200, events, False



def rank_processes(running):
    return sorted(pid for pid, line in descendants(running.process.pid).items() if line.endswith("sluice rank"))


class DataParallelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = server("--dp-size", 3)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def test_every_replica_gives_the_same_greedy_tokens(self):
        answers = []
        for rank in range(3):
            status, _, answer = generate(self.server.url, rank)
            self.assertEqual(status, 200, answer)
            self.assertEqual(answer["meta_info"]["dp_rank"], rank)
            answers.append(answer["output_ids"])
        self.assertEqual(len(answers[0]), 8)
        self.assertEqual(answers, [answers[0]] * 3)

    def test_requests_go_round(self):
        ranks = [generate(self.server.url)[2]["meta_info"]["dp_rank"] for _ in range(6)]
        self.assertEqual(sorted(ranks), [0, 0, 1, 1, 2, 2])

    def test_a_rank_out_of_range_is_400_with_the_range(self):
        status, _, answer = generate(self.server.url, rank=3)
        self.assertEqual(status, 400)
        self.assertIn("0 to 2", json.dumps(answer))

    def test_the_first_prompt_finds_no_trace_of_the_warm_up(self):
        with server() as fresh:
            self.assertEqual(generate(fresh.url)[2]["meta_info"]["cached_tokens"], 0)


class EnvironmentTest(unittest.TestCase):
    def start(self, **variables):
        return subprocess.run([BINARY, "server", "--model-path", MODEL, "--port", "0", "--max-total-tokens", "512"],
                              env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)

    def test_a_variable_that_is_no_number_ends_the_start_by_its_name(self):
        for name in ("SGLANG_INIT_NEW_TOKEN_RATIO", "IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD", "SGLANG_WARMUP_TIMEOUT",
                     "SGLANG_REQ_WAITING_TIMEOUT", "SGLANG_REQ_RUNNING_TIMEOUT", "SGLANG_HEALTH_CHECK_TIMEOUT"):
            run = self.start(**{name: "much"})
            self.assertEqual(run.returncode, 2, run.stderr)
            self.assertIn(f"{name} must be in [", run.stderr)

    def test_a_rank_that_takes_longer_than_the_warm_up_may_ends_the_start(self):
        run = self.start(SGLANG_WARMUP_TIMEOUT="0.000001")
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertIn("rank 0 did not answer the warm-up request within 1e-06 s", run.stderr)

    def test_skip_server_warmup(self):
        with Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 512, "--skip-server-warmup",
                    env={"SGLANG_WARMUP_TIMEOUT": "0.000001"}) as running:
            self.assertEqual(generate(running.url)[0], 200)

    def test_the_ranks_schedule_by_them(self):
        with Sluice(BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 512, "--enable-metrics",
                    env={"SGLANG_INIT_NEW_TOKEN_RATIO": "0.25"}) as running:
            page = urllib.request.urlopen(running.url + "/metrics", timeout=60).read().decode()
            self.assertRegex(page, r"sglang:new_token_ratio\{[^}]*\} 0\.25\n")


class FlagsTest(unittest.TestCase):
    """Flags that need a rank to be seen. One server has them all."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        model = Path(cls.folder.name) / "no-tokenizer"
        shutil.copytree(MODEL, model)
        for file in model.glob("tokenizer*"):
            file.unlink()
        cls.model = model
        template = Path(cls.folder.name) / "template.jinja"
        template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}!")
        cls.server = Sluice(BINARY, "server", "--model-path", model, "--tokenizer-path", MODEL, "--chat-template", template,
                            "--host", "127.0.0.2", "--port", 0, "--max-total-tokens", 160, "--context-length", 64,
                            "--max-running-requests", 3, "--served-model-name", "mine", "--threads", 3)
        cls.info = call(cls.server.url + "/server_info")[2]

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()
        cls.folder.cleanup()

    def test_host(self):
        self.assertTrue(self.server.url.startswith("http://127.0.0.2:"), self.server.url)
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", int(self.server.url.rsplit(":", 1)[1])), 10)

    def test_tokenizer_path(self):
        status, _, answer = call(self.server.url + "/tokenize", {"prompt": "hello"})
        self.assertEqual(status, 200, answer)
        run = subprocess.run([BINARY, "server", "--model-path", self.model, "--port", "0"], capture_output=True, text=True,
                             timeout=60)
        self.assertNotEqual(run.returncode, 0, "the model's own folder has none")

    def test_chat_template(self):
        count = len(call(self.server.url + "/tokenize", {"prompt": "hello!"})[2]["tokens"])
        status, _, answer = call(self.server.url + "/v1/chat/completions", {
            "model": "mine", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1})
        self.assertEqual(status, 200, answer)
        self.assertEqual(answer["usage"]["prompt_tokens"], count)

    def test_context_length(self):
        status, _, answer = call(self.server.url + "/generate", {"input_ids": [5] * 64})
        self.assertEqual(status, 400)
        self.assertIn("context length (64 tokens)", json.dumps(answer))

    def test_max_total_tokens(self):
        self.assertEqual(self.info["internal_states"][0]["memory_usage"]["token_capacity"], 160)

    def test_max_running_requests(self):
        self.assertEqual(self.info["internal_states"][0]["effective_max_running_requests_per_dp"], 3)

    def test_served_model_name(self):
        self.assertEqual(call(self.server.url + "/v1/models")[2]["data"][0]["id"], "mine")

    def test_threads(self):
        def tasks(running):
            return len(os.listdir(f"/proc/{rank_processes(running)[0]}/task"))

        self.assertEqual(generate(self.server.url)[0], 200)
        with server() as one:  # --threads 1
            self.assertEqual(generate(one.url)[0], 200)
            self.assertEqual(tasks(self.server) - tasks(one), 2)

    def test_random_seed(self):
        body = {"input_ids": PROMPT, "sampling_params": {"temperature": 1.5, "max_new_tokens": 12, "ignore_eos": True}}

        def first(*flags):
            with server(*flags, "--dtype", "float32") as running:
                return call(running.url + "/generate", body)[2]["output_ids"]
        self.assertEqual(first("--random-seed", 5), first("--random-seed", 5))
        self.assertNotEqual(first("--random-seed", 5), first("--random-seed", 6))


class CertificateTest(unittest.TestCase):
    def test_it_speaks_https_with_those_who_have_a_certificate(self):
        folder = Folder()
        folder.authority("authority")
        folder.make("server", "authority")
        folder.make("client", "authority")
        openssl("pkcs8", "-topk8", "-in", folder / "server.key", "-out", folder / "server.locked", "-passout", "pass:sesame")
        with server("--ssl-certfile", folder / "server.pem", "--ssl-keyfile", folder / "server.locked",
                    "--ssl-keyfile-password", "sesame", "--ssl-ca-certs", folder / "authority.pem") as running:
            self.assertTrue(running.url.startswith("https://"), running.url)
            context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
            with self.assertRaises(OSError):
                urllib.request.urlopen(running.url + "/health", timeout=60, context=context).read()
            context.load_cert_chain(folder / "client.pem", folder / "client.key")
            with urllib.request.urlopen(running.url + "/server_info", timeout=60, context=context) as answer:
                info = json.load(answer)
            self.assertEqual(info["ssl_certfile"], str(folder / "server.pem"))
            self.assertNotIn("sesame", json.dumps(info))
            body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 4}}
            request = urllib.request.Request(running.url + "/generate", data=json.dumps(body).encode(),
                                             headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                self.assertEqual(len(json.load(answer)["output_ids"]), 4)


class DeathTest(unittest.TestCase):
    def test_a_rank_killed_under_load_costs_only_what_it_had_begun_and_comes_back(self):
        with server("--dp-size", 2) as running:
            before = rank_processes(running)
            self.assertEqual(len(before), 2)
            begun, outcomes, lock = threading.Semaphore(0), [], threading.Lock()

            def one_stream():
                first = []

                def on_event():
                    if not first:
                        first.append(True)
                        begun.release()
                outcome = stream(running.url, 1500, on_event)
                with lock:
                    outcomes.append(outcome)

            threads = [threading.Thread(target=one_stream) for _ in range(8)]
            for thread in threads:
                thread.start()
            for _ in range(4):
                self.assertTrue(begun.acquire(timeout=60), "streams did not start")
            os.kill(before[0], signal.SIGKILL)
            late = [generate(running.url)[0] for _ in range(8)]
            for thread in threads:
                thread.join(120)
            self.assertEqual(late, [200] * 8, "the other rank serves")
            self.assertEqual(len(outcomes), 8)
            for status, events, done in outcomes:
                self.assertEqual(status, 200)
                finished = done and len(events[-1]["output_ids"]) == 1500
                ended = any("500" in json.dumps(event) and "rank" in json.dumps(event) for event in events[-1:])
                self.assertTrue(finished or ended, events[-1:])
            after = wait_until("two ranks again", lambda: (pids := rank_processes(running)) and len(pids) == 2 and
                               all(generate(running.url, rank)[0] == 200 for rank in (0, 1)) and pids)
            self.assertNotEqual(before, after)
            self.assertEqual(len(set(before) & set(after)), 1, "one rank is a new process")

    def test_x9_a_rank_killed_while_it_holds_an_answer_to_a_grammar(self):
        held = {"regex": "[ab]+", "min_new_tokens": 1900}
        with server("--dp-size", 2) as running:
            if call(running.url + "/server_info")[2]["grammar_backend"] == "none":
                self.skipTest("this build is without grammars")
            pids = [state["pid"] for state in call(running.url + "/server_info")[2]["internal_states"]]
            begun = [threading.Event() for _ in pids]
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                both = [pool.submit(stream, running.url, 1900, begun[rank].set, rank, **held) for rank in (0, 1)]
                for event in begun:
                    self.assertTrue(event.wait(60), "streams did not start")
                os.kill(pids[0], signal.SIGKILL)
                (status, cut, _), (other, whole, done) = (each.result(180) for each in both)
            self.assertEqual((status, other), (200, 200))
            self.assertIn("rank 0 ended: killed by SIGKILL", json.dumps(cut[-1]))
            for event in cut[:-1]:
                self.assertRegex(event["text"], "^[ab]*$")
            self.assertTrue(done)
            self.assertEqual(len(whole[-1]["output_ids"]), 1900)
            self.assertRegex(whole[-1]["text"], "^[ab]+$")
            wait_until("the rank again", lambda: generate(running.url, 0)[0] == 200)
            status, again, done = stream(running.url, 20, rank=0, regex="[ab]+", min_new_tokens=20)
            self.assertEqual((status, done), (200, True))
            self.assertRegex(again[-1]["text"], "^[ab]+$")

    def test_a_grammar_is_not_to_blame_for_a_compiler_that_is_killed(self):
        with server() as running:
            if call(running.url + "/server_info")[2]["grammar_backend"] == "none":
                self.skipTest("this build is without grammars")
            self.assertEqual(stream(running.url, 4, regex="[ab]+")[0], 200)
            (rank,) = rank_processes(running)
            for how in (signal.SIGKILL, signal.SIGTERM):
                compilers = [int(pid) for task in Path(f"/proc/{rank}/task").iterdir()
                             for pid in (task / "children").read_text().split()]
                self.assertEqual(len(compilers), 1)
                os.kill(compilers[0], how)
                status, events, _ = stream(running.url, 4, regex=f"[ab{how}]+")
                self.assertEqual(status, 200, events)

    def test_a_rank_that_is_stopped_is_named_with_its_stack_and_replaced(self):
        with server("--dp-size", 2, "--watchdog-timeout", 2) as running:
            before = rank_processes(running)
            ranks = {state["pid"]: rank for rank, state in
                     enumerate(call(running.url + "/server_info")[2]["internal_states"])}
            os.kill(before[0], signal.SIGSTOP)
            stopped = ranks[before[0]]
            # Nothing was answered there, so the other rank takes over.
            answers = [generate(running.url) for _ in range(2)]
            self.assertEqual([(status, answer["meta_info"]["dp_rank"]) for status, _, answer in answers],
                             [(200, 1 - stopped)] * 2)
            self.assertIn(f"rank {stopped} hangs: no progress for", running.output())
            self.assertIn("its process is stopped", running.output())
            self.assertRegex(running.output(), f"rank {stopped}, thread .*: .*(poll|RankLink|receive)")
            wait_until("the rank again", lambda: generate(running.url, stopped)[0] == 200)
            self.assertNotIn(before[0], rank_processes(running))

    def test_without_any_rank_requests_are_503_until_it_is_back(self):
        with server() as running:
            os.kill(rank_processes(running)[0], signal.SIGKILL)
            self.assertEqual(wait_until("the end is seen", lambda: (s := generate(running.url)[0]) != 200 and s), 503)
            wait_until("it serves again", lambda: generate(running.url)[0] == 200)


class BackgroundTest(unittest.TestCase):
    """Answers of /v1/responses that are fetched later."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        template = Path(folder.name) / "chat.jinja"
        template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        self.server = server("--dp-size", 2, "--chat-template", template)
        self.addCleanup(self.server.kill)

    def begin(self, rank, tokens=1900):
        body = {"input": "hello", "background": True, "max_output_tokens": tokens, "ignore_eos": True, "temperature": 0,
                "routed_dp_rank": rank}
        status, _, answer = call(self.server.url + "/v1/responses", body)
        self.assertEqual((status, answer["status"]), (200, "queued"))
        return answer["id"]

    def fetch(self, response):
        return call(f"{self.server.url}/v1/responses/{response}")[2]

    def wait_for(self, response, *states):
        return wait_until(f"it is {states}", lambda: (now := self.fetch(response))["status"] in states and now, every=0.005)

    def test_one_whose_rank_dies_has_failed_and_the_others_go_on(self):
        lost, kept = self.begin(0), self.begin(1, tokens=200)
        self.wait_for(lost, "in_progress")
        os.kill(call(self.server.url + "/server_info")[2]["internal_states"][0]["pid"], signal.SIGKILL)
        failed = self.wait_for(lost, "failed", "incomplete", "completed")
        self.assertEqual(failed["status"], "failed")
        self.assertEqual(failed["error"]["code"], "server_error")
        self.assertIn("rank 0", failed["error"]["message"])
        self.assertEqual(self.wait_for(kept, "incomplete")["usage"]["output_tokens"], 200)

    def test_the_end_of_the_server_names_them_and_is_not_delayed(self):
        names = [self.begin(rank) for rank in (0, 1)]
        for name in names:
            self.wait_for(name, "in_progress")
        self.assertEqual(self.server.stop(signal.SIGTERM), 0)
        for name in names:
            self.assertIn(name, self.server.output())


class StartTest(unittest.TestCase):
    def fails(self, *arguments):
        run = subprocess.run([BINARY, "server", "--port", "0", *map(str, arguments)], capture_output=True, text=True,
                             timeout=60)
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertEqual(run.stdout, "")
        return run.stderr.strip().splitlines()[-1]

    def test_weights_that_are_cut_short_end_it_naming_rank_and_file(self):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            shutil.copytree(MODEL, model)
            weights = model / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)
            line = self.fails("--model-path", model, "--dp-size", 2)
        self.assertRegex(line, r"^sluice: rank [01] failed to start: .*model\.safetensors")

    def test_a_port_that_is_taken_is_said_before_the_model_loads(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            run = subprocess.run([BINARY, "server", "--model-path", MODEL, "--port", port], capture_output=True,
                                 text=True, timeout=60)
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
        self.assertIn(port, run.stderr)

    def test_a_model_that_is_not_there_is_one_line(self):
        self.assertIn("/no/such/model", self.fails("--model-path", "/no/such/model"))

    def test_each_process_has_a_name_on_its_answers(self):
        def names(running):
            seen = []
            for path in ("/health", "/nothing"):
                try:
                    with urllib.request.urlopen(running.url + path, timeout=60) as answer:
                        seen.append(answer.headers["X-Sluice-Process"])
                except urllib.error.HTTPError as error:
                    seen.append(error.headers["X-Sluice-Process"])
            self.assertEqual(len(set(seen)), 1, seen)
            return seen[0]

        with server() as running:
            first = names(running)
        with server() as running:
            second = names(running)
        self.assertRegex(first, "^[0-9a-f]{16}$")
        self.assertNotEqual(first, second)

    def test_old_method_names_are_taken_and_said_to_be_old(self):
        with server("--load-balance-method", "shortest_queue") as running:
            self.assertIn("use total_requests", running.output())


def listening_port(pid):
    """The TCP port on which a process listens, or None."""
    try:
        sockets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return None
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                return int(columns[1].split(":")[1], 16)
    return None


class LoadingTest(unittest.TestCase):
    """A server whose rank waits for the weights, because this test holds their lock as a rank that packs them would."""

    def setUp(self):
        self.weights = os.memfd_create("weights")
        fcntl.flock(self.weights, fcntl.LOCK_EX)
        self.process = subprocess.Popen([BINARY, "server", "--model-path", MODEL, "--port", "0"], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=[self.weights],
                                        env={**os.environ, "SLUICE_WEIGHTS_FD": str(self.weights)})
        self.port = wait_until("the port is bound", lambda: listening_port(self.process.pid))
        self.ranks = wait_until("the rank is started", lambda: descendants(self.process.pid))

    def tearDown(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        os.close(self.weights)

    def test_requests_are_503_until_the_model_is_there(self):
        status, headers, _ = call(f"http://127.0.0.1:{self.port}/health")
        self.assertEqual((status, headers["Retry-After"]), (503, "1"))
        fcntl.flock(self.weights, fcntl.LOCK_UN)
        self.assertEqual(self.process.stdout.readline(), f"listening on http://127.0.0.1:{self.port}\n")
        self.assertEqual(call(f"http://127.0.0.1:{self.port}/health")[0], 200)

    def test_sigterm_ends_it(self):
        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.process.wait(60), 0)
        self.assertEqual(self.process.stdout.read(), "")
        self.assertFalse([pid for pid in self.ranks if alive(pid)])

    def test_the_death_of_the_rank_ends_it(self):
        os.kill(min(self.ranks), signal.SIGKILL)
        self.assertEqual(self.process.wait(60), 1)


class SchedulingTest(unittest.TestCase):
    def together(self, url, prompts):
        """The output ids of all prompts, sent at once."""
        answers = [None] * len(prompts)

        def one(i):
            body = {"input_ids": prompts[i], "priority": i % 3, "routing_key": f"key{i % 2}",
                    "sampling_params": {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}}
            answers[i] = call(url + "/generate", body)[2]
        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return answers

    def test_a_cache_of_eight_bits(self):
        prompts = [[10 + i] * 3 + [20 + (i * k) % 50 for k in range(30 + 7 * i)] for i in range(3)]
        with server("--dtype", "float32", "--kv-cache-dtype", "fp8_e4m3") as running:
            state = call(running.url + "/server_info")[2]
            self.assertEqual(state["kv_cache_dtype"], "fp8_e4m3")
            # Three layers, keys and values of two heads of 16, a scale for each.
            self.assertEqual(state["internal_states"][0]["kv_bytes_per_token"], 3 * 2 * 2 * (16 + 4))
            first = [answer["output_ids"] for answer in self.together(running.url, prompts)]
            again = self.together(running.url, prompts)
            self.assertEqual([answer["output_ids"] for answer in again], first)
            self.assertTrue(all(answer["meta_info"]["cached_tokens"] > 30 for answer in again))

    def test_whatever_the_schedule_each_request_gets_its_own_tokens(self):
        prompts = [[10 + (i % 3)] * 3 + [20 + (i * k) % 50 for k in range(30 + 7 * i)] for i in range(12)]
        with server("--dtype", "float32", "--max-running-requests", 1) as alone:
            expected = [answer["output_ids"] for answer in self.together(alone.url, prompts)]
        small = ("--dtype", "float32", "--max-running-requests", 4, "--chunked-prefill-size", 16)
        for flags in (("--page-size", 8, "--radix-eviction-policy", "lfu", "--schedule-policy", "lpm"),
                      ("--page-size", 16, "--enable-mixed-chunk", "--schedule-policy", "lof"),
                      ("--enable-mixed-chunk", "--mixed-chunk-gap", 1.5, "--schedule-policy", "priority",
                       "--priority-scheduling-preemption-threshold", 0),
                      ("--schedule-policy", "dfs-weight"), ("--schedule-policy", "routing-key"),
                      ("--device", "sim", "--disable-overlap-schedule"), ("--device", "sim")):
            with server(*small, *flags) as running:
                answers = self.together(running.url, prompts)
                self.assertEqual([answer["output_ids"] for answer in answers], expected, flags)

    def test_the_latent_cache_has_the_bytes_of_its_formula(self):
        """Of each layer the latent and the rotary part: 32 and 16 values, in 8 bits with a float32 scale for each 16 of them."""
        for kind, of_a_layer in (("auto", 48 * 4), ("bfloat16", 48 * 2), ("fp8_e4m3", 48 + 3 * 4)):
            with Sluice(BINARY, "server", "--model-path", FIXTURES / "tiny-deepseek-v3", "--port", 0, "--threads", 1,
                        "--dtype", "float32", "--max-total-tokens", 1024, "--kv-cache-dtype", kind) as running:
                state = call(running.url + "/server_info")[2]["internal_states"][0]
                self.assertEqual(state["kv_bytes_per_token"], 3 * of_a_layer, kind)
                self.assertGreaterEqual(state["memory_usage"]["kvcache"] * 2**30, 1024 * 3 * of_a_layer, kind)

    def test_the_samples_of_a_prompt_share_it(self):
        with server() as running:
            body = {"input_ids": PROMPT, "sampling_params": {"n": 4, "max_new_tokens": 6, "ignore_eos": True, "sampling_seed": 7}}
            status, _, samples = call(running.url + "/generate", body)
            self.assertEqual(status, 200, samples)
            self.assertEqual([sample["meta_info"]["cached_tokens"] for sample in samples], [0] + [len(PROMPT) - 1] * 3)
            self.assertGreater(len({tuple(sample["output_ids"]) for sample in samples}), 1, "each has its own draws")
            again = call(running.url + "/generate", body)[2]
            self.assertEqual([sample["meta_info"]["cached_tokens"] for sample in again], [len(PROMPT) - 1] * 4)

    def test_a_seed_repeats_a_sample_beside_others(self):
        """The draws depend on nothing else; the probabilities are those of float32 sums, whose last bits differ with the batch."""
        def draw(url, seed, tokens=24):
            body = {"input_ids": PROMPT, "sampling_params": {"temperature": 1.5, "max_new_tokens": tokens, "ignore_eos": True,
                                                             "sampling_seed": seed}}
            return call(url + "/generate", body)[2]["output_ids"]

        with server("--dtype", "float32", "--disable-radix-cache", "--enable-mixed-chunk") as running:
            alone = [draw(running.url, seed) for seed in range(4)]
            self.assertEqual(len({tuple(ids) for ids in alone}), 4)
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                crowd = [pool.submit(draw, running.url, 100 + i, 60) for i in range(20)]
                among = [pool.submit(draw, running.url, seed) for seed in range(4)]
                self.assertEqual([each.result() for each in among], alone)
                self.assertEqual(len({tuple(each.result()) for each in crowd}), 20)

    def test_a_priority_is_refused_where_it_is_disabled(self):
        with server("--abort-on-priority-when-disabled") as running:
            self.assertEqual(generate(running.url)[0], 200)
            status, _, answer = generate(running.url, priority=1)
            self.assertEqual(status, 503)
            self.assertIn("priority is disabled", json.dumps(answer))

    def test_a_second_turn_on_minimax_text_01_uses_the_first(self):
        def turns(*flags):
            with Sluice(BINARY, "server", "--model-path", FIXTURES / "tiny-minimax-text-01", "--port", 0, "--threads", 1,
                        "--dtype", "float32", "--max-total-tokens", 4096, "--chunked-prefill-size", 16, *flags) as running:
                first = generate(running.url)[2]
                history = PROMPT + first["output_ids"] + [11, 12, 13]
                body = {"input_ids": history, "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}}
                second = call(running.url + "/generate", body)[2]
                return second["output_ids"], second["meta_info"]["cached_tokens"]
        ids, cached = turns()
        self.assertEqual(cached, len(PROMPT) + 7, "all that was computed in the first turn")
        self.assertEqual(turns("--disable-radix-cache"), (ids, 0))
        self.assertEqual(turns("--device", "sim"), (ids, cached), "states are copied where the host cannot reach them")


class LogTest(unittest.TestCase):
    def test_r29_a_log_that_is_not_read_or_on_a_full_disk_costs_no_request(self):
        reads_nothing, its = os.pipe()
        for what, stderr in ("a pipe that nobody reads", its), ("a full disk", os.open("/dev/full", os.O_WRONLY)):
            with self.subTest(what):
                # A line per step, so that some 400 steps are more than the pipe holds.
                process = subprocess.Popen([BINARY, "server", "--model-path", MODEL, "--port", "0", "--threads", "1", "--dp-size",
                                            "2", "--max-total-tokens", "4096", "--decode-log-interval", "1"],
                                           stdout=subprocess.PIPE, stderr=stderr, text=True)
                try:
                    url = process.stdout.readline().split()[-1]
                    for rank in (0, 1, 0):
                        status, _, answer = generate(url, rank, tokens=600)
                        self.assertEqual((status, len(answer["output_ids"])), (200, 600))
                    process.send_signal(signal.SIGTERM)
                    self.assertEqual(process.wait(60), 0)
                finally:
                    process.kill()
                    process.wait()
                    process.stdout.close()
            os.close(stderr)
        self.assertGreater(len(os.read(reads_nothing, 1 << 20)), 4096, "it was full")
        os.close(reads_nothing)


class TopTest(unittest.TestCase):
    def top(self, *arguments):
        return subprocess.run([BINARY, "top", *map(str, arguments)], capture_output=True, text=True, timeout=120)

    def test_it_shows_every_rank_once_or_again_and_again_on_a_terminal(self):
        with server("--dp-size", 2, "--api-key", "secret") as running:
            refused = self.top("--url", running.url, "--once")
            self.assertEqual((refused.returncode, refused.stdout), (1, ""))
            self.assertIn("--api-key", refused.stderr)
            once = self.top("--url", running.url, "--once", "--api-key", "secret")
            self.assertEqual(once.returncode, 0, once.stderr)
            lines = once.stdout.splitlines()
            self.assertIn("2 ranks, 0 running, 0 waiting, KV 0 %", lines[0])
            self.assertEqual([line.split()[:5] for line in lines[3:]],
                             [["0", "0", "0", "0", "4096"], ["1", "0", "0", "0", "4096"]])
            mine, its = pty.openpty()
            watching = subprocess.Popen([BINARY, "top", "--url", running.url, "--interval", "0.1"], stdout=its,
                                        env={**os.environ, "OPENAI_API_KEY": "secret"})
            os.close(its)
            seen = b""
            while seen.count(b"2 ranks") < 3:  # ends with an error when the command ends
                seen += os.read(mine, 4096)
            watching.send_signal(signal.SIGINT)
            self.assertEqual(watching.wait(60), 0)
            os.close(mine)

    def test_a_server_that_is_not_there_is_one_line(self):
        gone = self.top("--url", "http://127.0.0.1:1", "--once")
        self.assertEqual((gone.returncode, gone.stdout), (1, ""))
        self.assertEqual(len(gone.stderr.splitlines()), 1, gone.stderr)
        self.assertEqual(self.top("--url", "nonsense://", "--once").returncode, 2)


class EndTest(unittest.TestCase):
    def test_sigterm_lets_a_stream_end(self):
        with server() as running:
            begun = threading.Event()
            outcome = []
            thread = threading.Thread(target=lambda: outcome.append(stream(running.url, 1000, begun.set)))
            thread.start()
            self.assertTrue(begun.wait(60))
            self.assertEqual(running.stop(signal.SIGTERM), 0)
            thread.join(60)
            _, events, done = outcome[0]
            self.assertTrue(done)
            self.assertEqual(len(events[-1]["output_ids"]), 1000)

    def test_no_rank_survives_kill_9_of_the_front(self):
        with server("--dp-size", 2) as running:
            ranks = rank_processes(running)
            self.assertEqual(len(ranks), 2)
            running.kill()
            wait_until("no rank is left", lambda: not any(alive(pid) for pid in ranks), within=30)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
