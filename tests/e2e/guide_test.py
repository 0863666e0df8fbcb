"""The commands of SGLang's guide "DP, DPA and SGLang DP Router" as it prints them, with real engine workers: three quick
starts, the tuned cache_aware line, the recommended command, the steps of verification.

usage: guide_test.py <sluice binary>; the model comes from SLUICE_TEST_MODEL. Without it only what has a fixture for a model is run."""
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv[1] if len(sys.argv) > 1 else None
MODEL = os.environ.get("SLUICE_TEST_MODEL")

# All that differs from the guide. Port 0 takes a free one, which the command prints.
PROGRAMS = {
    "python -m sglang_router.launch_server": "serve",
    "python -m sglang_router.launch_router": "gateway",
    "python -m sglang.launch_server": "server",
}
MODELS = ("meta-llama/Meta-Llama-3.1-8B-Instruct", "<path>")
# A model of DeepSeek-V3's architecture that fits here.
DEEPSEEK = ("deepseek-ai/DeepSeek-V3", os.path.join(os.path.dirname(os.path.abspath(BINARY or ".")), "fixtures/tiny-deepseek-v3"))
PORTS = ("--port 30000", "--port 8000", "--router-prometheus-port 10001")
# Where the guide leaves the metrics on their default port 29000, which somebody else may have.
METRICS_PORT = {"serve": "--router-prometheus-port", "gateway": "--prometheus-port", "server": None}

# --- the guide ---

NATIVE_DP = r"""
python -m sglang.launch_server \
    --model-path meta-llama/Meta-Llama-3.1-8B-Instruct \
    --dp-size 4
"""
SMG_BASED_DP = r"""
python -m sglang_router.launch_server \
    --model-path meta-llama/Meta-Llama-3.1-8B-Instruct \
    --dp-size 4
"""
OPTION_A = r"""
python -m sglang_router.launch_server \
    --model-path meta-llama/Meta-Llama-3.1-8B-Instruct \
    --dp-size 4 \
    --host 0.0.0.0 \
    --port 30000
"""
INTEGRATION = "python -m sglang_router.launch_server --model-path <path> --dp-size 4 --router-policy cache_aware"
RECOMMENDED = r"""
python -m sglang_router.launch_server \
    --model-path meta-llama/Meta-Llama-3.1-8B-Instruct \
    --dp-size 4 \
    --router-policy cache_aware \
    --router-health-check-interval-secs 30 \
    --router-prometheus-port 10001 \
    --host 0.0.0.0 \
    --port 30000
"""
NODE = r"""
python -m sglang.launch_server \
    --model-path meta-llama/Meta-Llama-3.1-8B-Instruct \
    --port 8000
"""
OPTION_B = r"""
python -m sglang_router.launch_router \
    --worker-urls http://node1:8000 http://node2:8000 \
    --policy cache_aware \
    --host 0.0.0.0 \
    --port 30000
"""
OPTION_C = r"""
python -m sglang_router.launch_router \
    --policy cache_aware \
    --host 0.0.0.0 \
    --port 30000
"""
REGISTER = [r"""
curl -X POST http://localhost:30000/workers \
    -H "Content-Type: application/json" \
    -d '{"url": "http://worker1:8000"}'
""", r"""
curl -X POST http://localhost:30000/workers \
    -H "Content-Type: application/json" \
    -d '{"url": "http://worker2:8000"}'
"""]
TUNED = r"""
python -m sglang_router.launch_router \
    --worker-urls http://worker1:8000 http://worker2:8000 \
    --policy cache_aware \
    --cache-threshold 0.5 \
    --balance-abs-threshold 32 \
    --balance-rel-threshold 1.5 \
    --eviction-interval-secs 120 \
    --max-tree-size 67108864
"""
POLICIES = ("cache_aware", "round_robin", "random", "power_of_two")
CHECK_WORKERS = "curl http://localhost:30000/workers"
CHECK_LOADS = "curl http://localhost:30000/get_loads"
METRICS = ('smg_router_requests_total{model="..."}', 'smg_worker_requests_active{worker="..."}',
           'sglang_cache_hit_rate{source="..."}')
# "40+ Prometheus metrics"
PROMISED_FAMILIES = 40

DPA_AND_EP = r"""
python -m sglang.launch_server \
    --model-path deepseek-ai/DeepSeek-V3 \
    --tp 8 \
    --dp-size 8 \
    --ep 8 \
    --enable-dp-attention \
    --moe-a2a-backend deepep \
    --moe-runner-backend deep_gemm
"""
DPA = r"""
python -m sglang.launch_server \
    --model-path deepseek-ai/DeepSeek-V3 \
    --tp 8 \
    --dp-size 8 \
    --enable-dp-attention
"""

# --- how its lines are run ---


