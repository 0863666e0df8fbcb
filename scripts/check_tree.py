#!/usr/bin/env python3
"""The tracked files speak of the product alone: no paths of a machine, no registry hosts. Sources are clang-format clean."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Written in pieces, so that this file does not report itself.
FOREIGN = re.compile("|".join([r"(?:^|[^A-Za-z0-9_.])/(?:wo" + "rk|fa" + "rm)/", "/tmp/ba" + "sh_jobs", r"pyp" + r"i\.org",
                               r"deb\.deb" + r"ian\.org", "files\\.pythonho" + "sted"]))
# Pages that are not in the repository say nothing to who reads it.
ELSEWHERE = re.compile(r"\b(?:(?:engine|gateway)-reference|sglang-dp-guide)\.md")


def tracked():
    """The files of the repository. An unpacked release, or a machine without git, has those that no build made."""
    if shutil.which("git"):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
        if listing.returncode == 0:
            return [ROOT / name.decode() for name in listing.stdout.split(b"\0") if name]
    made = {"build", ".cache", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not made & set(p.relative_to(ROOT).parts)]


def main():
    problems = []
    sources = []
    for path in tracked():
        if not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" in data[:4096]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if FOREIGN.search(line):
                problems.append(f"{path.relative_to(ROOT)}:{number}: a path of a machine or a registry host")
            if ELSEWHERE.search(line):
                problems.append(f"{path.relative_to(ROOT)}:{number}: a page that is not in the repository")
        if path.suffix in (".h", ".cc", ".inc", ".cu", ".cuh"):
            sources.append(str(path))
    formatter = shutil.which("clang-format")
    if formatter is None:
        problems.append("clang-format is not installed")
    else:
        run = subprocess.run([formatter, "--dry-run", "--Werror", *sources], capture_output=True, text=True)
        problems += sorted({line.split(":")[0] + ": not as clang-format has it" for line in run.stderr.splitlines()
                            if "error:" in line})
    print("\n".join(problems) or f"{len(sources)} sources are clean")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
