#!/usr/bin/env python3
"""docs/results/reliability.md has one row for each scenario, in a state that the page explains; the tests that it cites are in
the sources, and the pages and files exist. A row that says that something is shown cites what shows it: a test that has the id of
the scenario in its title, or a case of the soak that has it in its first line. docs/results/conformance.md has one row for each
case, and each cites tests that exist."""
import collections
import re
import sys
from pathlib import Path

from check_tree import ROOT, tracked

PAGE = ROOT / "docs/results/reliability.md"
IDS = [f"{letter}{number}" for letter, last in (("R", 30), ("L", 25), ("X", 13)) for number in range(1, last + 1)] + ["C1", "C8"]
CASES, NUM_CASES = ROOT / "docs/results/conformance.md", 44
CASE = re.compile(r"^\| (\d+) \|.*\| ([^|]+) \|$", re.M)
STATES = ("shown", "partly", "engine", "not yet", "out of scope")
ROW = re.compile(r"^\| ([A-Z]\d+) \| ([^|]+) \| ([^|]+) \| (.+) \|$", re.M)
CC_TEST = re.compile(r"^\s*(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,\s*(\w+)\s*\)", re.M)
PY_TEST = re.compile(r"^class (\w+)|^    def (test_\w+)", re.M)
CITED_TEST = re.compile(r"`([A-Z]\w*\.[A-Za-z]\w*)`")
CITED_PAGE = re.compile(r"\[[^\]]*\]\(([^()\s#]+)[^()\s]*\)")
SOAK = re.compile(r"`(tests/soak/\w+\.py)` ((?:\w+(?:, | and )?)+)")
TITLE_IDS = re.compile(r"(?:[A-Z]\d+)+")
CITED_FILE = re.compile(r"`((?:src|docs|tests|bench|scripts)/[^`]*)`")


def tests():
    """All tests of the sources, as Suite.Test."""
    found = set()
    for path in tracked():
        if path.name.endswith("_test.cc") and path.is_file():
            found |= {f"{suite}.{test}" for suite, test in CC_TEST.findall(path.read_text())}
        elif path.name.endswith("_test.py") and path.is_file():
            suite = ""
            for name, test in PY_TEST.findall(path.read_text()):
                suite = name or suite
                found |= {f"{suite}.{test}"} if test else set()
    return found


def ids_in_title(test):
    """The scenarios in the title of Suite.Test: R3L18AWorkerComes and test_r3_l18_a_worker_comes have two."""
    name = test.partition(".")[2]
    if name.startswith("test_"):
        return {part.upper() for part in re.findall(r"(?<=_)[rlx]\d+(?=_)", name)}
    leading = TITLE_IDS.match(name)
    return set(re.findall(r"[A-Z]\d+", leading[0])) if leading else set()


def ids_of_soak(proof):
    """Those in the first lines of the cases that a row names after the file of the soak."""
    for file, words in SOAK.findall(proof):
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        for case in re.findall(r"\w+", words):
            first = re.search(rf'^def {case}\(.*\):\n    """([^:]*):', text, re.M)
            yield from re.split(r",\s*", first[1]) if first else ()


def problems_of(scenario, state, proof, known):
    cited, pages = CITED_TEST.findall(proof), CITED_PAGE.findall(proof)
    if state not in STATES:
        yield f"the state {state!r} is none of: {', '.join(STATES)}"
    if state in ("shown", "partly") and not cited + pages:
        yield "it names neither a test nor a page"
    if state in ("shown", "partly") and scenario not in set(ids_of_soak(proof)).union(*map(ids_in_title, cited)):
        yield "none of the tests that it cites has it in its title"
    yield from (f"there is no test {test}" for test in cited if test not in known)
    yield from (f"there is no page {page}" for page in pages if not (PAGE.parent / page).is_file())
    yield from (f"there is no file {file}" for file in CITED_FILE.findall(proof) if not (ROOT / file).exists())


def problems_of_cases(known):
    rows = CASE.findall(CASES.read_text())
    if [number for number, _ in rows] != [str(number) for number in range(1, NUM_CASES + 1)]:
        yield f"the cases are not those from 1 to {NUM_CASES}, each once and in order"
    for number, proof in rows:
        cited = CITED_TEST.findall(proof)
        if not cited:
            yield f"{number}: it names no test"
        yield from (f"{number}: there is no test {test}" for test in cited if test not in known)


def main():
    rows = ROW.findall(PAGE.read_text())
    known = tests()
    count = collections.Counter(scenario for scenario, *_ in rows)
    problems = [f"{scenario} has {count[scenario]} rows" for scenario in IDS if count[scenario] != 1]
    problems += [f"{scenario} is no scenario" for scenario in count if scenario not in IDS]
    for scenario, _, state, proof in rows:
        problems += [f"{scenario}: {problem}" for problem in problems_of(scenario, state, proof, known)]
    states = collections.Counter(state for _, _, state, _ in rows)
    lines = [f"{PAGE.relative_to(ROOT)}: {problem}" for problem in problems]
    lines += [f"{CASES.relative_to(ROOT)}: {problem}" for problem in problems_of_cases(known)]
    print("\n".join(lines)
          or f"{len(rows)} scenarios: " + ", ".join(f"{states[state]} {state}" for state in STATES))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
