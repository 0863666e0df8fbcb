#!/usr/bin/env python3
"""Tables and plots of what run.py measured.

    bench/gateway_compare/report.py runs.jsonl [more.jsonl ...] [--svg FOLDER]

Prints Markdown. Figures are medians with the least and the most of all runs that are not void.
"""
import argparse
import json
import lzma
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from plot import bars

ORDER = ["direct", "oracle", "epoll relay", "haproxy", "sluice", "sglang-router", "smg", "vllm-router"]
PEERS = ["sglang-router", "smg", "vllm-router"]


def read(paths):
    for path in paths:
        with lzma.open(path, "rt") if path.endswith(".xz") else open(path) as lines:
            yield from map(json.loads, lines)


def grouped(runs, part, *keys):
    """Lists of the runs of a part that are not void, by those of its fields."""
    groups = defaultdict(list)
    for run in runs:
        if run["part"] == part and "gateway" in run and not run.get("void"):
            groups[tuple(run[k] for k in keys)].append(run)
    return groups


def values(group, field):
    return [run[field] for run in group]


def spread(numbers, form="{:.0f}"):
    if not numbers:
        return "none"
    return f"{form.format(median(numbers))} ({form.format(min(numbers))} to {form.format(max(numbers))})"


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def ordered(names):
    return [n for n in ORDER if n in names]


def ratios(cost, targets):
    """Rows: ours beside the best peer and beside HAProxy. `cost`: median by gateway; `targets`: of the two."""
    ours, best = cost.get("sluice"), min((cost[p] for p in PEERS if p in cost), default=None)
    cells = []
    for other, target in ((best, targets[0]), (cost.get("haproxy"), targets[1])):
        if ours is None or other is None or target is None:
            cells.append("")
            continue
        cells.append(f"{ours / other:.2f} (target {target:.2f}){'' if ours / other <= target else ' **missed**'}")
    return cells


def interval(pairs, figure, draws=4000):
    """95 % of what the figure is when whole pairs are drawn again with replacement."""
    rng = random.Random(1)
    drawn = sorted(figure([rng.choice(pairs) for _ in pairs]) for _ in range(draws))
    return drawn[int(0.025 * draws)], drawn[int(0.975 * draws)]


def of_medians(pairs):
    return median(a for a, _ in pairs) / max(1e-6, median(b for _, b in pairs))


def paired(ours, theirs, field, round_of="repeat"):
    """The field of both, of the rounds that both have."""
    other = {run[round_of]: run[field] for run in theirs}
    return [(run[field], other[run[round_of]]) for run in ours if run[round_of] in other]


def with_interval(numbers, form="{:.2f}"):
    low, high = interval(numbers, median)
    return f"{form.format(median(numbers))} [{form.format(low)}, {form.format(high)}]"


def ratio_cell(pairs):
    """The ratio of the medians with its interval."""
    if not pairs:
        return ""
    low, high = interval(pairs, of_medians)
    return f"{of_medians(pairs):.2f} [{low:.2f}, {high:.2f}]"


def cpu_tables(runs, svg):
    groups = grouped(runs, "cpu", "size", "mode", "gateway")
    if not groups:
        return
    sizes = list(dict.fromkeys(k[0] for k in groups))
    print("### CPU time per request, microseconds\n")
    columns = [(size, mode) for size in sizes for mode in ("closed", "1000/s")]
    names = ordered({k[2] for k in groups})
    table(["gateway", *[f"{size}, {'64 in flight' if mode == 'closed' else '1,000/s'}" for size, mode in columns]],
          [[name, *[spread(values(groups[(size, mode, name)], "us_per_request")) for size, mode in columns]] for name in names])
    targets = {"small": (1 / 5, 2.2), "8 KB": (1 / 4, 2.5), "220 KB": (1 / 3, 2.5)}
    rows = []
    for size, mode in columns:
        cost = {n: median(values(groups[(size, mode, n)], "us_per_request")) for n in names if groups[(size, mode, n)]}
        rows.append([f"{size}, {'64 in flight' if mode == 'closed' else '1,000/s'}", *ratios(cost, targets[size])])
    table(["sluice over", "best peer", "HAProxy"], rows)
    slow = [f"{size}, {name}: {median(r):.0f} requests/s" for (size, mode, name), group in groups.items() if mode == "1000/s"
            and median(r := [run["requests"] / run["seconds"] for run in group]) < 950]
    if slow:
        print("Of 1,000 requests/s, " + "; ".join(slow) + ".\n")
    if svg:
        bars(svg / "gateway-cpu.svg", "CPU time per request, 64 in flight (microseconds)",
             [(size, [(n, values(groups[(size, "closed", n)], "us_per_request")) for n in names]) for size in sizes])


