#!/usr/bin/env python3
"""Speed of our tokenizer and of the `tokenizers` package, each on one thread, on the same documents in the same run, turn by turn.

    pip install tokenizers
    compare.py build/release/bench/tokenizer_bench build/release/fixtures [--rounds 7] [--size 4096]

Documents are pieces of this repository's pages (English), of its sources (C++), and of the texts of the fixtures (many scripts).
The package runs encode_batch_fast, which leaves offsets out, with TOKENIZERS_PARALLELISM=false. Ids must be equal. Prints the table
of docs/results/tokenizer.md: the best round of each side, and the ratio. The first pass of a process has no words in its cache yet.
"""
import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent


def pieces(text, size):
    return [text[i:i + size] for i in range(0, len(text), size)]


def corpora(fixtures, size):
    english = "\n".join(p.read_text() for p in sorted((ROOT / "docs").rglob("*.md")))
    code = "\n".join(p.read_text() for p in sorted((ROOT / "src").rglob("*.cc")))[:1_500_000]
    rng = random.Random(5)
    texts = [c["text"] for c in json.loads((fixtures / "tokenizer-qwen3/reference.json").read_text())["encode"]]
    scripts = "\n".join(rng.choice(texts) for _ in range(8000))[:800_000]
    return {"English": pieces(english, size), "C++": pieces(code, size), "many scripts": pieces(scripts, size)}


def write_documents(file, documents):
    for text in documents:
        data = text.encode()
        file.write(struct.pack("<I", len(data)) + data)
    file.flush()


def checksum(encodings):
    count = total = 0
    for encoding in encodings:
        ids = encoding.ids
        count += len(ids)
        for i in ids:
            total = (total * 31 + i) & (2**64 - 1)
    return count, total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=4096, help="characters of a document")
    args = parser.parse_args()
    print(f"tokenizers {tokenizers.__version__}; documents of {args.size} characters")
    print("| tokenizer | text | MB | ours, first pass, MB/s | ours, MB/s | `tokenizers`, MB/s | ratio |\n|---|---|---|---|---|---|---|")
    for name in ("tokenizer-qwen3", "tokenizer-deepseek_v3"):
        library = tokenizers.Tokenizer.from_file(str(args.fixtures / name / "tokenizer.json"))
        for kind, documents in corpora(args.fixtures, args.size).items():
            size = sum(len(d.encode()) for d in documents) / 1e6
            with tempfile.NamedTemporaryFile("wb") as file:
                write_documents(file, documents)
                first, ours, theirs = [], [], []
                for _ in range(args.rounds):
                    # A process of its own each time, and its second pass: caches of words are warm on both sides.
                    out = json.loads(subprocess.check_output([args.program, "time", args.fixtures / name, file.name, "2"]))
                    first.append(out["seconds"][0])
                    ours.append(out["seconds"][1])
                    begin = time.perf_counter()
                    encodings = library.encode_batch_fast(documents, add_special_tokens=False)
                    theirs.append(time.perf_counter() - begin)
                assert checksum(encodings) == (out["ids"], out["checksum"]), f"{name}, {kind}: other ids"
            best = [size / min(s) for s in (first, ours, theirs)]
            middle = statistics.median(theirs) / statistics.median(ours)
            print(f"| {name.removeprefix('tokenizer-')} | {kind} | {size:.2f} | {best[0]:.1f} | {best[1]:.1f} | {best[2]:.1f} | "
                  f"{best[1] / best[2]:.1f} (medians {middle:.1f}) |", flush=True)

    print("\n| tokenizer | a chat of 40 turns, tokenized after each | as a whole, ms | remembered, ms | last turn, bytes | as a whole, ms | "
          "remembered, ms |\n|---|---|---|---|---|---|---|")
    for name in ("tokenizer-qwen3", "tokenizer-deepseek_v3"):
        english = corpora(args.fixtures, 1500)["English"][:40]
        with tempfile.NamedTemporaryFile("wb") as file:
            write_documents(file, [f"<|im_start|>user\n{d}<|im_end|>\n" for d in english])
            out = json.loads(subprocess.check_output([args.program, "turns", args.fixtures / name, file.name, str(args.rounds)]))
        print(f"| {name.removeprefix('tokenizer-')} | 40 x 1,500 characters | {min(out['whole']) * 1e3:.1f} | "
              f"{min(out['remembered']) * 1e3:.1f} | {out['last_bytes']:,} | {out['last_whole'] * 1e3:.2f} | "
              f"{out['last_remembered'] * 1e3:.2f} |")


main()
