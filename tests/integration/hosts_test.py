#!/usr/bin/env python3
"""One instance of the model on two hosts: it gives the tokens of one rank; what becomes of it when a rank, a host or the network
between them is lost, and when they come back. The hosts are network namespaces of their own behind a bridge, and this test is a
third host. Where namespaces cannot be made, both are 127.0.0.1, and what needs a network to cut is left out.

usage: hosts_test.py <sluice binary> <folder of fixtures>"""
import os
import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from layouts_fixture import NEAR_TIE, answers, first_difference, generate, workload  # noqa: E402
from sluice_process import Sluice, alive, call, descendants, wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
DPA = ("--enable-dp-attention",)
INSIDE = "SLUICE_HOSTS_TEST_INSIDE"


def enter_namespace():
    """Starts this test anew in a network of its own, if that can be had."""
    if os.environ.get(INSIDE) is not None:
        return
    for unshare in (["unshare", "-n"], ["unshare", "-rn"]):
        if subprocess.run([*unshare, "ip", "link", "add", "name", "br0", "type", "bridge"], capture_output=True).returncode == 0:
            os.environ[INSIDE] = "1"
            os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])
    os.environ[INSIDE] = ""


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Host:
    """A network namespace at 10.213.0.<10 + number>, or this one."""
    namespaces = False
    bridge = False

    def __init__(self, number):
        self.enter, self.address, self.holder = [], "127.0.0.1", None
        if not self.namespaces:
            return
        if not Host.bridge:
            run("ip", "link", "add", "name", "br0", "type", "bridge")
            run("ip", "addr", "add", "10.213.0.1/24", "dev", "br0")
            run("ip", "link", "set", "br0", "up")
            run("ip", "link", "set", "lo", "up")
            Host.bridge = True
        self.address, self.link = f"10.213.0.{10 + number}", f"h{number}"
        # It lives until this test ends, however it ends.
        self.holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; read end"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.holder.stdout.readline()
        self.enter = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "e0", "netns", str(self.holder.pid))
        run("ip", "link", "set", self.link, "master", "br0", "up")
        run(*self.enter, "ip", "addr", "add", f"{self.address}/24", "dev", "e0")
        run(*self.enter, "ip", "link", "set", "e0", "up")
        run(*self.enter, "ip", "link", "set", "lo", "up")

    def network(self, up):
        run("ip", "link", "set", self.link, "up" if up else "down")

    def start(self, *arguments):
        return Sluice(*self.enter, BINARY, *arguments) if self.enter else Sluice(BINARY, *arguments)


enter_namespace()
Host.namespaces = bool(os.environ[INSIDE])
HOSTS = [Host(0), Host(1)]
PORTS = iter(range(21000, 22000))


def flags(model, *more):
    return ("--model-path", FIXTURES / model, "--max-total-tokens", 2048, "--threads", 1, "--dtype", "float32",
            "--port", 0, *more)


class Instance:
    """`sluice server` on both hosts. Its url is node 0's."""

    def __init__(self, model, *more):
        self.flags = flags(model, "--nnodes", 2, "--dist-init-addr", f"{HOSTS[0].address}:{next(PORTS)}", *more)
        # Node 0 says where it listens once it is ready, for which it needs the other.
        self.other = self.start_other()
        self.front = HOSTS[0].start("server", "--host", HOSTS[0].address, "--node-rank", 0, *self.flags)
        self.url = self.front.url

    def start_other(self):
        return HOSTS[1].start("server", "--host", HOSTS[1].address, "--node-rank", 1, *self.flags)

    def ranks(self, node):
        return sorted(pid for pid, line in descendants((self.front, self.other)[node].process.pid).items()
                      if line.endswith("sluice rank"))

    def serves(self):
        return generate(self.url, [5, 6, 7], 3)[0] == 200

    def log(self):
        return "".join(self.front.lines)

    def wait_for_log(self, text):
        return wait_until(text, lambda: re.search(text, self.log()), within=60)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        self.front.kill()
        self.other.kill()
        if failed:
            print("--- node 0 ---\n" + self.front.output() + "--- node 1 ---\n" + self.other.output(), flush=True)


