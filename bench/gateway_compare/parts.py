"""The measurements. Each takes the stand, the names of the gateways and a function that takes one record per run."""
import json
import os
import socket
import subprocess
import sys
import time

from stand import Gateway, follow, load, start_worker

WORKERS = 4
SIZES = {  # characters of a prompt: shared by a sixteenth of all requests, and its own
    "small": dict(system_chars=150, question_chars=20),
    "8 KB": dict(system_chars=7680, question_chars=512),
    "220 KB": dict(system_chars=224768, question_chars=512),
}


def start_all(stand, names, ports, **options):
    return {name: Gateway(stand, name, ports, **options) for name in names}


def end_all(stand):
    for program in reversed(stand.programs):
        program.stop()
    stand.programs.clear()


def commands(gateways):
    return {name: " ".join(g.command) for name, g in gateways.items() if g.program}


def cpu_per_request(stand, names, record, settings):
    """CPU time per request: small, 8 KB and 220 KB prompts, in a closed loop of 64 connections and at 1,000 requests/s. All
    gateways run side by side and are loaded in turn."""
    names = [n for n in names if n not in ("direct", "epoll relay")]
    for size, prompt in SIZES.items():
        if size not in settings.sizes:
            continue
        workers = [start_worker(stand, "--canned") for _ in range(WORKERS)]
        gateways = start_all(stand, names, [w.port for w in workers])
        record({"part": "cpu", "size": size, "commands": commands(gateways)})
        for repeat in range(settings.repeats):
            for name, gateway in gateways.items():
                for mode, how in (("closed", dict(connections=64)), ("1000/s", dict(connections=64, rate=1000))):
                    result = load(stand, gateway, seconds=settings.seconds, seed=repeat + 1, warm_up=settings.warm_up,
                                  **how, **prompt)
                    result["us_per_request"] = 1e6 * result.get("cpu_s", 0) / max(1, result["requests"])
                    record({"part": "cpu", "size": size, "mode": mode, "gateway": name, "repeat": repeat, **result})
        end_all(stand)


def cpu_per_chunk(stand, names, record, settings):
    """CPU time per relayed chunk of a stream: 200 streams, a chunk each 10 ms; how long chunks were under way, and how many
    came in one read with the one before."""
    canned = ("--canned", "--canned-chunks", "4000", "--canned-interval-ms", "10", "--canned-stamp")
    workers = [start_worker(stand, *canned) for _ in range(WORKERS)]
    gateways = start_all(stand, [*names, "epoll relay"], [w.port for w in workers], no_delay=True)
    record({"part": "stream", "commands": commands(gateways)})
    for repeat in range(settings.pairs):
        for name, gateway in gateways.items():
            result = load(stand, gateway, connections=settings.streams, stream=1, max_tokens=4000, spread=1,
                          warm_up=1 + settings.warm_up, seconds=settings.seconds + 2, seed=repeat + 1)
            result["us_per_chunk"] = 1e6 * result.get("cpu_s", 0) / max(1, result.get("chunks", 0))
            record({"part": "stream", "gateway": name, "repeat": repeat, **result})
    end_all(stand)


def added_latency(stand, names, record, settings):
    """Latency at 500 requests/s, of each gateway and of none in turn, so that what a gateway adds can be had from pairs."""
    workers = [start_worker(stand, "--canned") for _ in range(WORKERS)]
    names = [n for n in names if n != "epoll relay"]
    gateways = start_all(stand, names, [w.port for w in workers])
    record({"part": "latency", "commands": commands(gateways)})
    for repeat in range(settings.pairs):
        for name, gateway in gateways.items():
            result = load(stand, gateway, connections=64, rate=500, warm_up=settings.warm_up, seconds=settings.seconds + 1,
                          seed=repeat + 1, **SIZES["small"])
            record({"part": "latency", "gateway": name, "repeat": repeat, **result})
    end_all(stand)


def chat(port, text, stream):
    body = json.dumps({"model": "sim-model", "max_tokens": 16, "stream": stream,
                       "messages": [{"role": "user", "content": text}]})
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()


def open_connections(port, count, stream):
    """So many connections, each with one answer behind it or the beginning of a stream on it."""
    connections = []
    for i in range(count):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.sendall(chat(port, f"connection {i} " + "x" * 150, stream))
        answer = b""
        wanted = b"data:" if stream else b'"usage"'
        while wanted not in answer:
            received = connection.recv(65536)
            if not received:
                raise SystemExit(f"connection {i} was closed after {answer[:200]!r}")
            answer += received
        connections.append(connection)
    return connections


