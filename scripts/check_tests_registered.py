#!/usr/bin/env python3
"""Every *_test.cc of src/ and tests/ is compiled into a test program that ctest knows, and every *_test.py is in ctest. A
build without the engine has no tests of the engine and is excused.

usage: check_tests_registered.py <build folder>"""
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    build = Path(sys.argv[1]).resolve()
    compiled = {Path(entry["file"]).resolve() for entry in json.loads((build / "compile_commands.json").read_text())}
    listing = subprocess.run(["ctest", "--show-only=json-v1"], cwd=build, capture_output=True, text=True, check=True)
    known = {test["name"] for test in json.loads(listing.stdout)["tests"]}
    # "Instance/Suite.Test/parameter" and "Suite.Test"
    suites = {match[1] for match in (re.match(r"(?:\w+/)?(\w+)[./]", name) for name in known) if match}
    gateway_only = "SLUICE_ENGINE:BOOL=OFF" in (build / "CMakeCache.txt").read_text()
    problems = []
    count = 0
    for folder in ("src", "tests"):
        for path in sorted((ROOT / folder).rglob("*_test.cc")):
            count += 1
            if path.resolve() not in compiled:
                if not gateway_only:
                    problems.append(f"{path.relative_to(ROOT)} is in no test program")
                continue
            declared = set(re.findall(r"^\s*(?:TYPED_)?TEST(?:_F|_P)?\(\s*(\w+)\s*,", path.read_text(), re.M))
            if not declared:
                problems.append(f"{path.relative_to(ROOT)} declares no test")
            for suite in declared - suites:
                problems.append(f"{path.relative_to(ROOT)}: the suite {suite} is not in ctest")
        for path in sorted((ROOT / folder).rglob("*_test.py")):
            count += 1
            if path.stem not in known and path.name not in known and not gateway_only:
                problems.append(f"{path.relative_to(ROOT)} is not in ctest under the name {path.stem}")
    print("\n".join(problems) or f"{count} test files are in ctest")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
