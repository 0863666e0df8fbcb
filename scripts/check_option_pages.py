#!/usr/bin/env python3
"""The pages of docs/options/ are what the option tables of the binary say.

usage: check_option_pages.py <sluice binary> [--write]; with --write, the pages are written anew"""
import json
import subprocess
import sys
from pathlib import Path

PAGES = Path(__file__).resolve().parent.parent / "docs/options"
AGAIN = "run: scripts/check_option_pages.py build/release/sluice --write"


def pages_of(binary):
    dump = json.loads(subprocess.run([binary, "options", "--json"], check=True, capture_output=True).stdout)
    for command in (d["command"] for d in dump if d["options"] and not d["hidden"]):
        text = subprocess.run([binary, "options", *command.split(), "--markdown"], check=True, capture_output=True,
                              text=True).stdout
        yield PAGES / f"{command.replace(' ', '-')}.md", text


def main():
    expected = dict(pages_of(sys.argv[1]))
    if sys.argv[2:] == ["--write"]:
        PAGES.mkdir(exist_ok=True)
        for path, text in expected.items():
            path.write_text(text)
        return 0
    problems = [f"docs/options/{path.name} is not what the option table says; {AGAIN}" for path, text in expected.items()
                if not path.exists() or path.read_text() != text]
    if not expected:
        problems.append("no command has options")
    print("\n".join(problems) or f"{len(expected)} pages are what the option tables say")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