def settled_rss(program):
    """Resident bytes once they no longer change."""
    last = program.rss()
    for _ in range(20):
        time.sleep(0.5)
        now = program.rss()
        if abs(now - last) < 64 * 1024:
            return now
        last = now
    return last


def memory(stand, names, record, settings):
    """Resident memory at start, for each idle kept-alive connection, for each open stream, and for each byte of distinct
    prompts. A fresh gateway for each."""
    names = [n for n in names if n not in ("direct", "epoll relay")]
    streams = ("--canned", "--canned-chunks", "1000", "--canned-interval-ms", "5000")
    for repeat in range(settings.memory_repeats):
        for name in names:
            quick = [start_worker(stand, "--canned") for _ in range(WORKERS)]
            slow = [start_worker(stand, *streams) for _ in range(WORKERS)]
            result = {"part": "memory", "gateway": name, "repeat": repeat, "connections": settings.connections}

            def warm(workers):
                gateway = Gateway(stand, name, [w.port for w in workers])
                at_start = gateway.program.rss()
                load(stand, gateway, connections=64, warm_up=0, seconds=1)
                return gateway, at_start, settled_rss(gateway.program)

            gateway, result["start"], before = warm(quick)
            held = open_connections(gateway.ports[0], settings.connections, stream=False)
            result["per_connection"] = (settled_rss(gateway.program) - before) / len(held)
            for connection in held:
                connection.close()
            gateway.stop()

            gateway, _, before = warm(slow)
            held = open_connections(gateway.ports[0], settings.connections // 2, stream=True)
            result["per_stream"] = (settled_rss(gateway.program) - before) / len(held)
            for connection in held:
                connection.close()
            gateway.stop()

            if name != "haproxy":
                gateway, _, before = warm(quick)
                run = load(stand, gateway, connections=64, rate=500, warm_up=0, seconds=settings.index_seconds, groups=1,
                           system_chars=0, question_chars=8192)
                result["distinct_bytes"] = 8192 * run["requests"]
                result["per_prompt_byte"] = (settled_rss(gateway.program) - before) / max(1, result["distinct_bytes"])
                result["void"] = run["void"]
                gateway.stop()
            record(result)
            end_all(stand)


def index_budget(stand, names, record, settings):
    """Ours with an index of 16 MiB, through which many times as much goes: what it says that it holds, and how much the
    process grows."""
    if "sluice" not in names:
        return
    budget = 16 << 20
    workers = [start_worker(stand, "--canned") for _ in range(WORKERS)]
    gateway = Gateway(stand, "sluice", [w.port for w in workers], flags=("--prefix-index-bytes", budget))
    load(stand, gateway, connections=64, warm_up=0, seconds=1)
    before, most, sent = settled_rss(gateway.program), 0, 0
    for step in range(settings.budget_steps):
        run = load(stand, gateway, connections=64, warm_up=0, seconds=1, groups=1, system_chars=0, question_chars=8192,
                   seed=step + 2)
        sent += 8192 * run["requests"]
        most = max(most, gateway_metric(gateway, "smg_prefix_index_bytes"))
    record({"part": "budget", "gateway": "sluice", "budget": budget, "distinct_bytes": sent, "most_accounted": most,
            "resident_growth": settled_rss(gateway.program) - before, "void": most == 0})
    end_all(stand)


def gateway_metric(gateway, name):
    _, text = gateway.ask("GET", "/metrics", port=gateway.metrics_port)
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]
    return sum(values)


def data_parallel(stand, names, record, settings):
    """Fleets of 1, 2, 4 and 8 workers, each of which decodes 32 requests at once in steps of 17 ms: requests per second that
    48 clients per worker get, directly and through a gateway. A step takes as long for one request as for 32, so that each
    client at the wrong worker is a place that stays empty."""
    engine = ("--max-running", "32", "--decode-base-ms", "17", "--decode-per-request-ms", "0")
    contenders = [("direct", "none")] + [("sluice", p) for p in ("cache_aware", "min_cost", "round_robin") if "sluice" in names]
    for count in (1, 2, 4, 8):
        workers = [start_worker(stand, *engine) for _ in range(count)]
        gateways = [(name, policy, Gateway(stand, name, [w.port for w in workers], policy=policy))
                    for name, policy in contenders]
        for repeat in range(settings.dp_repeats):
            for name, policy, gateway in gateways:
                result = load(stand, gateway, connections=48 * count, max_tokens=32, spread=0.5, warm_up=2,
                              seconds=settings.seconds + 3, seed=repeat + 1)
                record({"part": "dp", "gateway": name, "policy": policy, "workers": count, "repeat": repeat, **result,
                        "requests_per_s": result["requests"] / max(1e-9, result["seconds"])})
        end_all(stand)


