#!/usr/bin/env python3
"""Bytes between ranks per token, as `sluice explain` computes them and as the communicators count them.

usage: wire.py <build folder> [--layers 4] [--output 64] [--rows 1 2 ...] [--reference]

Four ranks, or with --reference the layouts of 8 and 16 that SGLang's documents name; DeepSeek-V2-Lite at its real widths, weights
that nobody trained. Each attention group decodes one request (one of all where there are no groups) whose prompt is one token, so
that every token has logits, as the formula has it. Counted are all bytes, the rows before each step and the batches that leaders
send included."""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

TWO = "--dp-size 2 --enable-dp-attention"
FOUR = "--dp-size 4 --enable-dp-attention"
MODES = ("auto", "normal", "low_latency")
# As the table calls them, and their flags.
REFERENCE = [(f"`{flags}`", f"{flags} --enable-dp-attention {more}") for flags, more in (
    ("--tp 8 --dp-size 8 --ep 8", "--moe-a2a-backend deepep"),
    ("--tp 8 --dp-size 4 --ep 8", "--moe-a2a-backend deepep"),
    ("--tp 8 --dp-size 4 --ep 1", ""),
    ("--tp 8 --dp-size 2 --ep 8", "--moe-a2a-backend deepep"),
    ("--tp 16 --dp-size 2 --ep 16", "--moe-a2a-backend deepep"))]
FOUR_RANKS = [(name, f"--tp 4 {flags}") for name, flags in [
    ("no groups", ""),
    ("the same, `--ep 2`", "--ep 2"),
    ("the same, `--ep 4`", "--ep 4"),
    ("the same, `deepep`", "--moe-a2a-backend deepep"),
    ("2 attention groups", TWO),
    ("the same, `--ep 2`", f"{TWO} --ep 2"),
    ("the same, `--ep 4`", f"{TWO} --ep 4"),
    ("the same, `deepep`", f"{TWO} --moe-a2a-backend deepep"),
    ("4 attention groups", FOUR),
    ("the same, `--ep 4`", f"{FOUR} --ep 4"),
    ("the same, `--enable-dp-lm-head`", f"{FOUR} --enable-dp-lm-head"),
    *((f"4 groups, `deepep --deepep-mode {mode}`", f"{FOUR} --moe-a2a-backend deepep --deepep-mode {mode}") for mode in MODES),
    *((f"the same, `{mode}`, `--moe-dense-tp-size 1 --enable-dp-lm-head`",
       f"{FOUR} --moe-a2a-backend deepep --deepep-mode {mode} --moe-dense-tp-size 1 --enable-dp-lm-head") for mode in MODES),
]]


def counted(url):
    states = call(url + "/server_info")[2]["internal_states"]
    return sum(state.get("wire_bytes", 0) for state in states), max(state.get("group_steps", 0) for state in states)


def settled(url):
    """The counts once nothing changes them any more: ranks say theirs with their next row, before they park."""
    last = [None]

    def same():
        now = counted(url)
        equal, last[0] = now == last[0], now
        return now if equal else None
    return wait_until("ranks that are parked", same, every=0.5)


def measure(server, groups, output):
    def ask(rank):
        status, _, body = call(server.url + "/generate", {"input_ids": [17 + rank], "routed_dp_rank": rank, "sampling_params": {
            "temperature": 0, "max_new_tokens": output, "ignore_eos": True}})
        assert status == 200, body

    before = settled(server.url)
    with ThreadPoolExecutor(groups) as pool:
        list(pool.map(ask, range(groups)))  # raises what a request raised
    after = settled(server.url)
    tokens, steps = groups * output, after[1] - before[1]
    return (after[0] - before[0]) / tokens, steps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", help="of the table, from 1")
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    layouts = REFERENCE if options.reference else FOUR_RANKS
    build = options.build.resolve()
    print(f"| layout{'' if options.reference else ', `--tp 4`'} | computed, bytes | counted | the difference | rows before steps |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(build / "fixtures/published-configs/DeepSeek-V2-Lite.json", Path(folder) / "config.json")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(build / "fixtures/tokenizer-deepseek_v3" / name, folder)
        model = ["--model-path", folder, "--json-model-override-args", json.dumps({"num_hidden_layers": options.layers})]
        for name, text in (layouts[row - 1] for row in options.rows or range(1, len(layouts) + 1)):
            flags = text.split()
            explained = json.loads(subprocess.run([build / "sluice", "explain", "--json", "--concurrency", "1", *model, *flags],
                                                  check=True, capture_output=True, text=True).stdout)["layout"]
            with Sluice(build / "sluice", "server", "--load-format", "dummy", "--port", 0, "--threads", 1, "--max-total-tokens", 4096,
                        *model, *flags) as server:
                bytes_per_token, steps = measure(server, explained["dp_size"], options.output)
            computed = explained["wire_bytes_per_token"]
            # From each rank to each other, in every step.
            ranks = int(flags[flags.index("--tp") + 1])
            rows = ranks * (ranks - 1) * explained["step_row_bytes"] * steps / (explained["dp_size"] * options.output)
            print(f"| {name} | {computed:,.0f} | {bytes_per_token:,.0f} | {bytes_per_token / computed - 1:+.2%} | {rows:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
