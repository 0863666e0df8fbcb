#!/usr/bin/env python3
"""How `sluice serve` starts, loses workers and ends, with a tiny model.

usage: serve_life_test.py <sluice binary> <folder of fixtures>"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import Sluice, alive, call, descendants, wait_until  # noqa: E402

BINARY, MODEL = sys.argv[1], os.path.join(sys.argv[2], "tiny-llama")
COMMON = ["--port", 0, "--router-prometheus-port", 0]


def serve(*more):
    return Sluice(BINARY, "serve", "--model-path", MODEL, "--dp-size", 2, *COMMON, *more)


def healthy(server):
    return [worker["url"] for worker in call(server.url + "/workers")[2]["workers"] if worker["is_healthy"]]


def wait_for_workers(server, count=2):
    wait_until(f"{count} healthy workers", lambda: len(healthy(server)) == count, within=60)


def generate(server, headers=None):
    return call(server.url + "/generate", {"text": "hello", "sampling_params": {"max_new_tokens": 4}}, headers=headers)


def fails(*flags):
    run = subprocess.run([BINARY, "serve", *map(str, flags)], capture_output=True, text=True, timeout=60)
    return run.returncode, run.stderr


class StartTest(unittest.TestCase):
    def test_a_worker_that_cannot_start_ends_the_launch_with_its_cause(self):
        status, text = fails("--model-path", "/no/such/model", "--dp-size", 2, *COMMON)
        self.assertEqual(status, 1)
        # Which of the two is first is the scheduler's choice.
        self.assertRegex(text, r"worker [01] did not start: exit 1: .*/no/such/model: no such file or folder")

    def test_a_wrong_flag_ends_it_before_anything_starts(self):
        status, text = fails("--model-path", MODEL, "--pp-size", 2, *COMMON)
        self.assertEqual((status, text.count("\n")), (2, 1), text)

    def test_worker_host(self):
        with serve("--worker-host", "127.0.0.3") as server:
            wait_for_workers(server)
            for url in healthy(server):
                self.assertTrue(url.startswith("http://127.0.0.3:"), url)
            self.assertEqual(generate(server)[0], 200)

    def test_worker_startup_timeout(self):
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "model")
            shutil.copytree(MODEL, model)
            weights = os.path.join(model, "model.safetensors")
            os.remove(weights)
            os.mkfifo(weights)  # to which nobody writes: whoever opens it waits
            status, text = fails("--model-path", model, "--dp-size", 1, "--worker-startup-timeout", 1, *COMMON)
        self.assertEqual(status, 1)
        self.assertRegex(text, r"worker 0 did not start: .*1 s")

    def test_a_taken_port_is_named(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            status, text = fails("--model-path", MODEL, "--port", port, "--router-prometheus-port", 0)
        self.assertEqual(status, 1)
        self.assertIn(f"127.0.0.1:{port}", text)

    def test_workers_take_ascending_ports_from_the_base_port_on(self):
        with serve("--router-dp-worker-base-port", 31500) as server:
            wait_for_workers(server)
            ports = sorted(int(url.rsplit(":", 1)[1]) for url in healthy(server))
            self.assertGreaterEqual(ports[0], 31500)
            self.assertLess(ports[1], 31600)

    def test_one_key_is_for_clients_and_workers_alike(self):
        with serve("--api-key", "secret") as server:
            wait_until("an answer", lambda: generate(server, {"Authorization": "Bearer secret"})[0] == 200, within=60)
            self.assertEqual(generate(server)[0], 401)

    def test_workers_may_have_a_key_of_their_own(self):
        with serve("--api-key", "inner", "--router-api-key", "outer") as server:
            wait_until("an answer", lambda: generate(server, {"Authorization": "Bearer outer"})[0] == 200, within=60)
            self.assertEqual(generate(server, {"Authorization": "Bearer inner"})[0], 401)


class WorkerTest(unittest.TestCase):
    def kill_one(self, server):
        victim = next(pid for pid, line in descendants(server.process.pid).items() if " server " in line)
        os.kill(victim, signal.SIGKILL)
        wait_until("one worker is left", lambda: len(healthy(server)) == 1, within=10)

    def test_one_that_dies_comes_back(self):
        with serve() as server:
            wait_for_workers(server)
            self.kill_one(server)
            self.assertEqual(generate(server)[0], 200)
            wait_for_workers(server)
            wait_until("its end is in the log", lambda: "killed by SIGKILL; started again in 1 s" in server.output())

    def test_one_that_hangs_is_killed_and_its_requests_are_served_elsewhere(self):
        with serve("--worker-answer-timeout", 3, "--router-policy", "round_robin") as server:
            wait_for_workers(server)
            victim = next(pid for pid, line in descendants(server.process.pid).items() if " server " in line)
            os.kill(victim, signal.SIGSTOP)
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: generate(server)[0], range(4)))
            self.assertEqual(answers, [200] * 4)
            wait_until("its end is in the log",
                       lambda: "it has answered nothing for 3 s and was killed; started again in 1 s" in server.output())
            wait_for_workers(server)
            self.assertFalse(alive(victim))

    def test_it_stays_down_where_restart_is_off(self):
        with serve("--router-disable-worker-restart") as server:
            wait_for_workers(server)
            self.kill_one(server)
            wait_until("its end is in the log", lambda: "killed by SIGKILL; left down" in server.output())
            self.assertEqual(generate(server)[0], 200)
            self.assertEqual(len(descendants(server.process.pid)), 2, "one worker and its rank")


class AbortTest(unittest.TestCase):
    def test_a_list_of_rids_ends_those_requests_at_whatever_worker_they_are(self):
        with serve("--router-policy", "round_robin") as server, ThreadPoolExecutor(4) as pool:
            wait_for_workers(server)
            # Nothing is computed meanwhile, so that all are there still when they are named.
            self.assertEqual(call(server.url + "/pause_generation", {"mode": "in_place"})[0], 200)
            body = {"text": "hello", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
            answers = {rid: pool.submit(call, server.url + "/generate", {**body, "rid": rid}) for rid in ("a", "b", "c", "d")}

            # One that has not arrived yet is not ended: it is asked for again.
            def are_ended():
                status, _, answer = call(server.url + "/abort_request", {"rid": ["a", "b", "c"]})
                self.assertEqual(status, 200, answer)
                return all(answers[rid].done() for rid in ("a", "b", "c"))

            wait_until("the named requests are ended", are_ended)
            self.assertFalse(answers["d"].done())
            self.assertEqual(call(server.url + "/continue_generation", {})[0], 200)
            ends = {rid: answer.result()[2]["meta_info"]["finish_reason"]["type"] for rid, answer in answers.items()}
            self.assertEqual(ends, {"a": "abort", "b": "abort", "c": "abort", "d": "length"})


class EndTest(unittest.TestCase):
    def ends(self, server, below):
        self.assertGreaterEqual(len(below), 4, "two workers with a rank each")
        wait_until("no process is left", lambda: not [p for p in below if alive(p)], within=30)

    def test_each_stop_signal_drains_and_exits_0(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            with self.subTest(number), serve() as server:
                wait_for_workers(server)
                below = descendants(server.process.pid)
                self.assertEqual(server.stop(number), 0)
                self.ends(server, below)

    def test_a_second_signal_ends_everything_at_once(self):
        with serve() as server:
            wait_for_workers(server)
            below = descendants(server.process.pid)
            server.process.send_signal(signal.SIGINT)
            wait_until("it drains", lambda: "draining" in server.output())
            self.assertEqual(server.stop(signal.SIGINT), 1, "a drain to its end gives 0")
            self.ends(server, below)

    def test_a_signal_while_workers_load_ends_them(self):
        with serve() as server:
            self.assertEqual(server.stop(signal.SIGTERM), 0)
            wait_until("no process is left", lambda: not descendants(server.process.pid), within=30)

    def test_no_orphan_survives_kill_9_of_the_parent(self):
        with serve() as server:
            wait_for_workers(server)
            below = descendants(server.process.pid)
            server.kill()
            self.ends(server, below)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
