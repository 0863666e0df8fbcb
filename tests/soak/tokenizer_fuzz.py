#!/usr/bin/env python3
"""Random strings through our tokenizer and through the `tokenizers` package: every id must be equal.

usage: tokenizer_fuzz.py <tokenizer_bench> <fixtures> [--strings N] [--seed N]

Needs `pip install tokenizers`. The full length, 100,000 strings for each tokenizer, takes a minute; the seed decides the strings."""
import argparse
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

RANGES = [(0x20, 0x7e), (0x20, 0x7e), (0x20, 0x7e), (0xa0, 0x24f), (0x250, 0x36f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xe7f),
          (0x1100, 0x11ff), (0x1e00, 0x1fff), (0x2000, 0x2bff), (0x3000, 0x30ff), (0x3400, 0x9fff), (0xac00, 0xd7a3),
          (0xf900, 0xffef), (0x1d400, 0x1d7ff), (0x1f300, 0x1faff), (0x20000, 0x2a6df), (0, 0x1f), (0x7f, 0x9f)]
PIECES = [" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "'", "'s", "'LL", "’s", "the", " Hello", "123", "4567890", "é", "e\u0301", "漢字",
          "한국", "😀", "👩\u200d👩\u200d👧", ".", "...", ",", "_", "(", ")", " =", "==", "\u00a0", "\u3000", "\u2028", "\ufeff", "a", "B", " C",
          "7", "-", "/", "//", "\\", "\u0301", "ß", "Ж", "ﬁ", "Å", "K", "{", "}", "\"", "\0", "<", "|>", "_x", "camelCase", "ALLCAPS",
          "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "<｜User｜>", "<｜end▁of▁sentence｜>",
          "<｜tool▁sep｜>"]


def random_string(rng):
    kind = rng.random()
    if kind < 0.3:
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(0, 60)))
    if kind < 0.5:
        return "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(0, 60)))
    if kind < 0.55:
        return rng.choice(PIECES) * rng.randint(1, 300)
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 40)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--strings", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    wrong = 0
    for name in ("tokenizer-qwen3", "tokenizer-deepseek_v3"):
        rng = random.Random(args.seed)
        strings = [random_string(rng) for _ in range(args.strings)]
        library = tokenizers.Tokenizer.from_file(str(args.fixtures / name / "tokenizer.json"))
        expected = [e.ids for e in library.encode_batch_fast(strings, add_special_tokens=False)]
        with tempfile.NamedTemporaryFile("wb") as file:
            for text in strings:
                data = text.encode()
                file.write(struct.pack("<I", len(data)) + data)
            file.flush()
            out = subprocess.check_output([args.program, "ids", args.fixtures / name, file.name], text=True)
        ours = [[int(i) for i in line.split()] for line in out.split("\n")[:-1]]
        assert len(ours) == len(strings), f"{len(ours)} lines for {len(strings)} strings"
        different = [(s, o, e) for s, o, e in zip(strings, ours, expected) if o != e]
        for text, got, want in different[:5]:
            print(f"{name}: {text!r}\n  ours {got}\n  theirs {want}")
        print(f"{name}: {len(strings)} strings, {sum(map(len, expected))} ids, {len(different)} strings differ")
        wrong += len(different)
    return 1 if wrong else 0


sys.exit(main())