def stream_tables(runs, svg):
    groups = grouped(runs, "stream", "gateway")
    if not groups:
        return
    names = ordered({k[0] for k in groups})
    rounds = max(len(group) for group in groups.values())
    print(f"### Streams: 200, a chunk each 10 ms; {rounds} rounds in which all take turns\n")
    rows = []
    for name in names:
        group = groups[(name,)]
        chunks = sum(values(group, "chunks"))
        rows.append([name, "" if name == "direct" else with_interval(values(group, "us_per_chunk"), "{:.1f}"),
                     with_interval(values(group, "chunk_p50_ms")), with_interval(values(group, "chunk_p99_ms")),
                     f"{1e6 * sum(values(group, 'merged')) / chunks:.0f}", f"{1e6 * sum(values(group, 'late')) / chunks:.0f}"])
    table(["gateway", "µs CPU per chunk [95 %]", "under way p50, ms [95 %]", "p99, ms [95 %]", "merged, per million",
           "over 5 ms, per million"], rows)
    if ("sluice",) in groups:
        ours, rows = groups[("sluice",)], []
        for other, most in [(p, 1.0) for p in PEERS] + [("haproxy", 1.0), ("epoll relay", 1.3)]:
            theirs = groups.get((other,))
            if not theirs:
                continue
            cost, late = paired(ours, theirs, "us_per_chunk"), paired(ours, theirs, "chunk_p99_ms")
            missed = " **missed**" if of_medians(cost) > most else ""
            tail = " **missed**" if other in PEERS and of_medians(late) > 1 else ""
            rows.append([other, f"{ratio_cell(cost)} (target {most}){missed}",
                         ratio_cell(late) + (f" (target 1.0){tail}" if other in PEERS else "")])
        table(["sluice over", "µs CPU per chunk [95 %]", "p99 [95 %]"], rows)
    if svg:
        bars(svg / "gateway-stream.svg", "CPU time per relayed chunk (microseconds)",
             [("", [(n, values(groups[(n,)], "us_per_chunk")) for n in names if n != "direct"])])


def latency_tables(runs, svg):
    groups = grouped(runs, "latency", "gateway")
    direct = {run["repeat"]: run for run in groups.get(("direct",), [])}
    if not direct:
        return
    print(f"### Added latency at 500 requests/s, milliseconds; {len(direct)} rounds in which all take turns\n")
    added = {}
    for (name,), group in groups.items():
        if name != "direct":
            added[name] = {run["repeat"]: {q: run[q] - direct[run["repeat"]][q] for q in ("p50_ms", "p99_ms")}
                           for run in group if run["repeat"] in direct}
    rows = []
    for name in ordered(added):
        row = [name]
        for q in ("p50_ms", "p99_ms"):
            own = [a[q] for a in added[name].values()]
            low, high = interval(own, median)
            row.append(f"{median(own):.3f} [{low:.3f}, {high:.3f}]")
        for q in ("p50_ms", "p99_ms"):
            if name == "haproxy" or "haproxy" not in added:
                row.append("")
                continue
            pairs = [(a[q], added["haproxy"][r][q]) for r, a in added[name].items() if r in added["haproxy"]]
            row.append(ratio_cell(pairs))
        rows.append(row)
    table(["gateway", "p50 [95 %]", "p99 [95 %]", "p50 over HAProxy's", "p99 over HAProxy's"], rows)
    if svg:
        bars(svg / "gateway-latency.svg", "Latency added at 500 requests/s (milliseconds)",
             [(q[:3], [(n, [a[q] for a in added[n].values()]) for n in ordered(added)]) for q in ("p50_ms", "p99_ms")])


