#!/usr/bin/env python3
"""How many unique tokens tensor parallelism holds, and how many with DP attention, for the same bytes of keys and values on each
rank: the pools are filled with requests that are all unlike until the first one has to give up its slots, and what was there just before
is counted. Beside it stand what the formula says (`sluice explain`) and what the memory plan has room for.

usage: fill.py <build folder> [--models DeepSeek-V2-Lite Qwen3-30B-A3B Llama-3.1-8B-Instruct] [--layers 2] [--tp 4] [--dp 4] [--mib 4.5]
               [--json FILE]

Models have their published widths, cut to --layers layers, and weights that nobody trained. --mib: of keys and values, on each rank."""
import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import Sluice, call, explain  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/integration"))
from layout_fixture import fill_pools  # noqa: E402

COLUMNS = ["model", "layout", "bytes_per_token_and_rank", "kv_bytes_of_rank", "planned_tokens", "resident_tokens", "times", "formula"]


def model_folder(build, name, where):
    shutil.copy(build / f"fixtures/published-configs/{name}.json", where / "config.json")
    for file in ("tokenizer.json", "tokenizer_config.json"):  # any will do: prompts are ids
        shutil.copy(build / "fixtures/tokenizer-deepseek_v3" / file, where)


def measure(build, options, name, folder):
    model = ["--model-path", folder, "--json-model-override-args", json.dumps({"num_hidden_layers": options.layers}), "--threads", 1]
    vocabulary = min(json.loads((folder / "config.json").read_text())["vocab_size"], 100_000)
    tp = ["--tp", options.tp]
    dpa = [*tp, "--dp-size", options.dp, "--enable-dp-attention"]
    rows = []
    for layout in (tp, dpa):
        size = explain(build, [*model, *layout])["ranks"][0]["kv_bytes_per_token"]
        flags = [*model, *layout, "--max-total-tokens", int(options.mib * 2**20) // size]
        plan = explain(build, flags)["layout"]
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as traces, Sluice(
                build / "sluice", "server", *flags, "--load-format", "dummy", "--port", 0, "--disable-radix-cache", "--schedule-conservativeness",
                0, env={"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "1"}) as server:
            pools = fill_pools(server.url, traces, vocabulary)
            kv_bytes = round(call(server.url + "/v1/loads?include=all")[2]["loads"][0]["memory"]["kv_cache_gb"] * 2**30)
        resident = sum(tokens for tokens, _ in pools)
        rows.append(dict(zip(COLUMNS, [name, " ".join(map(str, layout)), size, kv_bytes, plan["unique_tokens"], resident,
                                       resident / rows[0]["resident_tokens"] if rows else 1.0,
                                       plan["dp_attention_gain"] if rows else 1.0])) | {"seconds": time.monotonic() - begun})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--models", nargs="+", default=["DeepSeek-V2-Lite", "Qwen3-30B-A3B", "Llama-3.1-8B-Instruct"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tp", type=int, default=4)
    parser.add_argument("--dp", type=int, default=4)
    parser.add_argument("--mib", type=float, default=4.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    build = options.build.resolve()
    rows = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model_folder(build, name, Path(folder))
            rows += measure(build, options, name, Path(folder))
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print("\n| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(f"{row[key]:.3f}" if isinstance(row[key], float) else f"{row[key]:,}" if isinstance(row[key], int) else row[key]
                                 for key in COLUMNS) + " |")


if __name__ == "__main__":
    main()
