#!/usr/bin/env python3
"""Memory of a server's ranks when all that they planned for is in use, beside what they planned at their start.

usage: plan.py <sluice binary> <arguments of sluice server>
   plan.py build/release/sluice --model-path SmolLM2-135M-Instruct.Q4_1.gguf --max-total-tokens 32768

Fills every rank's KV pool with prompts that are all unlike, decodes on all of its running slots at once, and asks for the logprobs of
whole chunks of prompts. Measured is the resident memory of each rank, where a page of shared memory counts as one n-th for each of the n processes that map it;
the figures of the plan are in /server_info for ranks that lead an attention group, and in the log for the others, to a MiB. Takes the model's time
for as many prompt tokens as the pools hold."""
import concurrent.futures
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests/e2e"))
from sluice_process import Sluice, call, descendants  # noqa: E402

OUTPUT = 16


def resident(pid):
    """(bytes resident, bytes of those that are its part of shared memory)"""
    fields = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            if line.startswith(("RssAnon", "RssFile", "Pss_Shmem")):
                fields[line.split(":")[0]] = int(line.split()[1]) * 1024
    return sum(fields.values()), fields["Pss_Shmem"]


def states(url):
    return call(url + "/server_info")[2]["internal_states"]


def fill(url, groups, pool, running, context, vocabulary):
    rng = random.Random(1)
    length = min(context - OUTPUT - 2, max(16, pool // (running + 1)))

    def ask(rank, tokens, logprobs):
        body = {"input_ids": [rng.randrange(10, vocabulary) for _ in range(tokens)], "return_logprob": logprobs,
                "sampling_params": {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": OUTPUT, "ignore_eos": True}}
        if logprobs:
            body["logprob_start_len"] = 0
        if groups > 1:
            body["routed_dp_rank"] = rank
        status, _, answer = call(url + "/generate", body, timeout=3600)
        assert status == 200, answer

    with concurrent.futures.ThreadPoolExecutor(groups * running) as clients:
        pending = [clients.submit(ask, rank, length, False) for rank in range(groups) for _ in range(2 * pool // length + running)]
        pending += [clients.submit(ask, rank, min(context - OUTPUT - 2, pool - OUTPUT - 2, 1024), True) for rank in range(groups) for _ in range(2)]
        for request in pending:
            request.result()


def main():
    binary, *arguments = sys.argv[1:]
    with Sluice(binary, "server", "--port", 0, *arguments) as server:
        first = states(server.url)
        loads = call(server.url + "/v1/loads?include=all")[2]["loads"]
        model = call(server.url + "/server_info")[2]
        pool, running = loads[0]["max_total_num_tokens"], min(256, first[0]["effective_max_running_requests_per_dp"])
        # They are started in order.
        ranks = sorted(pid for pid, command in descendants(server.process.pid).items() if command.endswith(" rank"))
        before = [resident(pid)[0] for pid in ranks]
        fill(server.url, len(first), pool, running, first[0]["context_length"], 30_000 if "vocab_size" not in model else model["vocab_size"])
        print("| rank | planned MiB | of it weights | KV | at the start | with all in use | of it shared | planned more than that |\n|---|---|---|---|---|---|---|---|")
        planned_by_all = taken_by_all = 0
        leads = {state["pid"]: state for state in states(server.url)}
        for number, (pid, start) in enumerate(zip(ranks, before)):
            if pid in leads:
                planned, usage = leads[pid]["planned_bytes"] / 2**20, leads[pid]["memory_usage"]
                parts = f"{usage['weight'] * 1024:.0f} | {usage['kvcache'] * 1024:.0f}"
            else:
                planned, parts = int(re.search(rf"rank {number}: (\d+) MiB once all is in use", server.output())[1]), "|"
            now, shared = resident(pid)
            print(f"| {number} | {planned:.0f} | {parts} | {start / 2**20:.0f} | {now / 2**20:.0f} | {shared / 2**20:.0f} | {100 * (planned * 2**20 / now - 1):+.1f} % |")
            planned_by_all, taken_by_all = planned_by_all + planned, taken_by_all + now / 2**20
        # Whose a shared page is that one rank has touched, is chance: with weights in common only this row says how well it was planned.
        print(f"| all | {planned_by_all:.0f} | | | | {taken_by_all:.0f} | | {100 * (planned_by_all / taken_by_all - 1):+.1f} % |")


if __name__ == "__main__":
    main()