def memory_tables(runs, _):
    groups = grouped(runs, "memory", "gateway")
    if groups:
        print("### Resident memory\n")
        rows = []
        for name in ordered({k[0] for k in groups}):
            group = groups[(name,)]
            rows.append([name, spread([v / 1e6 for v in values(group, "start")], "{:.1f}"),
                         spread([v / 1024 for v in values(group, "per_connection")], "{:.1f}"),
                         spread([v / 1024 for v in values(group, "per_stream")], "{:.1f}"),
                         spread([run["per_prompt_byte"] for run in group if "per_prompt_byte" in run], "{:.2f}")])
        table(["gateway", "at start, MB", "per idle connection, KB", "per open stream, KB", "index, bytes per byte of prompt"],
              rows)
    for run in runs:
        if run["part"] == "budget" and "budget" in run:
            print(f"With `--prefix-index-bytes {run['budget']}` and {run['distinct_bytes'] / run['budget']:.0f} times as many "
                  f"distinct bytes: at most {run['most_accounted'] / run['budget']:.1%} of the budget accounted, resident growth "
                  f"{run['resident_growth'] / run['budget']:.1%} of it.\n")


def dp_tables(runs, _):
    groups = grouped(runs, "dp", "gateway", "policy", "workers")
    if not groups:
        return
    print("### Requests per second of fleets, and the share of what direct clients get\n")
    counts = sorted({k[2] for k in groups})
    rows = []
    for name, policy in dict.fromkeys((k[0], k[1]) for k in groups):
        row = [name if name == "direct" else f"{name}, `{policy}`"]
        for count in counts:
            own, direct = (values(groups[key], "requests_per_s") for key in ((name, policy, count), ("direct", "none", count)))
            if not own or not direct:
                row.append("")
            elif name == "direct":
                row.append(f"{median(own):.1f}")
            else:
                row.append(f"{median(own):.1f} ({median(own) / median(direct):.1%})")
        rows.append(row)
    table(["", *[f"{c} worker{'s' if c > 1 else ''}" for c in counts]], rows)


# Field, name, the most of it is best, form of a figure, share of the oracle's that min_cost must reach or keep below.
CACHE_FIGURES = (("requests_per_s", "req/s", True, "{:.0f}", 0.95), ("hit_rate", "hit rate", True, "{:.3f}", 0.95),
                 ("p99_ms", "p99", False, "{:.0f} ms", 1.15))


def cache_tables(runs, svg):
    groups = grouped(runs, "cache", "case", "gateway", "policy", "workers_answer")
    if not groups:
        return
    print("### Cache simulation over sockets: medians of the seeds (least to most)\n")
    cases = list(dict.fromkeys(k[0] for k in groups))
    contenders = list(dict.fromkeys(k[1:] for k in groups))
    contenders.sort(key=lambda c: ORDER.index(c[0]))
    rows = []
    for case in cases:
        rows.append([f"**{case}**", "", "", "", ""])
        for contender in contenders:
            if group := groups.get((case, *contender)):
                rows.append([label(*contender), len(group), spread(values(group, "requests_per_s")),
                             spread([100 * v for v in values(group, "hit_rate")], "{:.1f}"), spread(values(group, "p99_ms"))])
    table(["", "seeds", "req/s", "hit %", "p99, ms"], rows)
    beside_the_oracle(groups, cases)
    beside_peers(groups, cases, contenders)
    if svg:
        bars(svg / "gateway-cache.svg", "Cache simulation: requests per second",
             [(case, [(label(*c), values(groups[(case, *c)], "requests_per_s")) for c in contenders if (case, *c) in groups])
              for case in cases if "100 req/s" not in case])


