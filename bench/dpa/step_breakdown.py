#!/usr/bin/env python3
"""Where the time of an instance's steps goes, rank by rank, from the files of /start_profile.

usage: step_breakdown.py record <build folder> <folder> [--layout dpa-ep] [--tp 4] [--layers 4] [--input 256] [--output 64]
                                [--concurrency 16] [--model FOLDER]
                                                  runs a server, decodes --concurrency requests at once, and shows the files
       step_breakdown.py show <file> ...          shows files of one instance: <prefix>-<id>-rank-<n>.steps.json

Medians over the steps without prompts. The sync row is from the last rank's arrival to the last one's departure: what the exchange
takes when nobody is late; the skew, from the first arrival to the last, is apart from it, and so is the time in which a rank could go on
and had no processor, where they outnumber processors. A rank's own phase "sync row" has both.
Without --model weights are nobody's, of DeepSeek-V2-Lite's widths."""
import argparse
import glob
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run import layouts, model_folder  # noqa: E402
from sluice_process import Sluice, call  # noqa: E402

# Columns of the table, and the phases that they are made of.
COLUMNS = {"sync row": ["exchange"], "plan": ["plan"], "embed": ["embed"], "attention": ["attention"], "gather": ["gather"],
           "dispatch": ["dispatch"], "experts": ["experts"], "combine": ["combine"], "scatter": ["scatter"], "head": ["head"]}


def read(paths):
    """{rank: {exchange: step}}"""
    ranks = {}
    for path in paths:
        content = json.loads(Path(path).read_text())
        ranks[content["rank"]] = {step["exchange"]: step for step in content["steps"]}
    return dict(sorted(ranks.items()))


def common(ranks, extend=False):
    """Numbers of the steps that all ranks recorded, with or without prompts."""
    numbers = set.intersection(*(set(steps) for steps in ranks.values()))
    first = next(iter(ranks.values()))
    return sorted(number for number in numbers if first[number]["extend"] == extend)


def sync_rows(ranks, numbers):
    """Of each step, in microseconds: from the last arrival to the last departure, the time in line for a processor left out; from the
    first arrival to the last; and the first with the time in line. A rank stands in line where others of its machine have left and
    compute: it could not do more if it had left."""
    rows = []
    for number in numbers:
        steps = [ranks[rank][number] for rank in ranks]
        last = max(step["arrived_us"] for step in steps)
        # In line after the last arrival: since it fell asleep (one that loses its processor just before it sleeps counts too), or,
        # if that is more, what cannot lie before that arrival.
        lines = [max(step["queued_awake_us"], step["queued_us"] - (last - step["arrived_us"])) for step in steps]
        ready = [max(0.0, step["left_us"] - line - last) for step, line in zip(steps, lines)]
        rows.append((max(ready), last - min(step["arrived_us"] for step in steps), max(step["left_us"] - last for step in steps)))
    return rows


def between(steps, number):
    """From the end of the step before to this one's arrival: sampling, answers, messages, the next plan."""
    return steps[number]["arrived_us"] - steps[number - 1]["ended_us"] if number - 1 in steps else None


def table(ranks, numbers):
    """[rank, {column: median microseconds}]"""
    rows = []
    for rank, steps in ranks.items():
        row = {name: statistics.median(sum(steps[n]["spent_us"].get(phase, 0) for phase in phases) for n in numbers)
               for name, phases in COLUMNS.items()}
        row["step"] = statistics.median(steps[n]["ended_us"] - steps[n]["arrived_us"] for n in numbers)
        row["between"] = statistics.median([gap for gap in (between(steps, n) for n in numbers) if gap is not None] or [0])
        rows.append((rank, row))
    return rows


def show(paths):
    ranks = read(paths)
    numbers = common(ranks)
    if not numbers:
        sys.exit("no step without prompts is in all files")
    rows = table(ranks, numbers)
    names = [*COLUMNS, "step", "between"]
    print(f"{len(numbers)} steps that decode; medians in ms\n\n| rank | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for rank, row in rows:
        print(f"| {rank} | " + " | ".join(f"{row[name] / 1000:.2f}" for name in names) + " |")
    sync = sync_rows(ranks, numbers)
    for what, index in (("from the last arrival to the last departure, without time in line for a processor", 0),
                        ("skew: from the first arrival to the last", 1), ("from the last arrival to the last departure", 2)):
        values = sorted(row[index] for row in sync)
        print(f"\nsync row, {what}: median {statistics.median(values):.0f} us, p90 {values[len(values) * 9 // 10]:.0f} us, "
              f"longest {values[-1]:.0f} us")


def record(options):
    build, where = options.build.resolve(), options.folder.resolve()

    def ask(url, number):
        status, _, body = call(url + "/generate", {"input_ids": [(number * 7919 + i * 31) % 500 + 5 for i in range(options.input)],
                                                   "sampling_params": {"temperature": 0, "max_new_tokens": options.output, "ignore_eos": True}})
        assert status == 200, body

    with tempfile.TemporaryDirectory() as folder:
        model = ["--model-path", options.model]
        if options.model is None:
            model_folder(build, Path(folder))
            model = ["--model-path", folder, "--load-format", "dummy", "--json-model-override-args",
                     json.dumps({"num_hidden_layers": options.layers})]
        with Sluice(build / "sluice", "server", *model, "--port", 0, "--max-total-tokens", 16384, "--disable-radix-cache",
                    *layouts(options)[options.layout]) as server:
            ask(server.url, 0)
            status, _, body = call(server.url + "/start_profile", {"output_dir": str(where), "profile_prefix": options.layout, "profile_id": "1"})
            assert status == 200, body
            with ThreadPoolExecutor(options.concurrency) as pool:
                list(pool.map(lambda number: ask(server.url, number), range(1, options.concurrency + 1)))
            assert call(server.url + "/stop_profile", method="POST")[0] == 200
    show(glob.glob(f"{where}/{options.layout}-1-rank-*.steps.json"))


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("build", type=Path)
    recording.add_argument("folder", type=Path)
    recording.add_argument("--layout", default="dpa-ep", choices=["tp", "tp-ep", "dpa", "dpa-ep"])
    for name, value in (("tp", 4), ("layers", 4), ("input", 256), ("output", 64), ("concurrency", 16)):
        recording.add_argument(f"--{name}", type=int, default=value)
    recording.add_argument("--model", type=Path)
    showing = commands.add_parser("show")
    showing.add_argument("files", nargs="+")
    options = parser.parse_args()
    if options.command == "record":
        record(options)
    else:
        show(options.files)


if __name__ == "__main__":
    main()
