#!/usr/bin/env python3
"""Every header of src/ compiles alone. What compiled once is remembered by the content of the header and of all it
includes from src/, so that a second run compiles only what changed.

usage: check_headers.py <build folder>"""
import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def closure(header):
    seen, todo = set(), [header]
    while todo:
        current = todo.pop()
        if current in seen or not (SRC / current).exists():
            continue
        seen.add(current)
        todo += INCLUDE.findall((SRC / current).read_text())
    return sorted(seen)


def flags_by_kind(build):
    """The compiler and flags of some file of each (folder, is a test), without what belongs to that file or to precompiled
    headers."""
    result = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = Path(entry["file"])
        if not path.is_relative_to(SRC):
            continue
        folder = path.relative_to(SRC).parts[0]
        words = shlex.split(entry["command"])
        start = next((i for i, w in enumerate(words) if re.search(r"(g\+\+|clang\+\+|c\+\+)(-\d+)?$", w)), 0)
        kept, skip = [], False
        for word in words[start:]:
            if skip:
                skip = False
            elif word in ("-include", "-o", "-c", "-MT", "-MF"):
                skip = True
            elif word not in ("-MD", "-Winvalid-pch", "-fpch-preprocess") and word != str(path):
                kept.append(word)
        result.setdefault((folder, path.stem.endswith("_test")), kept)
    return result


def main():
    build = Path(sys.argv[1]).resolve()
    stamps = build / "header_checks"
    stamps.mkdir(exist_ok=True)
    flags = flags_by_kind(build)

    def check(header):
        name = header.relative_to(SRC).as_posix()
        # What only tests include is compiled as they are.
        folder, of_tests = name.split("/")[0], header.stem.endswith("_fixture")
        command = flags.get((folder, of_tests)) or flags.get((folder, not of_tests))
        # Some tests alone are given the place of the fixtures, and a fixture's header may be of such a test.
        if command is not None and of_tests and not any("SLUICE_FIXTURES_DIR" in word for word in command):
            command = command + ['-DSLUICE_FIXTURES_DIR=""']
        if command is None:
            return None
        digest = hashlib.sha256(" ".join(command).encode())
        for part in closure(name):
            digest.update((SRC / part).read_bytes())
        stamp = stamps / digest.hexdigest()
        if stamp.exists():
            return None
        run = subprocess.run(command + ["-fsyntax-only", "-O0", "-x", "c++", "-"], input=f'#include "{name}"\n',
                             text=True, capture_output=True, cwd=build)
        if run.returncode == 0:
            stamp.touch()
            return None
        return f"{name} does not compile alone:\n{run.stderr}"

    headers = sorted(SRC.rglob("*.h"))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [p for p in pool.map(check, headers) if p]
    print("\n".join(problems) or f"{len(headers)} headers compile alone")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