LOADS = {  # of the cache simulation
    "uniform, 100 req/s": dict(rate=100),
    "uniform, 400 req/s": dict(rate=400),
    "uniform, 128 in flight": dict(concurrency=128),
    "hot, 400 req/s": dict(hot=1, rate=400),
    "hot, 128 in flight": dict(hot=1, concurrency=128),
}
POLICIES = {  # all that choose by themselves: without those that want a key, one worker or events of the workers' caches
    "sluice": ("min_cost", "cache_aware", "round_robin"),
    "sglang-router": ("cache_aware", "power_of_two", "round_robin", "random"),
    "smg": ("cache_aware", "power_of_two", "least_load", "prefix_hash", "consistent_hashing", "round_robin", "random"),
    "vllm-router": ("cache_aware", "power_of_two", "sticky_least_loaded", "consistent_hash", "round_robin", "random"),
}
CONTENDERS = [("oracle", "oracle", ""), *((name, policy, "") for name, policies in POLICIES.items() for policy in policies),
              ("vllm-router", "cache_aware", "render")]


def prepare_simulation(stand, settings, job):
    case, seed, (name, policy, extra) = job
    words = [f"{key}={value}" for key, value in LOADS[case].items()]
    program = stand.start([stand.build / "bench/cache_simulation", *words, f"seed={seed}",
                           f"seconds={settings.simulated_seconds}", *([f"{extra}=1"] if extra else [])],
                          stand.load_core, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    ports = [int(p) for p in program.process.stdout.readline().split()[1].split(",")]
    return program, Gateway(stand, "direct" if name == "oracle" else name, ports, policy=policy)


def jobs_of(names, settings):
    """Case, seed and contender of each run: all contenders take turns with a seed. Without those that --resume finds."""
    jobs = [(case, seed, contender) for case in LOADS if not settings.cases or case in settings.cases
            for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
            for contender in settings.contenders or CONTENDERS if contender[0] == "oracle" or contender[0] in names]
    done = recorded(settings.output) if settings.resume else set()
    return [job for job in jobs if job not in done]


def recorded(path):
    """Of the cache simulation, the runs in the file that are not void. A line that was cut off counts for nothing."""
    done = set()
    if not path or not os.path.exists(path):
        return done
    for text in open(path):
        try:
            run = json.loads(text)
        except ValueError:
            continue
        if run["part"] == "cache" and not run.get("void"):
            done.add((run["case"], run["seed"], (run["gateway"], run["policy"], run["workers_answer"])))
    return done


def cache_simulation(stand, names, record, settings):
    """The workers of `sluice bench policy` in real time behind sockets: 4 workers whose caches hold two fifths of all
    prefixes, 64 groups of prompts, and one group with half of the traffic. Each run has fresh workers and a fresh gateway;
    they are started while the run before is under way, so that no gateway is measured in its first seconds."""
    began = time.monotonic()
    jobs = jobs_of(names, settings)
    if not jobs:
        return
    coming = prepare_simulation(stand, settings, jobs[0])
    time.sleep(0 if settings.quick or settings.simulated_seconds < 10 else 12)
    longest = 0
    for i, (case, seed, (name, policy, extra)) in enumerate(jobs):
        run_began = time.monotonic()
        program, gateway = coming
        last = i + 1 == len(jobs)
        if settings.time_limit and time.monotonic() - began + 2 * longest > settings.time_limit:
            last = True
        coming = None if last else prepare_simulation(stand, settings, jobs[i + 1])
        program.process.stdin.write("oracle\n" if name == "oracle" else f"{gateway.ports[0]}\n")
        program.process.stdin.flush()
        result = follow(stand, program, gateway)
        record({"part": "cache", "gateway": name, "policy": policy, "workers_answer": extra, "case": case, "seed": seed,
                **result})
        gateway.stop()
        longest = max(longest, time.monotonic() - run_began)
        if last:
            print(f"{len(jobs) - i - 1} runs are left", file=sys.stderr)
            return


PARTS = {"cpu": cpu_per_request, "stream": cpu_per_chunk, "latency": added_latency, "memory": memory, "budget": index_budget,
         "dp": data_parallel, "cache": cache_simulation}
