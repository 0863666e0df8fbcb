#!/usr/bin/env python3
"""One instance of the model on two hosts: it gives the tokens of one rank; what becomes of it when a rank, a host or the network
between them is lost, and when they come back; by which network they meet; experts that move between them. The hosts are network
namespaces of their own behind a bridge, and this test is a third host; two more are at the end of wires that take their time, lose
frames or are cut (slow_wire.py). Where namespaces cannot be made, all are 127.0.0.1: a host is cut off by stopping its processes,
and the ranks themselves take the time that the network would (SLUICE_EMULATED_*, engine/emulated_link.h), which each says in its
log. Left out then are two cases: by which of two networks ranks meet, where there is one (NodeLeaderTest has the address), and a card
that is unplugged (InterfaceTest of nodes_test).

usage: hosts_test.py <sluice binary> <folder of fixtures>"""
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, os.path.dirname(__file__))
from layout_fixture import DEEPEP, DPA, NEAR_TIE, STEP, answers, differences, generate, rank_processes, workload  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import Sluice, alive, call, descendants, wait_until  # noqa: E402

BINARY, FIXTURES = sys.argv[1], Path(sys.argv[2])
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
        self.emulated = {}  # variables of what is started here
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
        self.connect()
        run("ip", "link", "set", self.link, "master", "br0", "up")
        run(*self.enter, "ip", "addr", "add", f"{self.address}/24", "dev", "e0")
        run(*self.enter, "ip", "link", "set", "e0", "up")
        run(*self.enter, "ip", "link", "set", "lo", "up")

    def connect(self):
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "e0", "netns", str(self.holder.pid))

    @contextlib.contextmanager
    def cut_off(self, server):
        """The host, on which `server` runs."""
        if not self.namespaces:
            with stopped(server):
                yield
            return
        run("ip", "link", "set", self.link, "down")
        try:
            yield
        finally:
            run("ip", "link", "set", self.link, "up")

    def limit_rate(self, rate):
        """Of what it sends, in Mbit/s; None: no limit."""
        if not self.namespaces:
            self.emulate(rate)
            return
        run(*self.enter, "tc", "qdisc", "replace", "dev", "e0", "root", *(["tbf", "rate", f"{rate}mbit", "burst", "32kb", "latency", "2s"] if rate else ["pfifo"]))

    def emulate(self, megabits=None, seconds=0):
        """In what is started here from now on."""
        self.emulated = {"SLUICE_EMULATED_LATENCY_MS": str(seconds * 1e3)} if seconds else {}
        if megabits:
            self.emulated["SLUICE_EMULATED_MB_PER_S"] = str(megabits / 8)

    def start(self, *arguments):
        return Sluice(*self.enter, BINARY, *arguments, env=self.emulated)


