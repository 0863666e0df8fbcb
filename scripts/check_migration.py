#!/usr/bin/env python3
"""The table of flags in docs/gateway.md is complete: each flag of the SGLang gateways (scripts/sglang_router_flags.txt) is one
that the gateway takes or refuses, and stands on the page with what becomes of it.

usage: check_migration.py <sluice binary> [--write]; with --write, what the page has from the option table is written anew"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/gateway.md"
THEIRS = Path(__file__).with_name("sglang_router_flags.txt")
BEGIN, END = "<!-- flags: written by scripts/check_migration.py --write -->\n", "<!-- end of the flags -->\n"
AGAIN = "run: scripts/check_migration.py build/release/sluice --write"
WIDTH = 128


def wrapped(text):
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = ""
        line += (" " if line else "") + word
    return "\n".join([*lines, line]) + "\n"


def listed(names):
    return ", ".join(f"`--{name}`" for name in names)


def block(options, refused, theirs, noted):
    names = [[option["name"], *option.get("aliases", [])] for option in options]
    taken = {name for row in names for name in row}
    same = [name for row in names for name in row if name in theirs and name not in noted]
    ours = [row[0] for row in names if not theirs & set(row)]
    text = wrapped(f"Taken as they are: {listed(same)}.") + "\n"
    text += wrapped(f"Only here ([all flags](options/gateway.md)): {listed(ours)}.") + "\n"
    text += "| refused | because, and what to do instead |\n|---|---|\n"
    reasons = {}
    for flag in refused:
        if flag["name"] in theirs and flag["name"] not in taken:
            reasons.setdefault(flag["instead"].rstrip("."), []).append(flag["name"])
    return text + "".join(f"| {listed(flags)} | {reason} |\n" for reason, flags in reasons.items())


def main():
    dump = json.loads(subprocess.run([sys.argv[1], "options", "--json"], check=True, capture_output=True).stdout)
    gateway = next(d for d in dump if d["command"] == "gateway")
    options, refused = gateway["options"], gateway["rejected"]
    theirs = {line[2:] for line in THEIRS.read_text().split() if line.startswith("--")}
    taken = {name for option in options for name in [option["name"], *option.get("aliases", [])]}
    known = taken | {flag["name"] for flag in refused}

    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    present, _, after = rest.partition(END)
    # The rows that say what is different are written by hand, above.
    rows = re.findall(r"^\| ((?:`--[a-z0-9-]+`(?:, )?)+) \|", before[before.index("## Migration"):], re.M)
    noted = {flag for row in rows for flag in re.findall(r"--([a-z0-9-]+)", row)}
    expected = block(options, refused, theirs, noted)
    if sys.argv[2:] == ["--write"]:
        PAGE.write_text(before + BEGIN + expected + END + after)
        return 0
    problems = [f"--{name} of theirs is neither taken nor refused" for name in sorted(theirs - known)]
    problems += [f"--{name} has a note and is not taken" for name in sorted(noted - taken)]
    if present != expected:
        problems.append(f"the flags of the migration are not what the option table says; {AGAIN}")
    print("\n".join(f"docs/gateway.md: {problem}" for problem in problems) or f"{len(theirs)} flags of theirs have an answer")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
