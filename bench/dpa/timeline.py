#!/usr/bin/env python3
"""Draws what the attention groups of a server do, step by step, from the traces of /start_profile: one row of bars for each.

usage: timeline.py record <build folder> <folder>      runs four ranks with DP attention in mixed modes and leaves their traces
       timeline.py draw <out.svg> <trace> ... [--from MS] [--to MS]

The recorded load: rank 0 decodes four requests, rank 1 one and gets two long prompts in between, rank 2 gets a prompt and then
has nothing to do, rank 3 has one short request. Weights are nobody's, of DeepSeek-V2-Lite's widths with two layers."""
import argparse
import glob
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call  # noqa: E402

COLOURS = {"prefill": "#f59e0b", "decode": "#0369a1", "mixed": "#7c3aed"}
WIDTH, LEFT, ROW, TOP = 900, 80, 46, 58


def record(build, where):
    def ask(url, rank, tokens, output):
        status, _, body = call(url + "/generate", {"input_ids": list(range(10, 10 + tokens)), "routed_dp_rank": rank, "sampling_params": {
            "temperature": 0, "max_new_tokens": output, "ignore_eos": True}})
        assert status == 200, body

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(build / "fixtures/published-configs/DeepSeek-V2-Lite.json", Path(folder) / "config.json")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(build / "fixtures/tokenizer-deepseek_v3" / name, folder)
        with Sluice(build / "sluice", "server", "--model-path", folder, "--load-format", "dummy", "--port", 0, "--tp", 4, "--dp-size", 4,
                    "--enable-dp-attention", "--threads", 1, "--max-total-tokens", 4096, "--json-model-override-args",
                    '{"num_hidden_layers": 2}', "--disable-radix-cache") as server:
            status, _, body = call(server.url + "/start_profile", {"output_dir": str(where), "profile_prefix": "modes", "profile_id": "1"})
            assert status == 200, body
            decoding = [threading.Thread(target=ask, args=(server.url, rank, 24, 24)) for rank in (0, 0, 0, 0, 1)]
            later = [(1, 600, 2), (2, 300, 4), (1, 400, 2), (3, 60, 6)]
            for thread in decoding:
                thread.start()
            for load in later:
                ask(server.url, *load)
            for thread in decoding:
                thread.join()
            assert call(server.url + "/stop_profile", method="POST")[0] == 200
    print("\n".join(sorted(glob.glob(f"{where}/modes-1-DP-*.trace.json"))))


def steps_of(path):
    events = json.loads(Path(path).read_text())["traceEvents"]
    return [event for event in events if event["ph"] == "X" and event["tid"] == 1]


def draw(out, traces, begin, end):
    rows = [steps_of(path) for path in traces]
    start = min(event["ts"] for row in rows for event in row) / 1000
    rows = [[(e["ts"] / 1000 - start, e["dur"] / 1000, e["name"], e["args"]) for e in row] for row in rows]
    end = end or max(at + length for row in rows for at, length, *_ in row)
    scale = (WIDTH - LEFT - 20) / (end - begin)
    height = TOP + ROW * len(rows) + 40
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
           'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#0f172a">',
           "<title>Steps of four attention groups: each prefills, decodes or idles by itself, all step together</title>",
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>']
    for i, (name, colour) in enumerate(COLOURS.items()):
        svg += [f'<rect x="{LEFT + 110 * i}" y="16" width="14" height="14" fill="{colour}"/>',
                f'<text x="{LEFT + 110 * i + 20}" y="28">{name}</text>']
    svg.append(f'<text x="{LEFT + 330}" y="28">empty: nothing of its own; it computes its experts for the others</text>')
    for i, row in enumerate(rows):
        top = TOP + ROW * i
        svg += [f'<text x="8" y="{top + 22}">rank {i}</text>',
                f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - 20}" height="34" fill="#f1f5f9"/>']
        for at, length, name, arguments in row:
            if at + length < begin or at > end:
                continue
            x, right = LEFT + max(0, at - begin) * scale, LEFT + min(end - begin, at + length - begin) * scale
            what = f'{name}: {arguments["tokens"]} tokens of {arguments["sequences"]} sequences, {length:.1f} ms'
            svg.append(f'<rect x="{x:.1f}" y="{top}" width="{max(1, right - x - 0.6):.1f}" height="34" fill="{COLOURS[name]}">'
                       f"<title>{escape(what)}</title></rect>")
            if right - x > 26:
                svg.append(f'<text x="{(x + right) / 2:.1f}" y="{top + 22}" fill="#ffffff" font-size="11" text-anchor="middle">'
                           f'{arguments["tokens"]}</text>')
    bottom = TOP + ROW * len(rows)
    for i in range(6):
        at = begin + (end - begin) * i / 5
        svg.append(f'<text x="{LEFT + (at - begin) * scale:.1f}" y="{bottom + 16}" text-anchor="middle">{at - begin:.0f} ms</text>')
    Path(out).write_text("\n".join([*svg, "</svg>", ""]))


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("build", type=Path)
    recording.add_argument("folder", type=Path)
    drawing = commands.add_parser("draw")
    drawing.add_argument("out")
    drawing.add_argument("traces", nargs="+")
    drawing.add_argument("--from", type=float, default=0, dest="begin")
    drawing.add_argument("--to", type=float, dest="end")
    options = parser.parse_args()
    if options.command == "record":
        record(options.build.resolve(), options.folder.resolve())
    else:
        draw(options.out, options.traces, options.begin, options.end)


if __name__ == "__main__":
    main()