def arguments(line, hosts=None):
    """The guide's line as arguments of sluice; `hosts` gives the addresses of the guide's host names."""
    text = line.strip().replace("\\\n", " ")
    program = next(name for name in PROGRAMS if text.startswith(name))
    command, text = PROGRAMS[program], text.removeprefix(program)
    for port in PORTS:
        text = text.replace(port, port.rsplit(" ", 1)[0] + " 0")
    for name, address in (hosts or {}).items():
        text = text.replace(name, address)
    words = [MODEL if word in MODELS else word for word in shlex.split(text.replace(*DEEPSEEK))]
    for flag in ("--port", METRICS_PORT[command]):
        if flag and flag not in words:
            words += [flag, "0"]
    return [command, *words]


def started(line, hosts=None):
    return Sluice(BINARY, *arguments(line, hosts))


def curl(line, url, hosts=None):
    """(status, body) of the guide's curl line."""
    text = line.strip().replace("\\\n", " ").replace("http://localhost:30000", url.replace("127.0.0.1", "localhost"))
    for name, address in (hosts or {}).items():
        text = text.replace(name, address)
    run = subprocess.run([*shlex.split(text), "-s", "-w", "\n%{http_code}"], capture_output=True, text=True, timeout=60,
                         check=True)
    body, _, status = run.stdout.rpartition("\n")
    return int(status), body


def metrics_of(server):
    port = re.search(r"metrics +(?:on )?http://[^:]+:(\d+)", server.output())[1]
    return call(f"http://127.0.0.1:{port}/metrics")[2]


def samples(text, example):
    """{label value: number} of the series that the guide's example stands for, summed by that label."""
    name, label = re.fullmatch(r'(\w+)\{(\w+)="\.\.\."\}', example).groups()
    found = {}
    for line in text.splitlines():
        match = re.match(rf'{name}\{{(?:.*,)?{label}="([^"]*)".*\}} (\S+)$', line)
        if match:
            found[match[1]] = found.get(match[1], 0) + float(match[2])
    return found


def workers(server):
    return call(server.url + "/workers")[2]["workers"]


def wait_for_workers(server, count):
    wait_until(f"{count} healthy workers that have said what they serve", lambda: server.process.poll() is not None or
               sum(worker["is_healthy"] and worker["model_id"] != "unknown" for worker in workers(server)) == count,
               within=300)