@contextlib.contextmanager
def stopped(server):
    """Its processes, as if their host were cut off: nobody hears of them, and no connection ends."""
    pids = [server.process.pid, *descendants(server.process.pid)]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class FarHost(Host):
    """One at the end of a wire that takes its time and loses frames, and that can be cut without either side being told."""

    def connect(self):
        self.wire = subprocess.Popen([sys.executable, Path(__file__).parent / "slow_wire.py", str(self.holder.pid), "e0", self.link],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.expect_ok()

    def expect_ok(self):
        answer = self.wire.stdout.readline()
        assert answer == "ok\n", f"the wire of {self.address} answers '{answer}'"

    def tell(self, *commands):
        for command in commands:
            self.wire.stdin.write(command + "\n")
            self.expect_ok()

    def disturb(self, seconds, loss):
        """From now on: of each frame in each direction, and the share of them that is lost."""
        self.tell(f"delay {seconds}", f"loss {loss}")

    @contextlib.contextmanager
    def cut_off(self, server):
        self.tell("cut")
        try:
            yield
        finally:
            self.tell("join")


class EmulatedFarHost(Host):
    """Where there are no namespaces, or no such devices."""

    def disturb(self, seconds, loss):
        # A frame that is lost is sent again: a delay for those who wait for it.
        self.emulate(seconds=seconds * (1 + 10 * loss))

    def cut_off(self, server):
        return stopped(server)


enter_namespace()
Host.namespaces = bool(os.environ[INSIDE])
HOSTS = [Host(number) for number in range(4)]
HAS_WIRES = Host.namespaces and os.access("/dev/net/tun", os.W_OK)
FAR = [(FarHost if HAS_WIRES else EmulatedFarHost)(number) for number in range(4, 6)]
# Below those that the system gives; where hosts are namespaces nobody else is there.
PORTS = iter(range(10000 + os.getpid() % 20000, 32000))


def flags(model, *more):
    return ("--model-path", FIXTURES / model, "--max-total-tokens", 2048, "--threads", 1, "--dtype", "float32",
            "--port", 0, *more)


class Instance:
    """`sluice server` on the first of the hosts. Its url is node 0's."""

    def __init__(self, model, *more, nodes=2, hosts=HOSTS):
        self.hosts = hosts
        self.flags = flags(model, "--nnodes", nodes, "--dist-init-addr", f"{hosts[0].address}:{next(PORTS)}", *more)
        self.nodes = [None] * nodes
        try:
            # Node 0 says where it listens once it is ready, for which it needs the others.
            for node in reversed(range(nodes)):
                self.start_node(node)
        except AssertionError:
            self.__exit__(True)
            raise
        self.url = self.front.url

    def start_node(self, node):
        self.nodes[node] = self.hosts[node].start("server", "--host", self.hosts[node].address, "--node-rank", node, *self.flags)

    front = property(lambda self: self.nodes[0])
    other = property(lambda self: self.nodes[1])

    def ranks(self, node):
        return rank_processes(self.nodes[node])

    def serves(self):
        return generate(self.url, [5, 6, 7], 3)[0] == 200

    def log(self):
        return "".join(self.front.lines)

    def wait_for_log(self, text):
        return wait_until(text, lambda: re.search(text, self.log()), within=60)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        for number, node in enumerate(self.nodes):
            if node is None:
                continue
            node.kill()
            if failed:
                print(f"--- node {number} ---\n" + node.output(), flush=True)


class TokensTest(unittest.TestCase):
    """Greedy tokens of many requests at once against those of one rank."""

    def compare(self, model, *layouts, nodes=2, count=24, after=None, hosts=HOSTS):
        slowed = r"rank \d+: what comes from other hosts takes"
        requests = workload(count)
        with Sluice(BINARY, "server", *flags(model)) as alone:
            want = answers(alone.url, requests)
        for layout in layouts:
            with self.subTest(model=model, layout=" ".join(map(str, layout))), Instance(model, *layout, nodes=nodes, hosts=hosts) as instance:
                self.assertEqual([len(instance.ranks(node)) for node in range(nodes)], [layout[1] // nodes] * nodes)
                for node in range(nodes):
                    self.assertEqual(bool(hosts[node].emulated), re.search(slowed, instance.nodes[node].output()) is not None)
                parted = differences(requests, answers(instance.url, requests), want)
                self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                self.assertLess(len(parted), count / 8)
                if after is not None:
                    after(instance.url)

    def test_dense_model(self):
        self.compare("tiny-llama", ("--tp", 2), ("--tp", 4, "--dp-size", 2, *DPA))

    def test_experts(self):
        self.compare("tiny-deepseek-v3", ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP))

    def test_experts_that_nobody_dispatches_to(self):
        """Gathered tokens, local experts and sums: --moe-a2a-backend none."""
        none = ("--moe-a2a-backend", "none")
        self.compare("tiny-deepseek-v3", ("--tp", 2, "--dp-size", 2, *DPA, "--ep", 2, *none),
                     ("--tp", 4, "--dp-size", 2, *DPA, "--ep", 4, *none))
        self.compare("tiny-qwen3-moe", ("--tp", 2, "--ep", 2, *none))

    def test_a_wire_that_is_slow_and_loses_frames(self):
        for host in FAR:
            host.disturb(0.002, 0.005)
            self.addCleanup(host.disturb, 0, 0)
        expert = ("--tp", 2, "--dp-size", 2, *DPA)
        self.compare("tiny-deepseek-v3", (*expert, *DEEPEP), (*expert, "--ep", 2), count=8, hosts=FAR)

    def test_two_batches_overlap(self):
        for host in HOSTS[:2]:
            host.limit_rate(200)
            self.addCleanup(host.limit_rate, None)
        overlap = ("--enable-two-batch-overlap", "--tbo-token-distribution-threshold", 0.4)
        self.compare("tiny-deepseek-v3", ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, *overlap),
                     ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP, *overlap), after=self.expect_overlap)

    def test_two_batches_overlap_where_the_network_is_emulated(self):
        """What stands in for networks where there are no namespaces."""
        for host in HOSTS[:2]:
            host.emulate(megabits=200, seconds=0.0005)
            self.addCleanup(host.emulate)
        self.compare("tiny-deepseek-v3", ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--enable-two-batch-overlap"), count=8,
                     after=self.expect_overlap)

    def expect_overlap(self, url):
        """Steps were split, and something was computed while rows of the other half were on their way."""
        for rank in call(f"{url}/server_info")[2]["internal_states"]:
            self.assertGreater(rank["split_steps"], 0)
            self.assertLessEqual(rank["split_steps"], rank["group_steps"])
            self.assertGreater(rank["covered_seconds"], 0)
            self.assertLessEqual(rank["covered_seconds"], rank["wire_seconds"])

    def test_four_hosts(self):
        """Of one attention group, and experts that nobody dispatches to."""
        none = ("--ep", 4, "--moe-a2a-backend", "none")
        self.compare("tiny-llama", ("--tp", 4), nodes=4, count=12)
        self.compare("tiny-deepseek-v3", ("--tp", 4, *none), ("--tp", 4, "--dp-size", 4, *DPA, *none), nodes=4, count=12)

    def test_four_hosts_on_a_slow_network(self):
        for host in HOSTS:
            host.limit_rate(40)
            self.addCleanup(host.limit_rate, None)
        self.compare("tiny-deepseek-v3", ("--tp", 4, "--dp-size", 2, *DPA, *DEEPEP), nodes=4, count=12)


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

    def test_a_check_prints_the_same_table_on_both(self):
        for more, status in (((), 0), (("--page-size", 4), 1)):
            common = flags("tiny-llama", "--tp", 2, "--nnodes", 2, "--dist-init-addr", f"{HOSTS[0].address}:{next(PORTS)}")
            checks = [subprocess.Popen([*HOSTS[node].enter, BINARY, "check-cluster", *map(str, common), "--node-rank", str(node),
                                        *map(str, more if node else ())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                      for node in (0, 1)]
            tables = [check.communicate(timeout=60)[0] for check in checks]
            self.assertEqual([check.returncode for check in checks], [status, status], tables)
            self.assertEqual(tables[0], tables[1])
            self.assertRegex(tables[0], r"(?m)^1 .* " + HOSTS[1].address + r" .* ms +-$")
            self.assertEqual("--page-size is 1 on node 0 and 4 on node 1" in tables[0], status == 1)

    def test_serve_may_be_node_0(self):
        common = flags("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--nnodes", 2,
                       "--dist-init-addr", f"{HOSTS[0].address}:{next(PORTS)}")
        other = HOSTS[1].start("server", "--node-rank", 1, *common)
        self.addCleanup(other.kill)
        serve = HOSTS[0].start("serve", "--host", HOSTS[0].address, "--router-prometheus-port", 0, *common)
        self.addCleanup(serve.kill)

        def ranks():
            return sum(worker["is_healthy"] for worker in call(serve.url + "/workers")[2]["workers"])

        wait_until("both groups behind the gateway", lambda: ranks() == 2, within=60)
        self.assertEqual(generate(serve.url, [1, 3, 4], 2)[0], 200)
        self.assertEqual(serve.stop(), 0)
        self.assertEqual(other.process.wait(30), 0)

    def test_all_end_when_node_0_ends_in_order(self):
        with Instance("tiny-llama", "--tp", 2) as instance:
            ranks = instance.ranks(0) + instance.ranks(1)
            self.assertEqual(instance.front.stop(), 0)
            self.assertEqual(instance.other.process.wait(30), 0)
            self.assertFalse([pid for pid in ranks if alive(pid)])


def received(pid, device):
    """Bytes that came to the host of a process by one of its interfaces."""
    [line] = re.findall(rf"(?m)^\s*{device}:\s*(\d+)", Path(f"/proc/{pid}/net/dev").read_text())
    return int(line)


class InterfaceTest(unittest.TestCase):
    """Ranks that meet in another network than the nodes: each host has two. Where there are no namespaces, all is lo."""

    @classmethod
    def setUpClass(cls):
        cls.name, cls.addresses = "lo", ["127.0.0.1"] * 2
        if not Host.namespaces:
            return
        cls.name, cls.addresses = "e1", [host.address.replace("10.213.", "10.214.") for host in HOSTS[:2]]
        run("ip", "link", "add", "name", "br1", "type", "bridge")
        run("ip", "link", "set", "br1", "up")
        for host, address in zip(HOSTS, cls.addresses):
            run("ip", "link", "add", host.link + "b", "type", "veth", "peer", "name", "e1", "netns", str(host.holder.pid))
            run("ip", "link", "set", host.link + "b", "master", "br1", "up")
            run(*host.enter, "ip", "addr", "add", f"{address}/24", "dev", "e1")
            run(*host.enter, "ip", "link", "set", "e1", "up")

    def test_r27_ranks_meet_by_the_interface_that_is_chosen(self):
        if not Host.namespaces:
            self.skipTest("there is one network: whatever is chosen is what they would meet by anyway")
        with Instance("tiny-llama", "--tp", 2, "--gloo-socket-ifname", self.name) as instance:
            self.assertRegex(instance.other.output(), r"node 1 has joined node 0 at " + re.escape(HOSTS[0].address) +
                             r":\d+, from \S+; its ranks are at " + re.escape(self.addresses[1]))
            [rank] = instance.ranks(1)
            before = [received(rank, device) for device in ("e0", "e1")]
            self.assertEqual(generate(instance.url, list(range(100)), 20)[0], 200)
            by_e0, by_e1 = [received(rank, device) - was for device, was in zip(("e0", "e1"), before)]
            # What 119 tokens of 64 values are in float32 in each of two sums of a layer; by the other come signs of life.
            self.assertGreater(by_e1, 119 * 64 * 4 * 2)
            self.assertGreater(by_e1, 5 * by_e0)

    def test_r27_a_wrong_interface_is_named_with_those_that_there_are(self):
        common = flags("tiny-llama", "--tp", 2, "--nnodes", 2, "--dist-init-addr", f"{HOSTS[0].address}:{next(PORTS)}")
        for node in (0, 1):
            for more, variable in ((("--gloo-socket-ifname", "e9"), {}), ((), {"GLOO_SOCKET_IFNAME": "e9"})):
                command = [*HOSTS[node].enter, BINARY, "server", *map(str, common), "--node-rank", str(node), "--host", HOSTS[node].address, *more]
                refused = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **variable})
                self.assertEqual(refused.returncode, 2, refused.stderr)
                self.assertRegex(refused.stderr, r"--gloo-socket-ifname e9 \(or GLOO_SOCKET_IFNAME\): there is no such interface; "
                                 r"the interfaces of this host are .*" + self.name + r" \(" + re.escape(self.addresses[node]))

    def refused(self, node, dist_init_addr, *more):
        command = [*HOSTS[node].enter, BINARY, "server", *map(str, flags("tiny-llama", "--tp", 2, "--nnodes", 2, "--node-rank", node)),
                   "--dist-init-addr", dist_init_addr, "--host", HOSTS[node].address, *more]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(refused.returncode, 2, refused.stderr)
        return refused.stderr

    def test_r27_the_loopback_is_refused_where_node_0_is_elsewhere(self):
        self.assertRegex(self.refused(1, "192.0.2.1:5000", "--gloo-socket-ifname", "lo"),
                         r"--gloo-socket-ifname lo .*: it leads to this host alone, and nodes join at 192\.0\.2\.1")

    def test_r27_a_card_that_is_unplugged_is_refused_at_the_start(self):
        if not Host.namespaces:
            self.skipTest("this needs a card that can be unplugged (InterfaceTest of nodes_test has the rules)")
        for host in HOSTS[:2]:
            # The other end stays down.
            run("ip", "link", "add", host.link + "c", "type", "veth", "peer", "name", "e2", "netns", str(host.holder.pid))
            run(*host.enter, "ip", "addr", "add", host.address.replace("10.213.", "10.215.") + "/24", "dev", "e2")
            run(*host.enter, "ip", "link", "set", "e2", "up")
        port = next(PORTS)
        for node in (0, 1):
            self.assertRegex(self.refused(node, f"{HOSTS[0].address}:{port}", "--gloo-socket-ifname", "e2"),
                             r"--gloo-socket-ifname e2 .*: it has no carrier.*e2 \(no carrier\)")
        unplugged = HOSTS[0].address.replace("10.213.", "10.215.")
        self.assertRegex(self.refused(0, f"{unplugged}:{port}"),
                         rf"nodes join by {re.escape(unplugged)}, which is of the interface e2, and it has no carrier")

    def test_r27_a_check_shows_the_interface_and_goes_by_it(self):
        common = flags("tiny-llama", "--tp", 2, "--nnodes", 2, "--dist-init-addr", f"{HOSTS[0].address}:{next(PORTS)}",
                       "--gloo-socket-ifname", self.name)
        checks = [subprocess.Popen([*HOSTS[node].enter, BINARY, "check-cluster", *map(str, common), "--node-rank", str(node)],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for node in (0, 1)]
        tables = [check.communicate(timeout=60)[0] for check in checks]
        self.assertEqual([check.returncode for check in checks], [0, 0], tables)
        self.assertEqual(tables[0], tables[1])
        for node in (0, 1):
            self.assertRegex(tables[0], rf"(?m)^{node} .* {re.escape(self.addresses[node])} \({self.name}\) .* ms")


class EplbTest(unittest.TestCase):
    """Experts that move between hosts: each has one rank, so that all that is moved goes from one host to the other."""
    EPLB = ("--enable-eplb", "--enable-metrics", "--eplb-rebalance-num-iterations", 10, "--eplb-rebalance-layers-per-chunk", 1)

    def metric(self, instance, name):
        return sum(map(float, re.findall(rf"(?m)^{name} (\S+)$", call(instance.url + "/metrics")[2])))

    def layers(self, instance, outcome):
        return self.metric(instance, r'sluice:eplb_layers_total\{.*outcome="' + outcome + r'".*\}')

    def test_r26_experts_move_between_hosts_under_load_from_no_file_and_change_no_token(self):
        requests = workload(40, seed=3)
        with Sluice(BINARY, "server", *flags("tiny-qwen3-moe")) as alone:
            want = answers(alone.url, requests)
        for layout in (("--tp", 2, "--ep", 2),
                       ("--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--ep-num-redundant-experts", 2, "--ep-dispatch-algorithm", "dynamic")):
            with self.subTest(layout=layout), tempfile.TemporaryDirectory() as folder:
                copy = shutil.copytree(FIXTURES / "tiny-qwen3-moe", Path(folder) / "model")
                with Instance(copy, *layout, *self.EPLB) as instance:
                    shutil.rmtree(copy)
                    parted = differences(requests, answers(instance.url, requests), want)
                    self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
                    self.assertLess(len(parted), 5)
                    self.assertGreater(self.layers(instance, "moved"), 0)
                    self.assertEqual(self.layers(instance, "rolled_back"), 0)
                    # An expert is 3 matrices of 64 x 32 in float32 or more.
                    self.assertGreater(self.metric(instance, r"sluice:eplb_moved_bytes_total\{.*\}"), 3 * 64 * 32 * 4)

    def test_a_host_that_is_cut_off_while_experts_move_ends_the_requests_and_the_instance_starts_again(self):
        """Experts of 1.5 MB, at 2 MB/s: those of a layer are on their way for seconds. All ranks are new ones afterwards, so nothing is shown of
        what is half moved: ExpertMoverTest and RebalancerTest do."""
        large = ("--load-format", "dummy", "--json-model-override-args", json.dumps({"moe_intermediate_size": 2048}))
        requests = workload(8, seed=4)
        with Sluice(BINARY, "server", *flags("tiny-deepseek-v3", *large)) as alone:
            want = answers(alone.url, requests)

        def expect_answers(instance):
            parted = differences(requests, answers(instance.url, requests), want)
            self.assertTrue(all(margin < NEAR_TIE for _, margin in parted), parted)
            self.assertLess(len(parted), 3)

        for host in HOSTS[:2]:
            host.limit_rate(16)
            self.addCleanup(host.limit_rate, None)
        with Instance("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, *large, *self.EPLB) as instance:
            before = instance.ranks(0) + instance.ranks(1)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                running = [pool.submit(generate, instance.url, [i + 1] * 20, 400, i % 2) for i in range(4)]
                instance.wait_for_log(r"the experts of [1-9]\d* of \d+ layers move")
                with HOSTS[1].cut_off(instance.other):
                    instance.wait_for_log(r"node 1 \(\S+ at \S+\) is lost: it has said nothing for \d+ s")
                    self.assertNotIn("layers have moved", instance.log(), "before the cut")
                    self.assertTrue(all(request.result()[0] in (500, 503) for request in running), [r.result() for r in running])
            wait_until("the instance serving again", instance.serves, within=90)
            self.assertFalse(set(before) & set(instance.ranks(0) + instance.ranks(1)))
            expect_answers(instance)


class FailureTest(unittest.TestCase):
    def setUp(self):
        self.instance = Instance("tiny-llama", "--tp", 2, "--log-level", "debug")
        self.addCleanup(lambda: self.instance.__exit__(None))

    def comes_back(self):
        wait_until("the instance serving again", self.instance.serves, within=90)

    def test_a_killed_rank_is_named_with_its_host(self):
        before = self.instance.ranks(0) + self.instance.ranks(1)
        self.assertTrue(self.instance.serves())
        os.kill(self.instance.ranks(1)[0], signal.SIGKILL)
        # Of whichever the front hears first: the end of the process, or what the rank says that has lost it.
        self.instance.wait_for_log(
            rf"rank 1 has ended \(killed by SIGKILL, on node 1 \(\S+ at {HOSTS[1].address}\); last seen at {STEP}\)|"
            rf"rank 0 has ended \(.*has lost rank 1 in .*; rank 1 is on {HOSTS[1].address}, last heard of in {STEP}; last seen at {STEP}\)")
        self.comes_back()
        self.assertFalse(set(before) & set(self.instance.ranks(0) + self.instance.ranks(1)))
        # On the front's own host, too.
        os.kill(self.instance.ranks(0)[0], signal.SIGKILL)
        self.instance.wait_for_log(rf"rank 0 has ended \(killed by SIGKILL; last seen at {STEP}\)|rank 1 has ended \(.*rank 0 is on "
                                   rf"{HOSTS[0].address}, last heard of in {STEP}")
        self.comes_back()

    def test_a_node_that_is_killed_leaves_no_orphans_and_is_taken_back(self):
        orphans = self.instance.ranks(1)
        self.instance.other.process.send_signal(signal.SIGKILL)
        self.instance.wait_for_log(r"node 1 \(\S+ at " + HOSTS[1].address + r"\) is lost: ")
        wait_until("the end of its ranks", lambda: not [pid for pid in orphans if alive(pid)], within=30)
        self.assertEqual(generate(self.instance.url, [1, 2], 2)[0], 503)
        self.instance.wait_for_log("ranks 0 to 1 wait for node 1")
        self.instance.other.kill()
        self.instance.start_node(1)
        self.comes_back()

    def test_ranks_end_with_node_0(self):
        ranks = self.instance.ranks(1)
        self.instance.front.process.send_signal(signal.SIGKILL)
        wait_until("the end of the ranks of node 1", lambda: not [pid for pid in ranks if alive(pid)], within=30)
        wait_until("its health", lambda: call(self.instance.other.url + "/health")[0] == 503, within=30)
        self.assertEqual(self.instance.other.stop(), 0)

    def test_a_host_that_is_cut_off_is_lost_within_bounds_and_joins_again(self):
        before = self.instance.ranks(1)
        self.assertTrue(self.instance.serves())
        self.instance.wait_for_log(rf"node 1: rank 1 is at {STEP}")
        with HOSTS[1].cut_off(self.instance.other):
            self.instance.wait_for_log(rf"rank 1 has ended \(node 1 \(\S+ at \S+\) is lost: it has said nothing for \d+ s.*; last seen at {STEP}\)")
            self.assertEqual(generate(self.instance.url, [1, 2], 2)[0], 503)
        wait_until("node 1 to see it as well", lambda: "node 0 is lost" in self.instance.other.output(), within=30)
        self.comes_back()
        self.assertFalse(set(before) & set(self.instance.ranks(1)))

    def test_hosts_that_stand_still_together_lose_nobody(self):
        """As those on a machine that is moved or starved: longer than nodes and ranks may be silent."""
        over = threading.Event()

        def ask(i):
            statuses = []
            while not over.is_set():
                statuses.append(generate(self.instance.url, [i + 1] * 20, 100)[0])
            return statuses

        ranks = self.instance.ranks(0) + self.instance.ranks(1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = [pool.submit(ask, i) for i in range(4)]
            self.instance.wait_for_log(rf"node 1: rank 1 is at {STEP}")
            with stopped(self.instance.other), stopped(self.instance.front):
                self.assertFalse(over.wait(6))
            wait_until("the instance serving again", self.instance.serves)
            over.set()
            self.assertEqual({status for statuses in asked for status in statuses.result()}, {200})
        self.assertEqual(self.instance.ranks(0) + self.instance.ranks(1), ranks, "nobody was restarted")

    def test_a_rank_that_is_stopped_while_it_loads_is_named_with_its_host(self):
        before = self.instance.ranks(1)
        os.kill(before[0], signal.SIGKILL)
        # It is stopped as soon as it is there: long before it has loaded.
        [loading] = wait_until("its successor", lambda: [pid for pid in self.instance.ranks(1) if pid not in before], within=30, every=0.002)
        os.kill(loading, signal.SIGSTOP)
        self.instance.wait_for_log(r"rank 1 has ended \(no progress for \S+ s while it loads; its process is stopped, on node 1 \(\S+ at " + HOSTS[1].address)
        self.comes_back()

    def test_a_rank_that_hangs_in_a_step_is_named_with_its_host(self):
        self.assertTrue(self.instance.serves())
        os.kill(self.instance.ranks(1)[0], signal.SIGSTOP)
        self.assertIn(generate(self.instance.url, [3, 4], 2)[0], (500, 503))
        self.instance.wait_for_log(rf"rank 0 has ended \(.*no sign of rank 1 for \S+ s \({STEP}\).*; rank 1 is on {HOSTS[1].address}, "
                                   rf"last heard of in {STEP}; last seen at {STEP}\)")
        self.comes_back()


class FourHostsFailureTest(unittest.TestCase):
    def test_one_of_four_hosts_is_cut_off_and_back(self):
        with Instance("tiny-deepseek-v3", "--tp", 4, "--dp-size", 4, *DPA, *DEEPEP, nodes=4) as instance:
            ids = list(range(30, 50))
            want = generate(instance.url, ids, 8)[2]["output_ids"]
            before = [pid for node in range(4) for pid in instance.ranks(node)]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                with HOSTS[2].cut_off(instance.nodes[2]):
                    running = [pool.submit(generate, instance.url, [i + 1] * 20, 400, i) for i in range(4)]
                    instance.wait_for_log(r"node 2 \(\S+ at \S+\) is lost: it has said nothing for \d+ s")
                    self.assertTrue(all(request.result()[0] in (500, 503) for request in running), [r.result() for r in running])
            wait_until("the instance serving again", instance.serves, within=90)
            after = [pid for node in range(4) for pid in instance.ranks(node)]
            self.assertEqual(len(after), 4)
            self.assertFalse(set(before) & set(after))
            self.assertEqual(generate(instance.url, ids, 8)[2]["output_ids"], want)


class FarTest(unittest.TestCase):
    """Experts by EP on two hosts, of which one is cut off: no link goes down and no connection is reset, there is just silence."""

    def cut_and_join(self, *layout):
        with Instance("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *layout, hosts=FAR) as instance:
            ids = list(range(30, 50))
            want = [generate(instance.url, ids, 6, group)[2]["output_ids"] for group in (0, 1)]
            before = instance.ranks(1)
            with FAR[1].cut_off(instance.other):
                instance.wait_for_log(r"node 1 \(\S+ at \S+\) is lost: it has said nothing for \d+ s")
                self.assertEqual(generate(instance.url, ids, 2)[0], 503)
            wait_until("the instance serving again", instance.serves, within=90)
            self.assertFalse(set(before) & set(instance.ranks(1)))
            for group in (0, 1):
                status, _, answer = generate(instance.url, ids, 6, group)
                self.assertEqual((status, answer.get("output_ids")), (200, want[group]), answer)

    def test_a_host_of_gathered_experts_is_cut_off_and_back(self):
        self.cut_and_join("--ep", 2)

    def test_a_host_of_dispatched_experts_is_cut_off_and_back(self):
        self.cut_and_join(*DEEPEP)

    def test_a_cut_shorter_than_the_patience_costs_time_alone(self):
        with Instance("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, hosts=FAR) as instance:
            ids = list(range(30, 50))
            want = generate(instance.url, ids, 12)[2]["output_ids"]
            ranks = instance.ranks(0) + instance.ranks(1)
            with concurrent.futures.ThreadPoolExecutor() as pool:
                with FAR[1].cut_off(instance.other):
                    waiting = pool.submit(generate, instance.url, ids, 12)
                    # What is sent meanwhile is sent again, in ever longer intervals: the first after 0.2 s.
                    self.assertFalse(concurrent.futures.wait([waiting], timeout=0.5).done)
                status, _, answer = waiting.result()
            self.assertEqual((status, answer.get("output_ids")), (200, want), answer)
            self.assertEqual(instance.ranks(0) + instance.ranks(1), ranks, "nobody was restarted")


class GatewayTest(unittest.TestCase):
    """Replicas with DP attention, each on a host of its own, behind a gateway on a third."""

    def test_a_host_that_is_cut_off_costs_its_replica_until_it_is_back(self):
        replicas = [HOSTS[i].start("server", "--host", HOSTS[i].address, *flags("tiny-deepseek-v3", "--tp", 2, "--dp-size", 2, *DPA, *DEEPEP, "--enable-metrics"))
                    for i in (0, 1)]
        for replica in replicas:
            self.addCleanup(replica.kill)
        with Sluice(BINARY, "gateway", "--worker-urls", *(replica.url for replica in replicas), "--dp-aware", "--port", 0,
                    "--prometheus-port", 0, "--policy", "round_robin", "--health-check-interval-secs", 1,
                    "--health-check-timeout-secs", 1, "--health-failure-threshold", 1, "--health-success-threshold", 1) as gateway:
            def healthy(count):
                workers = call(gateway.url + "/workers")[2]["workers"]
                return sorted(w["url"] for w in workers if w["is_healthy"]) if sum(w["is_healthy"] for w in workers) == count else None

            def served_by_each():
                """How many of 8 requests each replica took."""
                before = [self.finished(replica) for replica in replicas]
                self.assertEqual([generate(gateway.url, [i, 3, 4], 2)[0] for i in range(8)], [200] * 8)
                return [self.finished(replica) - old for replica, old in zip(replicas, before)]

            wait_until("two ranks of each replica", lambda: healthy(4), within=60)
            self.assertEqual(served_by_each(), [4, 4])
            with HOSTS[1].cut_off(replicas[1]):
                left = wait_until("the replica to be seen gone", lambda: healthy(2), within=60)
                self.assertTrue(all(url.startswith(replicas[0].url) for url in left), left)
                self.assertEqual([generate(gateway.url, [i, 3, 4], 2)[0] for i in range(8)], [200] * 8)
            wait_until("the replica to be seen back", lambda: healthy(4), within=60)
            self.assertEqual(served_by_each(), [4, 4])

    def finished(self, replica):
        return int(float(re.search(r"^sglang:num_requests_total\{.*\} (\S+)$", call(replica.url + "/metrics")[2], re.M)[1]))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[3:]])
