#!/usr/bin/env python3
"""Holds the includes of src/ to the direction of docs/architecture.md: a folder includes only what it may use, and what
gateway/ reaches, however indirectly, is never of the engine. Libraries are those of docs/dependencies.md and no others:
one that happens to be installed here is missing on the next machine."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
LIBRARY_INCLUDE = re.compile(r"^\s*#\s*include\s+<([^>]+)>", re.M)
# The first part of what is included from each package of scripts/debian-packages.txt, and of the C library.
LIBRARIES = set("boost dnnl.hpp fmt gloo gmock gtest nghttp2 nlohmann openssl pcre2.h prometheus sentencepiece_processor.h simdjson.h spdlog unicode xgrammar xxhash.h zmq.h".split())
SYSTEM = set("arpa cpuid.h cxxabi.h dirent.h dlfcn.h elf.h execinfo.h fcntl.h ifaddrs.h immintrin.h linux malloc.h net netdb.h netinet poll.h "
             "pthread.h sanitizer sched.h signal.h spawn.h stdio.h stdlib.h string.h sys termios.h time.h unistd.h".split())

BASE = {"base"}
COMMON = BASE | {"net", "obs", "protocol", "routing"}
MAY_USE = {
    "base": set(),
    "net": BASE,
    "obs": BASE | {"net"},
    "protocol": BASE,
    "parsers": BASE | {"protocol"},
    "routing": BASE | {"protocol"},
    "testing": COMMON,
    "bench": COMMON | {"testing", "tokenizer"},
    "gateway": COMMON | {"tokenizer"},
    "tokenizer": BASE,
    "tensor": BASE,
    "kernels": BASE | {"tensor"},
    "parallel": BASE | {"tensor", "kernels"},
    "moe": BASE | {"tensor", "kernels", "parallel"},
    "models": BASE | {"tensor", "kernels", "parallel", "moe"},
    "engine": COMMON | {"parsers", "tokenizer", "tensor", "kernels", "parallel", "moe", "models"},
    "cli": None,  # sees all
}
# The policy simulator stands beside the policies, and its workers are those that tests and benches have.
ALSO = {"gateway/simulator/": {"testing"}}
ENGINE_STACK = {"tensor", "kernels", "parallel", "moe", "models", "engine"}


def main():
    problems = []
    includes = {}
    for path in sorted(SRC.rglob("*")):
        if path.suffix not in (".h", ".cc", ".inc"):
            continue
        name = path.relative_to(SRC).as_posix()
        includes[name] = INCLUDE.findall(path.read_text())
        folder = name.split("/")[0]
        if folder not in MAY_USE:
            problems.append(f"src/{name}: the folder {folder}/ is not in the list of scripts/check_includes.py")
            continue
        allowed = MAY_USE[folder]
        for part, more in ALSO.items():
            if allowed is not None and name.startswith(part):
                allowed = allowed | more
        for target in includes[name]:
            other = target.split("/")[0]
            if not (SRC / target).exists():
                problems.append(f'src/{name}: #include "{target}" is not a file of src/')
            # A test, and the fixture that several share, may use the test helpers and what they need.
            elif allowed is not None and other != folder and other not in allowed:
                if not (name.endswith(("_test.cc", "_fixture.h")) and other in ("testing", "tokenizer", "net", "tensor")):
                    problems.append(f"src/{name}: {folder}/ may not use {other}/ ({target})")

    for folder in ("src", "bench", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in (".h", ".cc", ".inc"):
                continue
            for target in LIBRARY_INCLUDE.findall(path.read_text()):
                first = target.split("/")[0]
                is_standard = "/" not in target and "." not in target
                if not is_standard and first not in LIBRARIES | SYSTEM:
                    problems.append(f"{path.relative_to(ROOT)}: <{target}> is of no package that is installed; see "
                                    "docs/dependencies.md, then scripts/debian-packages.txt and this script")

    # What the gateway reaches through any chain of headers.
    for name in (n for n in includes if n.startswith("gateway/")):
        seen, todo = {name}, [(name, [name])]
        while todo:
            current, chain = todo.pop()
            for target in includes.get(current, []):
                if target in seen:
                    continue
                seen.add(target)
                if target.split("/")[0] in ENGINE_STACK:
                    problems.append("the gateway reaches the engine: " + " -> ".join(chain + [target]))
                todo.append((target, chain + [target]))

    print("\n".join(problems) or f"{len(includes)} files include what they may")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
