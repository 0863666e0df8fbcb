#!/usr/bin/env python3
"""Every option of every command has a row in docs/results/option-effects.md that cites a test of what it changes; the test is
in the sources and sets the option, by itself or in what stands above the tests of its file or class.

usage: check_option_tests.py <sluice binary>"""
import collections
import json
import re
import subprocess
import sys

from check_reliability import CC_TEST, PY_TEST
from check_tree import ROOT, tracked

HANDS_ON = {"serve": ("server", "gateway"), "explain": ("server",), "check-cluster": ("server",)}  # to whom
PAGE = ROOT / "docs/results/option-effects.md"
ROW = re.compile(r"^\| `--([a-z0-9-]+)` \| ([^|]+) \| `(\w+\.\w+)` \|$", re.M)


def bodies():
    """Suite.Test -> its text, with what stands above the tests of its file, of all tests in the sources."""
    found = {}
    for path in tracked():
        if not path.is_file() or not path.name.endswith(("_test.cc", "_test.py")):
            continue
        text = path.read_text()
        marks = list((CC_TEST if path.suffix == ".cc" else PY_TEST).finditer(text))
        above = text[:marks[0].start()] if marks and path.suffix == ".cc" else ""
        suite = ""
        for mark, following in zip(marks, marks[1:] + [None]):
            its = text[mark.start():following.start() if following else len(text)]
            if path.suffix == ".cc":
                suite, test = mark.groups()
            else:
                suite, test = mark[1] or suite, mark[2]
                above = its if mark[1] else above  # what the tests of a class share
            if test:
                found[f"{suite}.{test}"] = above + its
    return found


def sections(page):
    """Command -> the rows below its heading."""
    parts = re.split(r"^## `sluice ([a-z -]+)`$", page, flags=re.M)
    return {command: ROW.findall(text) for command, text in zip(parts[1::2], parts[2::2])}


def own(command, options):
    """Those of the command alone: what it hands on to others has its rows there."""
    elsewhere = {option["name"] for other in HANDS_ON.get(command, ()) for option in options.get(other, [])}
    if command == "serve":
        elsewhere |= {f"router-{option['name']}" for option in options["gateway"]}
    return [option for option in options[command] if option["name"] not in elsewhere]


def problems_of(command, options, rows, known):
    count = collections.Counter(name for name, *_ in rows)
    for name in count:
        if name not in {o["name"] for o in options}:
            yield f"--{name} is no option of sluice {command}, or one that it hands on"
    for option in options:
        name = option["name"]
        if count[name] != 1:
            yield f"--{name} has {count[name]} rows; write one, with a test that shows what the option changes"
        for _, _, test in (row for row in rows if row[0] == name):
            flags = "|".join(re.escape(flag) for flag in [name, *option.get("aliases", [])])
            if test not in known:
                yield f"--{name}: there is no test {test}"
            elif not re.search(rf"--({flags})\b(?!-)", known[test]):
                yield f"--{name}: {test} does not set it"


def main():
    dump = json.loads(subprocess.run([sys.argv[1], "options", "--json"], check=True, capture_output=True).stdout)
    options = {d["command"]: d["options"] for d in dump}
    rows = sections(PAGE.read_text())
    known = bodies()
    problems = [f"sluice {command}: {problem}" for command in options
                for problem in problems_of(command, own(command, options), rows.get(command, []), known)]
    print("\n".join(f"{PAGE.relative_to(ROOT)}: {problem}" for problem in problems)
          or f"{sum(len(rows.get(command, [])) for command in options)} options have a test of what they change")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
