#!/usr/bin/env python3
"""What computing while rows are on their way buys an instance on two hosts: network namespaces whose packets are delayed on their way.

usage: overlap_hosts.py <build folder> [--layers 3] [--experts 64] [--delays 0 2 5] [--rounds 3] [--prompt 256] [--batch 32] [--output 24]

DeepSeek-V2-Lite at its real widths but for the vocabulary, weights that nobody trained, `--tp 2 --dp-size 2 --enable-dp-attention`, deepep, one rank on each host, one thread
each. For each delay (milliseconds, one way) the shared experts alone are computed meanwhile, which is the default there, and then two halves of each
batch: prompts of --prompt tokens, one after another in each group, then --batch requests that decode. The time in which rows were on their
way, and the part of it in which the rank computed, are what the ranks say in /server_info. Needs root and /dev/net/tun."""
import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests/e2e"), str(ROOT / "bench/lib")]
import slow_link  # noqa: E402
from sluice_process import Sluice, call  # noqa: E402

VOCABULARY = 8192  # the head would be most of a step else
WAYS = {"shared experts": (), "two batches": ("--enable-two-batch-overlap",)}


class Instance:
    def __init__(self, options, hosts, folder, port, more):
        flags = ("--model-path", folder, "--load-format", "dummy", "--json-model-override-args", json.dumps(
                     {"num_hidden_layers": options.layers, "n_routed_experts": options.experts, "vocab_size": VOCABULARY}),
                 "--max-total-tokens", 16384, "--threads", 1, "--host", "0.0.0.0", "--port", 0, "--tp", 2, "--dp-size", 2,
                 "--enable-dp-attention", "--moe-a2a-backend", "deepep", "--deepep-mode", "normal", "--moe-dense-tp-size", 1, "--enable-dp-lm-head",
                 "--disable-radix-cache", "--nnodes", 2, "--dist-init-addr", f"{hosts[0].address}:{port}", *more)
        self.nodes = []
        try:
            # Node 0 says where it listens once it is ready, for which it needs the other.
            for node, host in reversed(list(enumerate(hosts))):
                self.nodes.append(Sluice(*host.enter, f"{options.build}/sluice", "server", "--node-rank", node, *flags))
        except AssertionError:
            self.close()
            raise
        self.url = f"http://{hosts[0].near}:{self.nodes[-1].url.rsplit(':', 1)[1]}"

    def close(self):
        for node in reversed(self.nodes):
            node.kill()

    def ask(self, group, number, prompt, output):
        ids = [(number * 7919 + i * 31 + group) % VOCABULARY for i in range(prompt)]
        status, _, body = call(self.url + "/generate", {"input_ids": ids, "routed_dp_rank": group, "sampling_params": {
            "temperature": 0, "max_new_tokens": output, "ignore_eos": True}}, timeout=600)
        assert status == 200, body

    def load(self, each_group, at_once, prompt, output):
        """Seconds that it takes."""
        def client(place):
            group, first = place
            for number in range(first, each_group, at_once):
                self.ask(group, number, prompt, output)

        places = [(group, first) for group in (0, 1) for first in range(at_once)]
        begun = time.monotonic()
        with ThreadPoolExecutor(len(places)) as pool:
            list(pool.map(client, places))  # raises what a client raised
        return time.monotonic() - begun

    def times(self):
        states = call(self.url + "/server_info")[2]["internal_states"]
        return [sum(state[key] for state in states) for key in ("wire_seconds", "covered_seconds", "split_steps", "group_steps")]


def measure(instance, options, prefill):
    """(tokens/s, share of the time on the way that was used, share of steps that were split)"""
    prompts, at_once, prompt, output = (8, 1, options.prompt, 1) if prefill else (options.batch, options.batch, 16, options.output)
    instance.load(at_once, at_once, prompt, 1)
    before = instance.times()
    seconds = instance.load(prompts, at_once, prompt, output)
    wire, covered, split, steps = (now - then for now, then in zip(instance.times(), before))
    return 2 * prompts * (prompt if prefill else output) / seconds, covered / wire if wire else 0.0, split / steps if steps else 0.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 2, 5])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--output", type=int, default=24)
    options = parser.parse_args()
    slow_link.enter()
    hosts = [slow_link.Host(0), slow_link.Host(1)]
    link = slow_link.SlowLink(*hosts)
    with tempfile.TemporaryDirectory() as folder:
        fixtures = Path(options.build) / "fixtures"
        shutil.copy(fixtures / "published-configs/DeepSeek-V2-Lite.json", Path(folder) / "config.json")
        shutil.copy(fixtures / "tokenizer-qwen3/tokenizer.json", folder)
        port = 20000
        for name, more in WAYS.items():
            for delay in options.delays:
                link.delay = 0.0
                port += 1
                instance = Instance(options, hosts, folder, port, more)
                link.delay = delay / 1000
                try:
                    for prefill in (True, False):
                        rounds = [measure(instance, options, prefill) for _ in range(options.rounds)]
                        rate, used, split = (statistics.median(column) for column in zip(*rounds))
                        print(json.dumps({"way": name, "delay_ms": delay, "phase": "prefill" if prefill else "decode",
                                          "tokens_per_second": round(rate, 1), "wire_time_used": round(used, 3), "steps_split": round(split, 2),
                                          "all": [[round(value, 3) for value in one] for one in rounds]}), flush=True)
                finally:
                    instance.close()


if __name__ == "__main__":
    main()
