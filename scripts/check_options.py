#!/usr/bin/env python3
"""Every option row is read: the file that a row names as its reader mentions the member of the row's name, and every name
is in one row only.

usage: check_options.py <sluice binary>"""
import json
import re
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"


def main():
    binary = sys.argv[1]
    dump = subprocess.run([binary, "options", "--json"], capture_output=True, text=True, check=True)
    problems, count = [], 0
    for document in json.loads(dump.stdout):
        command, rows = document["command"], document["options"]
        rejected = {flag["name"] for flag in document["rejected"]}
        names = [name for row in rows for name in [row["name"], *row.get("aliases", [])]]
        problems += [f"{command}: --{name} is declared twice" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [f"{command}: --{name} is both an option and rejected" for name in sorted(rejected & set(names))]
        for row in rows:
            count += 1
            reader = row["read_by"]
            texts = [p.read_text() for p in (SRC / f"{reader}.cc", SRC / f"{reader}.h") if p.exists()]
            # The gateway's options with the prefix that they have in `serve` fill the gateway's own members.
            names = {row["name"], row["name"].removeprefix("router-") if command == "serve" else row["name"]}
            members = "|".join(name.replace("-", "_") for name in names)
            if not texts:
                problems.append(f"{command} --{row['name']}: read_by names src/{reader}, which does not exist")
            elif not any(re.search(rf"\b({members})\b", text) for text in texts):
                problems.append(f"{command} --{row['name']}: src/{reader} does not read {members}")
            if not row["help"]:
                problems.append(f"{command} --{row['name']}: no help")
    if count == 0:
        problems.append("no command has options")
    print("\n".join(problems) or f"{count} options are read")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