def beside_the_oracle(groups, cases):
    rows = []
    for case in cases:
        ours, oracle = (groups.get((case, *c)) for c in (("sluice", "min_cost", ""), ("oracle", "oracle", "")))
        if not ours or not oracle:
            continue
        row = [case]
        for field, _, more, _, target in CACHE_FIGURES:
            pairs = paired(ours, oracle, field, "seed")
            good = pairs and (of_medians(pairs) >= target if more else of_medians(pairs) <= target)
            row.append(f"{ratio_cell(pairs)}{'' if good else ' **missed**'}")
        rows.append(row)
    table(["`min_cost` over the oracle [95 %, pairs of a seed]", *[f"{what} ({target})" for _, what, _, _, target in
                                                                 CACHE_FIGURES]], rows)


def beside_peers(groups, cases, contenders):
    """min_cost beside the best policy of each peer, by each figure of its own, and cache_aware beside cache_aware."""
    rows, finalists = [], {}
    for case in cases:
        for peer in PEERS:
            theirs = {c: groups[(case, *c)] for c in contenders if c[0] == peer and (case, *c) in groups}
            ours = groups.get((case, "sluice", "min_cost", ""))
            if not theirs or not ours:
                continue
            row = [case, peer]
            for field, _, more, form, _ in CACHE_FIGURES:
                best = (max if more else min)(theirs, key=lambda c: median(values(theirs[c], field)))
                pairs = paired(ours, theirs[best], field, "seed")
                finalists[":".join(best).rstrip(":")] = None
                low, high = interval(pairs, of_medians) if pairs else (1, 1)
                worse = high < 1 if more else low > 1
                row.append(f"{ratio_cell(pairs)} of {form.format(median(values(theirs[best], field)))}, "
                           f"{label(*best).split(' ', 1)[1]}{' **worse**' if worse else ''}")
            rows.append(row)
    table(["", "`min_cost` over the best of", *[f"{what} [95 %]" for _, what, _, _, _ in CACHE_FIGURES]], rows)
    rows = []
    for case in cases:
        ours = groups.get((case, "sluice", "cache_aware", ""))
        theirs = {c: groups[(case, *c)] for c in contenders if c[0] in PEERS and c[1] == "cache_aware" and (case, *c) in groups}
        if not ours or not theirs:
            continue
        best = max(theirs, key=lambda c: median(values(theirs[c], "requests_per_s")))
        pairs = paired(ours, theirs[best], "requests_per_s", "seed")
        missed = " **missed**" if pairs and of_medians(pairs) < 0.97 else ""
        rows.append([case, label(*best), ratio_cell(pairs) + missed])
    table(["our `cache_aware` over the best peer's", "which is", "req/s [95 %] (0.97)"], rows)
    if finalists:
        print("For more seeds of what is compared: `--contenders oracle:oracle,sluice:min_cost,sluice:cache_aware,"
              + ",".join(finalists) + "`\n")


def label(name, policy, extra):
    if name == "oracle":
        return "oracle"
    return f"{name} {policy}" + (f", workers with /{extra}" if extra else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--svg", type=Path, help="folder for the plots")
    arguments = parser.parse_args()
    if arguments.svg:
        arguments.svg.mkdir(parents=True, exist_ok=True)
    runs = list(read(arguments.runs))
    for run in runs:
        if run["part"] == "header":
            print(f"<!-- {run['date']}, {run['processor']}, commit {run['commit']}, {run['versions']} -->")
    print()
    for tables in (cpu_tables, stream_tables, latency_tables, memory_tables, dp_tables, cache_tables):
        tables(runs, arguments.svg)
    void = sum(bool(run.get("void")) for run in runs)
    measured = [run for run in runs if "requests" in run]
    busy = [run["other_programs"] for run in measured if "other_programs" in run]
    print(f"{len(measured)} runs, {void} void, {sum(run['failed'] for run in measured)} failed of "
          f"{sum(run['requests'] for run in measured)} requests; other programs took {median(busy):.2f} cores at the median, "
          f"{max(busy):.2f} at most.")


if __name__ == "__main__":
    sys.exit(main())
