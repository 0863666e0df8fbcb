#!/usr/bin/env python3
"""cmake --install gives one binary, a man page per command, shell completion, systemd units, a dashboard and alert rules.

usage: install_test.py <build folder>"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from layout_fixture import sanitized

BUILD = sys.argv[1]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    with tempfile.TemporaryDirectory() as prefix:
        output("cmake", "--install", BUILD, "--prefix", prefix)
        root = Path(prefix)
        binary = root / "bin/sluice"
        assert list((root / "bin").iterdir()) == [binary], "one binary"

        # The program's memory is mimalloc's; a sanitizer's is its own.
        told = subprocess.run([binary, "--version"], env={**os.environ, "MIMALLOC_SHOW_STATS": "1"}, check=True, capture_output=True, text=True)
        assert ("heap stats" in told.stderr) != sanitized(binary), told.stderr

        visible = [c["command"] for c in json.loads(output(binary, "options", "--json")) if not c["hidden"]]
        pages = {p.stem for p in (root / "share/man/man1").iterdir()}
        assert pages == {"sluice"} | {"sluice-" + c.replace(" ", "-") for c in visible}, pages

        completion = root / "share/bash-completion/completions/sluice"
        def offered(*words):
            quoted = " ".join(f'"{word}"' for word in (binary, *words))
            script = f'source {completion}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _sluice; echo "${{COMPREPLY[@]}}"'
            return output("bash", "-c", script).split()

        assert set(c.split()[0] for c in visible) <= set(offered("")), offered("")
        assert offered("gateway", "--polic") == ["--policy"]
        policies = offered("gateway", "--policy", "")
        assert "cache_aware" in policies
        # bash splits "--policy=cache" at the "=", zsh does not.
        assert offered("gateway", "--policy", "=") == policies
        assert offered("gateway", "--policy", "=", "cache") == ["cache_aware"]
        assert offered("gateway", "--policy=cache") == ["--policy=cache_aware"]
        assert (root / "share/zsh/site-functions/_sluice").exists()

        deployed = {p.relative_to(root / "share/sluice").as_posix() for p in (root / "share/sluice").rglob("*.*")}
        assert deployed == {"grafana/sluice-gateway.json", "prometheus/prometheus.yml",
                            "prometheus/sluice-gateway.rules.yml"}, deployed

        for unit in (root / "lib/systemd/system").iterdir():
            command = unit.stem.removeprefix("sluice-")
            assert command in visible, unit
            assert f"ExecStart={binary} {command} " in unit.read_text(), unit
    print(f"installed: {', '.join(sorted(pages))}")


if __name__ == "__main__":
    main()
