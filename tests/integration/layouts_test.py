#!/usr/bin/env python3
"""Instances of the model that are divided among ranks: tensor parallelism, DP attention and expert parallelism give the
tokens of one rank; what becomes of them when a rank dies or hangs; that they sleep when nothing is asked.

usage: layouts_test.py <sluice binary> <folder of fixtures>"""
import concurrent.futures
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(__file__))
from layout_fixture import (CLOSEST_TIE, DEEPEP, DPA, MIXED, NEAR_TIE, STEP, THROW, Sluice, answers, call, differences, fill_pools, generate, holds_nothing,  # noqa: E402
                            mixed_seconds, preload_throwing, rank_processes, sanitized, start_server, waits_without_limit, workload)

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import wait_until  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../bench/dpa"))
import step_breakdown  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])


def server(model, *more, env=None):
    return start_server(BINARY, FIXTURES / model, *more, env=env)


class TokensTest(unittest.TestCase):
    """Greedy tokens of many requests at once, of any length, some of them cut short, against those of one rank."""

    def compare(self, model, *layouts, count=40):
        requests = workload(count, cut_short=0.2)
        with server(model) as alone:
            want = answers(alone.url, [dataclasses.replace(request, end="whole") for request in requests])
        for layout in layouts:
            with self.subTest(model=model, layout=" ".join(map(str, layout))), server(model, *layout) as divided:
                parted = differences(requests, answers(divided.url, requests), want)
                self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                self.assertLess(len(parted), count / 10)
                wait_until("an instance that holds nothing", lambda: holds_nothing(divided.url))

    def test_dense_model(self):
        self.compare("tiny-llama", ("--tp", 4), ("--tp", 4, "--dp-size", 2, *DPA),
                     ("--tp", 2, "--dp-size", 2, *DPA, "--enable-dp-lm-head", "--moe-dense-tp-size", 1),
                     ("--tp", 2, "--dp-size", 2))

    def test_latent_attention_with_experts(self):
        self.compare("tiny-deepseek-v3", ("--tp", 4, "--ep", 2), ("--tp", 4, "--dp-size", 4, *DPA),
                     ("--tp", 4, "--dp-size", 4, *DPA, "--ep", 4, *DEEPEP),
                     ("--tp", 4, "--dp-size", 2, *DPA, "--ep", 4, *DEEPEP, "--moe-dense-tp-size", 1, "--enable-dp-lm-head"))

    def test_experts_of_every_token_are_computed_while_rows_are_on_their_way(self):
        layout = ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--enable-single-batch-overlap")
        requests = workload(16)
        with server("tiny-deepseek-v3") as alone:
            want = answers(alone.url, requests)
        with server("tiny-deepseek-v3", *layout) as divided:
            parted = differences(requests, answers(divided.url, requests), want)
            self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
            for rank in call(divided.url + "/server_info")[2]["internal_states"]:
                self.assertEqual(rank["split_steps"], 0)
                self.assertTrue(0 < rank["covered_seconds"] <= rank["wire_seconds"], rank)

    def test_steps_of_a_fixed_shape(self):
        layout = ("--tp", 2, "--dp-size", 2, *DPA, "--dp-fixed-shape-max-bs", 8)
        self.compare("tiny-deepseek-v3", layout)
        with server("tiny-deepseek-v3", *layout) as divided:
            def steps():
                return [(state["group_steps"], state["fixed_shape_steps"]) for state in call(divided.url + "/server_info")[2]["internal_states"]]

            before = steps()
            self.assertEqual(generate(divided.url, [5, 6, 7], 10)[0], 200)
            # A prompt has the length that it has.
            want = [(every + 10, fixed + 9) for every, fixed in before]
            wait_until("the figures of the last step", lambda: steps() == want)

    def test_deterministic(self):
        """No token differs, also of those that are drawn, whichever group draws them."""
        for model, tp, more in (("tiny-llama", 4, ()), ("tiny-deepseek-v3", 2, DEEPEP), ("tiny-qwen3-moe", 4, DEEPEP)):
            requests = workload(16, cut_short=0.2)

            def draw(url):
                return [generate(url, [i + 1] * 9, 8, temperature=1)[2]["output_ids"] for i in range(4)]

            with server(model, "--deterministic") as alone:
                want = answers(alone.url, [dataclasses.replace(request, end="whole") for request in requests])
                want_drawn = draw(alone.url)
            self.assertEqual(len(set(map(tuple, want_drawn))), 4)
            with self.subTest(model=model, tp=tp), server(model, "--deterministic", "--tp", tp, "--dp-size", 2, *DPA, *more) as divided:
                parted = differences(requests, answers(divided.url, requests), want)
                self.assertTrue(all(margin < CLOSEST_TIE for _, margin in parted), parted)
                self.assertEqual(draw(divided.url), want_drawn)
                self.assertIn(" in f32", "".join(divided.lines))

    def test_grouped_attention_with_experts(self):
        self.compare("tiny-qwen3-moe", ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP))


class DpAttentionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = server("tiny-deepseek-v3", "--tp", 4, "--dp-size", 2, *DPA, "--enable-metrics", *DEEPEP)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def test_what_dp_attention_changes_is_logged(self):
        log = "".join(self.server.lines)
        self.assertIn("--ep-size 1 -> 4", log)
        self.assertIn("--chunked-prefill-size 512 -> 256", log)
        self.assertIn("--schedule-conservativeness 1 -> 0.3", log)
        self.assertIn("DP attention: 2.0 times as many unique tokens for the same memory of keys and values\n", log)

    def test_a_model_whose_keys_and_values_gain_nothing_says_so(self):
        with server("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA) as running:
            log = "".join(running.lines)
        self.assertIn("DP attention: 1.0 times as many unique tokens for the same memory of keys and values: this model gains none, and each "
                      "group has its own copy of the attention weights", log)

    def test_dp_attention_of_one_rank_is_off_and_says_so(self):
        with server("tiny-deepseek-v3", "--tp", 2, "--dp-size", 1, *DPA) as running:
            self.assertIn("--enable-dp-attention is off: --dp-size is 1", "".join(running.lines))
            self.assertEqual(generate(running.url, [3, 4, 5], 2)[2]["meta_info"]["completion_tokens"], 2)
            self.assertEqual(len(call(running.url + "/v1/loads")[2]["loads"]), 1)

    def test_a_profile_has_the_steps_of_all_ranks_by_phase(self):
        with tempfile.TemporaryDirectory() as folder:
            status, _, answer = call(self.server.url + "/start_profile", {"output_dir": folder, "profile_prefix": "p", "profile_id": "1"})
            self.assertEqual(status, 200, answer)
            self.assertEqual(generate(self.server.url, list(range(40)), 8, 1)[0], 200)
            self.assertEqual(call(self.server.url + "/stop_profile", method="POST")[0], 200)
            ranks = step_breakdown.read(Path(folder) / f"p-1-rank-{rank}.steps.json" for rank in range(4))
        self.assertEqual(list(ranks), [0, 1, 2, 3])
        decoding = step_breakdown.common(ranks)
        self.assertGreaterEqual(len(decoding), 7)
        self.assertTrue(step_breakdown.common(ranks, extend=True))
        for rank, steps in ranks.items():
            for number in decoding:
                step = steps[number]
                self.assertEqual(step["tokens"], 1 if rank >= 2 else 0, "one group has the request, the other has none")
                self.assertLessEqual({"exchange", "attention", "gather", "dispatch", "experts", "combine", "scatter", "head"},
                                     set(step["spent_us"]))
                self.assertAlmostEqual(sum(step["spent_us"].values()), step["ended_us"] - step["arrived_us"], delta=1)
        for exchange, skew, whole in step_breakdown.sync_rows(ranks, decoding):
            self.assertGreater(exchange, 0, "nobody leaves before the last has come")
            self.assertLessEqual(exchange, whole)
            self.assertGreaterEqual(skew, 0)
        self.assertEqual([rank for rank, _ in step_breakdown.table(ranks, decoding)], [0, 1, 2, 3])

    def test_prompts_may_wait_for_each_other_and_all_have_the_tokens_of_one_rank(self):
        requests = workload(24, seed=9)
        with server("tiny-deepseek-v3") as alone:
            want = answers(alone.url, requests)
        for more in (("--enable-prefill-delayer", "--prefill-delayer-max-delay-passes", 8),
                     ("--enable-prefill-delayer", "--prefill-delayer-token-usage-low-watermark", 0.5, *MIXED)):
            with self.subTest(more=more), server("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *more) as running:
                parted = differences(requests, answers(running.url, requests), want)
                self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                self.assertLess(len(parted), 3)
                if "--enable-mixed-chunk" in more:
                    self.assertGreater(mixed_seconds(running.url), 0)

    def test_each_group_serves_the_requests_that_name_it(self):
        for rank in (0, 1):
            status, _, answer = generate(self.server.url, list(range(20, 40)), 4, rank)
            self.assertEqual((status, answer["meta_info"]["dp_rank"]), (200, rank), answer)
        status, _, answer = generate(self.server.url, [1], 1, 2)
        self.assertEqual(status, 400, answer)

    def test_a_prefix_is_cached_by_the_group_that_computed_it(self):
        ids = list(range(100, 140))
        self.assertEqual(generate(self.server.url, ids, 2, 0)[2]["meta_info"]["cached_tokens"], 0)
        self.assertEqual(generate(self.server.url, ids, 2, 0)[2]["meta_info"]["cached_tokens"], 39)
        self.assertEqual(generate(self.server.url, ids, 2, 1)[2]["meta_info"]["cached_tokens"], 0)

    def test_requests_that_begin_alike_go_where_the_beginning_is_cached(self):
        with server("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA, "--load-balance-method", "cache_aware") as running:
            groups = {start: {generate(running.url, list(range(start, start + 120)) + [i], 2)[2]["meta_info"]["dp_rank"]
                              for i in range(6)} for start in (0, 130, 260, 380)}
            self.assertTrue(all(len(ranks) == 1 for ranks in groups.values()), groups)
            self.assertEqual(len(set.union(*groups.values())), 2, "all went to one rank")

    def test_requests_go_to_the_group_with_fewer_requests_or_fewer_tokens(self):
        """One group has one request of many tokens, the other two of few."""
        for method, chosen in (("total_requests", 0), ("total_tokens", 1)):
            with self.subTest(method=method), concurrent.futures.ThreadPoolExecutor() as pool, \
                    server("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA, "--load-balance-method", method) as running:
                busy = [pool.submit(generate, running.url, [7] * length, 1000, group) for length, group in ((900, 0), (5, 1), (6, 1))]
                wait_until("all three running", every=0.005, condition=lambda: [
                    load["num_running_reqs"] for load in call(running.url + "/v1/loads")[2]["loads"]] == [1, 2])
                went = [generate(running.url, [i, 3, 4], 1)[2]["meta_info"]["dp_rank"] for i in range(4)]
                self.assertFalse(any(request.done() for request in busy), "they have ended too soon")
                call(running.url + "/abort_request", {"abort_all": True})
                self.assertEqual(went, [chosen] * 4)

    def test_flushing_reaches_every_group(self):
        ids = list(range(200, 240))
        for rank in (0, 1):
            generate(self.server.url, ids, 2, rank)
        self.assertEqual(call(self.server.url + "/flush_cache", method="POST")[0], 200)
        for rank in (0, 1):
            self.assertEqual(generate(self.server.url, ids, 2, rank)[2]["meta_info"]["cached_tokens"], 0)

    def test_a_pause_stops_every_group_and_what_runs_goes_on_after_it(self):
        def under_way(pending):
            loads = call(self.server.url + "/v1/loads")[2]["loads"]
            return [load["num_running_reqs"] for load in loads] == [1, 1] or any(future.done() for future in pending)

        want = [generate(self.server.url, [7 + rank] * 20, 500, rank)[2]["output_ids"] for rank in (0, 1)]
        for mode in ("retract", "in_place"):
            with self.subTest(mode=mode), concurrent.futures.ThreadPoolExecutor(2) as pool:
                running = [pool.submit(generate, self.server.url, [7 + rank] * 20, 500, rank) for rank in (0, 1)]
                wait_until("a request on each group", lambda: under_way(running), every=0.002)
                self.assertEqual(call(self.server.url + "/pause_generation", {"mode": mode})[0], 200)
                self.assertEqual(call(self.server.url + "/continue_generation", {})[0], 200)
                self.assertEqual([answer.result()[2]["output_ids"] for answer in running], want)

    def test_idle_ranks_sleep_until_something_comes(self):
        generate(self.server.url, [1, 2, 3], 2)
        # Once the rates that they publish are 0.
        wait_until("every thread of four ranks waiting without a limit",
                   lambda: all(waits_without_limit(task) for pid in rank_processes(self.server) for task in Path(f"/proc/{pid}/task").iterdir()))


class DummyTest(unittest.TestCase):
    """A published configuration at its real dimensions, with weights that nobody trained."""

    def folder(self, published):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        shutil.copy(FIXTURES / "published-configs" / f"{published}.json", os.path.join(folder.name, "config.json"))
        shutil.copy(FIXTURES / "tokenizer-qwen3" / "tokenizer.json", folder.name)
        return folder.name

    def test_layers_of_real_dimensions_are_served_by_any_layout(self):
        model = self.folder("Qwen3-30B-A3B")
        said = set()
        for layout in ((), ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP)):
            with Sluice(BINARY, "server", "--model-path", model, "--load-format", "dummy", "--port", 0, "--max-total-tokens", 256,
                        "--json-model-override-args", '{"num_hidden_layers": 1, "vocab_size": 2048}', *layout) as running:
                status, _, answer = generate(running.url, list(range(40)), 1)
                self.assertEqual(status, 200, answer)
                said.add(tuple(answer["output_ids"]))
                # Keys and values of four heads, in what the machine multiplies.
                self.assertIn(call(running.url + "/server_info")[2]["internal_states"][0]["kv_bytes_per_token"],
                              (2 * 4 * 128 * 2, 2 * 4 * 128 * 4))
        self.assertEqual(len(said), 1)

    def test_pools_hold_as_many_times_the_unique_tokens_as_the_formula_says(self):
        """Until the first retraction, for the same bytes of keys and values on each rank. Tokens are counted; bytes are those of the plan, as slots are."""
        tp, dpa = ("--tp", 4), ("--tp", 4, "--dp-size", 4, *DPA)
        arithmetic = ("--dtype", "float32", "--threads", 1)
        # A latent is on every rank; of two key heads each of four ranks has one, which an attention group of one rank has both.
        for model, gain in (("tiny-deepseek-v3", 4), ("tiny-qwen3-moe", 4 * 1 / 2), ("tiny-llama", 4 * 1 / 2)):
            with self.subTest(model=model):
                def explained(*more):
                    return json.loads(subprocess.run([BINARY, "explain", "--json", "--model-path", FIXTURES / model,
                                                      *map(str, (*arithmetic, *more))], check=True, capture_output=True, timeout=60).stdout)

                sizes = [explained(*layout)["ranks"][0]["kv_bytes_per_token"] for layout in (tp, dpa)]
                budget, unique = 1024 * max(sizes), []
                for layout, size in zip((tp, dpa), sizes):
                    flags = (*layout, "--max-total-tokens", budget // size)
                    plan = explained(*flags)["layout"]
                    with tempfile.TemporaryDirectory() as traces, Sluice(
                            BINARY, "server", "--model-path", FIXTURES / model, "--port", 0, "--disable-radix-cache",
                            "--schedule-conservativeness", 0, *arithmetic, *flags,
                            env={"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "1"}) as running:
                        pools = fill_pools(running.url, traces, 512)
                        state = call(running.url + "/server_info")[2]["internal_states"][0]
                    self.assertEqual(state["kv_bytes_per_token"], size)
                    self.assertEqual([room for _, room in pools], [plan["tokens_per_rank"]] * len(pools))
                    unique.append(sum(tokens for tokens, _ in pools))
                    self.assertAlmostEqual(unique[-1] / plan["unique_tokens"], 1, delta=0.02)
                    # The plan agrees with itself, no more: its bytes are those of its slots and of one that is nobody's.
                    self.assertAlmostEqual(pools[0][0] * size / plan["kv_bytes"], 1, delta=0.02)
                self.assertAlmostEqual(unique[1] / unique[0], gain, delta=0.02 * gain)

    def test_what_cannot_fit_is_refused_with_figures(self):
        run = subprocess.run([BINARY, "server", "--model-path", self.folder("DeepSeek-V3"), "--load-format", "dummy", "--port", "0"],
                             capture_output=True, text=True, timeout=60)
        self.assertRegex(run.stderr, r"this rank's weights take \d+ MiB, and its share of the host's memory is \d+ MiB")
        self.assertEqual(run.returncode, 1)


class ServeTest(unittest.TestCase):
    def test_the_gateway_sees_the_groups_of_a_server_with_dp_attention(self):
        with Sluice(BINARY, "serve", "--model-path", FIXTURES / "tiny-deepseek-v3", "--port", 0, "--router-prometheus-port", 0,
                    "--max-total-tokens", 2048, "--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, "--router-policy", "round_robin") as running:
            def ranks():
                workers = call(running.url + "/workers")[2]["workers"]
                return workers if len(workers) == 2 and all(worker["is_healthy"] for worker in workers) else None

            self.assertEqual(len({worker["url"] for worker in wait_until("two healthy ranks", ranks, within=60)}), 2)
            served = [generate(running.url, [i, 3, 4], 2)[2]["meta_info"]["dp_rank"] for i in range(6)]
            self.assertEqual(sorted(served), [0, 0, 0, 1, 1, 1])

    def test_replicas_are_servers_with_ranks_of_their_own_behind_one_gateway(self):
        with Sluice(BINARY, "serve", "--model-path", FIXTURES / "tiny-deepseek-v3", "--port", 0, "--router-prometheus-port", 0,
                    "--max-total-tokens", 1024, "--tp", 2, "--dp-size", 2, *DPA, "--replicas", 2, "--router-policy", "round_robin") as running:
            def ranks():
                workers = call(running.url + "/workers")[2]["workers"]
                return workers if len(workers) == 4 and all(worker["is_healthy"] for worker in workers) else None

            workers = wait_until("four healthy ranks", ranks, within=60)
            engines = {worker["url"].rsplit("@", 1)[0] for worker in workers}
            self.assertEqual(len(engines), 2)
            self.assertEqual({worker["url"] for worker in workers}, {f"{engine}@{rank}" for engine in engines for rank in (0, 1)})
            served = [generate(running.url, [i, 3, 4], 2)[2]["meta_info"]["dp_rank"] for i in range(8)]
            self.assertEqual(sorted(served), [0, 0, 0, 0, 1, 1, 1, 1])


    def test_the_recommended_set_up_keeps_what_begins_alike_on_one_rank(self):
        """Two servers of four ranks with DP attention and deepep each, behind a gateway that knows their ranks and caches."""
        with Sluice(BINARY, "serve", "--model-path", FIXTURES / "tiny-deepseek-v3", "--port", 0, "--router-prometheus-port", 0,
                    "--max-total-tokens", 1024, "--tp", 4, "--dp-size", 4, "--ep", 4, *DPA, *DEEPEP, "--replicas", 2,
                    "--router-policy", "cache_aware") as running:
            def ranks():
                workers = call(running.url + "/workers")[2]["workers"]
                return workers if len(workers) == 8 and all(worker["is_healthy"] for worker in workers) else None

            wait_until("eight healthy ranks", ranks, within=120)
            sampling = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
            places = []
            for group in range(4):
                begins = " ".join(f"{word} {group}" for word in ("river", "mountain", "cloud", "forest", "island", "harbour", "meadow"))
                seen = []
                for question in range(3):
                    status, head, answer = call(running.url + "/generate", {"text": f"{begins} {'why' * question}", "sampling_params": sampling})
                    self.assertEqual(status, 200, answer)
                    seen.append((head["x-smg-routed-worker-id"], answer["meta_info"]["dp_rank"]))
                    cached = answer["meta_info"]["cached_tokens"]
                    self.assertTrue(cached > 30 if question > 0 else cached < 10, f"{cached} of question {question}")
                self.assertEqual(len(set(seen)), 1, seen)
                places.append(seen[0])
            self.assertGreater(len(set(places)), 1, places)


class FailureTest(unittest.TestCase):
    def survives(self, running, harm):
        """While requests run, `harm` one of the ranks: each request ends, all ranks are new, and it serves again."""
        before = rank_processes(running)
        self.assertEqual(len(before), 2)
        results = []

        def ask(i):
            results.append(generate(running.url, [i + 1] * 30, 400)[0])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        wait_until("running requests", lambda: sum(rank["num_running_reqs"] for rank in call(running.url + "/v1/loads")[2]["loads"]) > 0,
                   every=0.01)
        harm(before)
        for thread in threads:
            thread.join(60)
        self.assertEqual(len(results), 4)
        self.assertTrue(all(status in (200, 500, 503) for status in results), results)

        def serves():
            return generate(running.url, [5, 6, 7], 3)[0] == 200 and running

        wait_until("the instance serving again", serves, within=60)
        after = rank_processes(running)
        self.assertEqual(len(after), 2)
        self.assertFalse(set(before) & set(after))

    def test_a_killed_rank_ends_and_restarts_its_instance(self):
        for layout in (("--tp", 2), ("--tp", 2, "--dp-size", 2, *DPA)):
            with self.subTest(layout=layout), server("tiny-llama", *layout) as running:
                self.survives(running, lambda pids: os.kill(pids[1], signal.SIGKILL))
                self.assertRegex(running.output(), rf"rank 1 has ended \(killed by SIGKILL; last seen at {STEP}\).*ranks 0 to 1 start again")

    def test_a_rank_that_hangs_is_named_and_its_instance_restarts(self):
        with server("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA) as running:
            self.survives(running, lambda pids: os.kill(pids[1], signal.SIGSTOP))
            self.assertRegex(running.output(), rf"rank 0 has ended \(.*rank 1\b.* \({STEP}\).*; last seen at {STEP}\)")
            self.assertRegex(running.output(), r"rank 0 of its instance: the last exchanges \d+ to \d+; rank 0: .*(decode|prefill) of \d+.*; rank 1: ")

    def test_a_rank_that_writes_for_longer_than_it_may_be_silent_is_waited_for(self):
        """Its file is a pipe that nobody reads, for half as long again as --watchdog-timeout."""
        with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor() as pool, \
                server("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA, "--watchdog-timeout", 2) as running:
            ranks = rank_processes(running)
            status, _, answer = call(running.url + "/start_profile", {"output_dir": folder, "profile_prefix": "p", "profile_id": "1"})
            self.assertEqual(status, 200, answer)
            self.assertEqual(generate(running.url, [1, 2, 3], 2, 1)[0], 200)
            pipe = f"{folder}/p-1-rank-1.steps.json"
            os.mkfifo(pipe)
            stopping = pool.submit(call, running.url + "/stop_profile", method="POST")
            # Of the two files of a rank the other one comes first.
            wait_until("rank 1 to write", lambda: "p-1-DP-1.trace.json" in running.output(), every=0.01)
            waiting = pool.submit(generate, running.url, [4, 5, 6], 2, 0)
            self.assertFalse(concurrent.futures.wait([stopping, waiting], timeout=3).done, "rank 1 writes, and rank 0 waits for it")
            with open(pipe) as steps:
                self.assertIn('"rank":1', steps.read())
            self.assertEqual((stopping.result()[0], waiting.result()[0]), (200, 200))
            self.assertEqual(rank_processes(running), ranks, "nobody was restarted")

    def throwing(self):
        """What makes allocations of a rank's first thread fail."""
        if sanitized(BINARY):
            self.skipTest("it has an allocator of its own")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return preload_throwing(folder.name)

    def test_r22_a_rank_that_throws_is_named_with_the_cause_and_its_instance_restarts(self):
        both = ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP)
        for layout in (both, (*both, "--enable-two-batch-overlap")):
            with self.subTest(layout=layout), server("tiny-deepseek-v3", *layout, env=self.throwing()) as running:
                self.survives(running, lambda pids: os.kill(pids[1], THROW))
                # Where nothing can be thrown, it is the end of the process.
                self.assertRegex(running.output(), r"rank \d has ended \((rank 1: )?std::bad_alloc|rank 1 has ended \(killed by SIGABRT")

    def test_r23_a_rank_that_throws_while_it_loads_ends_the_start_with_the_cause(self):
        throwing, ended = self.throwing(), 0
        for allocation in (1, 100, 1000, 3000, 10000):
            env = {**throwing, "SLUICE_TEST_FAILING_ALLOCATION": str(allocation)}
            with self.subTest(allocation=allocation), server("tiny-llama", "--tp", 2, env=env) as running:
                if running.url is None:
                    self.assertEqual(running.process.wait(60), 1)
                    self.assertRegex(running.output(), r"rank \d failed to start: .*(bad_alloc|SIGABRT)")
                    ended += 1
        self.assertGreaterEqual(ended, 3, "others may be caught on their way, as those of a log line")


class RefusalTest(unittest.TestCase):
    def refused(self, model, *flags):
        run = subprocess.run([BINARY, "server", "--model-path", FIXTURES / model, "--port", "0", *map(str, flags)],
                             capture_output=True, text=True, timeout=60)
        self.assertEqual(run.returncode, 2, run.stderr)
        return run.stderr

    def test_sizes_that_do_not_divide_name_the_nearest_that_do(self):
        self.assertIn("--dp-size 3 does not divide --tp-size 4; the nearest values that do: 2, 4",
                      self.refused("tiny-llama", "--tp", 4, "--dp-size", 3, *DPA))
        self.assertIn("--dp-size 4 does not divide --tp-size 2; the nearest values that do: 2",
                      self.refused("tiny-qwen3-moe", "--tp", 2, "--dp-size", 4, *DPA, "--moe-a2a-backend", "deepep"))
        self.assertIn("--tp-size 3 makes 3 parts of the model's 4 attention heads, which they do not divide; the nearest that do: 2, 4",
                      self.refused("tiny-llama", "--tp", 3))
        self.assertIn("--ep-size 3 does not divide --tp-size 2; the nearest values that do: 2", self.refused("tiny-qwen3-moe", "--tp", 2, "--ep", 3))
        self.assertIn("experts", self.refused("tiny-llama", "--tp", 2, "--ep", 2))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[3:]])