def chat(server, *texts, tokens=2):
    """The answer to a conversation."""
    roles = ("user", "assistant")
    status, _, answer = call(server.url + "/v1/chat/completions", {
        "model": "any", "temperature": 0, "max_tokens": tokens,
        "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]})
    assert status == 200, answer
    return answer


def generate(server, text):
    status, _, answer = call(server.url + "/generate", {"text": text, "sampling_params": {"max_new_tokens": 2}})
    assert status == 200, answer
    return answer


def first_turns(count=8):
    return [f"{i} tales: " + f"what do those who know {i} tales tell of {i} tales at home? " * 4 for i in range(count)]


class Fleet(unittest.TestCase):
    def serves_from_all(self, server, count):
        """Different conversations reach all workers, and their second turns find what the first ones left in the caches.
        Ties between idle workers are broken at random, so it may take more than a few; returns the number of requests."""
        wait_for_workers(server, count)
        sent, used = 0, {}
        for first in first_turns(100):
            said = chat(server, first)["choices"][0]["message"]["content"]
            usage = chat(server, first, said, "go on")["usage"]
            self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"] / 2, usage)
            sent += 2
            used = samples(metrics_of(server), 'smg_worker_requests_total{worker="..."}')
            if len(used) == count:
                break
        self.assertEqual(len(used), count, "not every worker was used")
        self.assertEqual(sum(used.values()), sent)
        return sent

    def verifies(self, server, count, sent):
        """The three steps of "Verifying Traffic Distribution"."""
        status, body = curl(CHECK_WORKERS, server.url)
        self.assertEqual(status, 200)
        self.assertEqual(body.count('"is_healthy":true'), count, body)
        status, body = curl(CHECK_LOADS, server.url)
        self.assertEqual(status, 200)
        self.assertEqual(len(re.findall(r'"load":\s*\d+', body)), count, "a load is unknown: " + body)

        text = metrics_of(server)
        requests, active, rate = (samples(text, example) for example in METRICS)
        self.assertEqual(sum(requests.values()), sent)
        self.assertEqual(list(requests), [call(server.url + "/v1/models")[2]["data"][0]["id"]])
        self.assertEqual(len(active), count)
        self.assertEqual(set(rate), {"predicted", "reported"})
        for source, share in rate.items():
            self.assertTrue(0.25 < share < 1, f"{source}: {share}")
        self.assertGreater(text.count("# TYPE "), PROMISED_FAMILIES)

        # A request under way is seen at one worker, by /workers too.
        body = {"text": "a long story", "stream": True, "sampling_params": {"max_new_tokens": 4096, "ignore_eos": True}}
        request = urllib.request.Request(server.url + "/generate", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as stream:
            self.assertIn(b"data:", stream.readline())
            self.assertEqual(sum(samples(metrics_of(server), METRICS[1]).values()), 1)
            self.assertEqual(sum(worker["load"] for worker in workers(server)), 1)
        wait_until("nothing is in flight", lambda: sum(samples(metrics_of(server), METRICS[1]).values()) == 0)


class OneCommandTest(Fleet):
    def test_the_line_of_smg_based_dp(self):
        with started(SMG_BASED_DP) as server:
            self.serves_from_all(server, 4)

    def test_option_a_and_its_verification(self):
        with started(OPTION_A) as server:
            self.assertIn("0.0.0.0", "".join(server.lines), "it listens on all addresses")
            self.verifies(server, 4, self.serves_from_all(server, 4))

    def test_the_recommended_command_and_its_verification(self):
        with started(RECOMMENDED) as server:
            self.verifies(server, 4, self.serves_from_all(server, 4))

    def test_the_launcher_of_the_integration(self):
        with started(INTEGRATION) as server:
            self.serves_from_all(server, 4)

    def test_native_dp(self):
        with started(NATIVE_DP) as server:
            for first in first_turns():
                self.assertEqual(chat(server, first)["object"], "chat.completion")
            self.assertEqual(call(server.url + "/server_info")[2]["dp_size"], 4)


class DpAttentionTest(unittest.TestCase):
    def dp_attention(self, line):
        """Every attention group serves, all with the same greedy tokens."""
        with started(line) as server:
            said = set()
            for rank in range(8):
                status, _, answer = call(server.url + "/generate", {
                    "input_ids": list(range(40, 80)), "routed_dp_rank": rank,
                    "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}})
                self.assertEqual(status, 200, answer)
                self.assertEqual(answer["meta_info"]["dp_rank"], rank)
                said.add(tuple(answer["output_ids"]))
            self.assertEqual(len(said), 1)
            info = call(server.url + "/server_info")[2]
            self.assertEqual((info["tp_size"], info["dp_size"], info["enable_dp_attention"]), (8, 8, True))
            return info

    def test_dpa(self):
        self.assertEqual(self.dp_attention(DPA)["ep_size"], 1)

    def test_dpa_and_ep(self):
        self.assertEqual(self.dp_attention(DPA_AND_EP)["ep_size"], 8)


class SeparateWorkersTest(Fleet):
    """Workers of their own, as in options B and C."""
    NAMES = (("http://node1:8000", "http://worker1:8000"), ("http://node2:8000", "http://worker2:8000"))

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.hosts = {}
        for names in cls.NAMES:
            server = cls.stack.enter_context(started(NODE))
            cls.hosts |= {name: server.url for name in names}

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    def setUp(self):
        for url in set(self.hosts.values()):
            self.assertEqual(call(url + "/flush_cache", {})[0], 200, "each test begins with empty caches")

    def test_option_b_and_its_verification(self):
        with started(OPTION_B, self.hosts) as server:
            self.verifies(server, 2, self.serves_from_all(server, 2))

    def test_option_c_adds_workers_and_removes_one(self):
        with started(OPTION_C) as server:
            self.assertEqual(call(server.url + "/readiness")[0], 503)
            for line in REGISTER:
                status, body = curl(line, server.url, self.hosts)
                self.assertEqual(status, 202, body)
            self.verifies(server, 2, self.serves_from_all(server, 2))
            # "Hot Worker Add/Remove"
            gone = workers(server)[0]
            self.assertEqual(call(f"{server.url}/workers/{gone['id']}", method="DELETE")[0], 202)
            for first in first_turns():
                self.assertEqual(chat(server, first)["object"], "chat.completion")
            used = samples(metrics_of(server), 'smg_worker_requests_active{worker="..."}')
            self.assertEqual(sum(used.values()), 0)

    def test_the_tuned_cache_aware_line(self):
        with started(TUNED, self.hosts) as server:
            self.verifies(server, 2, self.serves_from_all(server, 2))
            # --cache-threshold 0.5: a prompt of which 0.4 is known is a miss, which the default of 0.3 calls a match.
            branches = 'smg_cache_aware_policy_branch_total{branch="..."}'
            generate(server, "x " * 40)
            before = samples(metrics_of(server), branches)
            generate(server, "x " * 40 + "y " * 60)
            after = samples(metrics_of(server), branches)
            self.assertEqual(after["miss"], before["miss"] + 1, (before, after))

    def test_each_policy_of_its_table(self):
        for policy in POLICIES:
            with self.subTest(policy), started(OPTION_B.replace("cache_aware", policy), self.hosts) as server:
                wait_for_workers(server, 2)
                for first in first_turns():
                    chat(server, first)
                text = metrics_of(server)
                self.assertEqual(samples(text, 'smg_worker_selection_total{policy="..."}'), {policy: 8})
                used = samples(text, 'smg_worker_requests_total{worker="..."}')
                self.assertEqual(sum(used.values()), 8)
                if policy == "round_robin":
                    self.assertEqual(set(used.values()), {4})


if __name__ == "__main__":
    if MODEL and os.path.exists(MODEL):
        unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)
    print("SLUICE_TEST_MODEL names no model")
    ran = unittest.main(argv=[sys.argv[0], "DpAttentionTest"], verbosity=2, exit=False)
    sys.exit(1 if os.environ.get("CI") or not ran.result.wasSuccessful() else 77)  # the rest is skipped
