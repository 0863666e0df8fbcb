#!/usr/bin/env python3
"""docs/gateway.md, "Errors made by the gateway", has a row for each code that the gateway makes, with its statuses, and no
others. Codes are found where they are written: in calls of the functions that make errors, which take them as literals."""
import re
import sys

from check_tree import ROOT, tracked

PAGE = ROOT / "docs/gateway.md"
# status, code: error_response(404, "x", worker_error, fail, reject, Refusal{404, "x"
WITH_STATUS = re.compile(r'\b(?:error_response|worker_error|fail|reject|Refusal)[({]([^,;()]*?(?:\?[^,;()]*)?),\s*"(\w+)"')
WITHOUT = (re.compile(r'\bunavailable\(\s*"(\w+)"'), re.compile(r'\bcode = "(\w+)"'))
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.M)


def made(sources):
    """code -> the statuses that stand beside it, as far as they are numbers there."""
    codes = {}
    for text in sources:
        for status, code in WITH_STATUS.findall(text):
            codes.setdefault(code, set()).update(re.findall(r"\b[45]\d\d\b", status))
        for code in (code for pattern in WITHOUT for code in pattern.findall(text)):
            codes.setdefault(code, set())
    return codes


def main():
    sources = [path.read_text() for path in tracked()
               if path.is_relative_to(ROOT / "src/gateway") and path.suffix in (".cc", ".h")
               and not path.stem.endswith(("_test", "_fixture")) and path.is_file()]
    codes = made(sources)
    if len(codes) < 20:
        print(f"only {len(codes)} codes were found in src/gateway: does the pattern of this check fit the sources?")
        return 1
    section = PAGE.read_text().partition("\n## Errors made by the gateway\n")[2].partition("\n## ")[0]
    told = {code: statuses for code, statuses in ROW.findall(section)}
    problems = [f"{code} is not on the page" for code in codes if code not in told]
    problems += [f"{code} is on the page, and the gateway makes no such error" for code in told if code not in codes]
    problems += [f"{code} is also {status}" for code, statuses in codes.items() for status in sorted(statuses)
                 if code in told and status not in told[code]]
    for problem in problems:
        print(f"docs/gateway.md, errors: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
