#!/usr/bin/env python3
"""cmake --install gives one binary, a man page per command, shell completion and systemd units.

usage: install_test.py <build folder>"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

BUILD = sys.argv[1]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    with tempfile.TemporaryDirectory() as prefix:
        output("cmake", "--install", BUILD, "--prefix", prefix)
        root = Path(prefix)
        binary = root / "bin/sluice"
        assert list((root / "bin").iterdir()) == [binary], "one binary"

        visible = [c["command"] for c in json.loads(output(binary, "options", "--json")) if not c["hidden"]]
        pages = {p.stem for p in (root / "share/man/man1").iterdir()}
        assert pages == {"sluice"} | {"sluice-" + c.replace(" ", "-") for c in visible}, pages

        completion = root / "share/bash-completion/completions/sluice"
        script = (f'source {completion}; COMP_WORDS=({binary} ""); COMP_CWORD=1; _sluice; echo "${{COMPREPLY[@]}}"')
        offered = output("bash", "-c", script).split()
        assert set(c.split()[0] for c in visible) <= set(offered), offered
        assert (root / "share/zsh/site-functions/_sluice").exists()

        for unit in (root / "lib/systemd/system").iterdir():
            command = unit.stem.removeprefix("sluice-")
            assert command in visible, unit
    print(f"installed: {', '.join(sorted(pages))}")


if __name__ == "__main__":
    main()