class TokensTest(unittest.TestCase):
    """Greedy tokens of many requests at once against those of one rank."""

    def compare(self, model, *layouts, count=24):
        requests = workload(count)
        with Sluice(BINARY, "server", *flags(model)) as alone:
            want = answers(alone.url, requests)
        for layout in layouts:
            with self.subTest(model=model, layout=" ".join(map(str, layout))), Instance(model, *layout) as instance:
                self.assertEqual((len(instance.ranks(0)), len(instance.ranks(1))), (layout[1] // 2, layout[1] // 2))
                parted = []
                for got, expected in zip(answers(instance.url, requests), want):
                    self.assertEqual(len(got["output_ids"]), len(expected["output_ids"]))
                    difference = first_difference(got, expected)
                    if difference:
                        parted.append(difference)
                self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                self.assertLess(len(parted), count / 8)

    def test_dense_model(self):
        self.compare("tiny-llama", ("--tp", 2), ("--tp", 4, "--dp-size", 2, *DPA))

    def test_experts(self):
        self.compare("tiny-deepseek-v3", ("--tp", 2, "--dp-size", 2, *DPA, "--moe-a2a-backend", "deepep"))


class HostsTest(unittest.TestCase):
    def test_each_group_serves_the_requests_that_name_it_and_its_load_is_known(self):
        with Instance("tiny-llama", "--tp", 2, "--dp-size", 2, *DPA) as instance:
            for group in (0, 1):
                status, _, answer = generate(instance.url, list(range(20, 60)), 4, group)
                self.assertEqual((status, answer["meta_info"]["dp_rank"]), (200, group), answer)

            def loads():
                ranks = call(instance.url + "/v1/loads")[2]["loads"]
                # Idle again, and what they computed is cached.
                return len(ranks) == 2 and all(r["num_running_reqs"] == 0 and r["max_total_num_tokens"] > 0 for r in ranks)

            wait_until("loads of both groups", loads, within=30)
            self.assertEqual(generate(instance.url, list(range(20, 60)), 4, 1)[2]["meta_info"]["cached_tokens"], 39)

    def test_another_node_answers_probes_alone(self):
        with Instance("tiny-llama", "--tp", 2) as instance:
            self.assertEqual(call(instance.other.url + "/health")[0], 200)
            status, _, answer = generate(instance.other.url, [1, 2], 2)
            self.assertEqual(status, 404)
            self.assertIn("node 0 does", str(answer))

    def test_a_node_with_other_flags_is_refused_by_name(self):
        with Instance("tiny-llama", "--tp", 2) as instance:
            other = subprocess.run([*HOSTS[1].enter, BINARY, "server", "--node-rank", "1", *map(str, instance.flags), "--page-size", "4"],
                                   capture_output=True, text=True, timeout=60)
            self.assertEqual(other.returncode, 2, other.stderr)
            self.assertRegex(other.stderr, r"--page-size is 1 on node 0 and 4 on node 1")
            instance.wait_for_log(r"is refused: --page-size is 1 on node 0 and 4 on node 1")
            self.assertTrue(instance.serves())

    def test_all_end_when_node_0_ends_in_order(self):
        with Instance("tiny-llama", "--tp", 2) as instance:
            ranks = instance.ranks(0) + instance.ranks(1)
            self.assertEqual(instance.front.stop(), 0)
            self.assertEqual(instance.other.process.wait(30), 0)
            self.assertFalse([pid for pid in ranks if alive(pid)])


class FailureTest(unittest.TestCase):
    def setUp(self):
        self.instance = Instance("tiny-llama", "--tp", 2)
        self.addCleanup(lambda: self.instance.__exit__(None))

    def comes_back(self):
        wait_until("the instance serving again", self.instance.serves, within=90)

    def test_a_killed_rank_is_named_with_its_host(self):
        before = self.instance.ranks(0) + self.instance.ranks(1)
        os.kill(self.instance.ranks(1)[0], signal.SIGKILL)
        self.instance.wait_for_log(r"rank 1 .*on (node 1 \()?\S+ at " + HOSTS[1].address + r"|rank 1 is on " + HOSTS[1].address)
        self.comes_back()
        self.assertFalse(set(before) & set(self.instance.ranks(0) + self.instance.ranks(1)))

    def test_a_node_that_is_killed_leaves_no_orphans_and_is_taken_back(self):
        orphans = self.instance.ranks(1)
        self.instance.other.process.send_signal(signal.SIGKILL)
        self.instance.wait_for_log(r"node 1 \(\S+ at " + HOSTS[1].address + r"\) is lost: ")
        wait_until("the end of its ranks", lambda: not [pid for pid in orphans if alive(pid)], within=30)
        self.assertEqual(generate(self.instance.url, [1, 2], 2)[0], 503)
        self.instance.wait_for_log("ranks 0 to 1 wait for node 1")
        self.instance.other.kill()
        self.instance.other = self.instance.start_other()
        self.comes_back()

    def test_ranks_end_with_node_0(self):
        ranks = self.instance.ranks(1)
        self.instance.front.process.send_signal(signal.SIGKILL)
        wait_until("the end of the ranks of node 1", lambda: not [pid for pid in ranks if alive(pid)], within=30)
        wait_until("its health", lambda: call(self.instance.other.url + "/health")[0] == 503, within=30)
        self.assertEqual(self.instance.other.stop(), 0)

    @unittest.skipUnless(Host.namespaces, "there is no network to cut without namespaces")
    def test_a_host_that_is_cut_off_is_lost_within_bounds_and_joins_again(self):
        HOSTS[1].network(up=False)
        try:
            self.instance.wait_for_log(r"node 1 \(\S+ at \S+\) is lost: it has said nothing for \d+ s")
            wait_until("node 1 to see it as well", lambda: "node 0 is lost" in self.instance.other.output(), within=30)
            self.assertEqual(self.instance.ranks(1), [])
        finally:
            HOSTS[1].network(up=True)
        self.comes_back()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[3:]])
