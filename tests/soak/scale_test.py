#!/usr/bin/env python3
"""A real gateway at sizes that unit tests do not have: bursts, thousands of streams and of slow readers, large bodies, a
million names, a flood of log lines, clients that leave. Each scenario checks its bound and prints its figures; the ids are
those of docs/results/reliability.md.

usage: scale_test.py <sluice binary> [scenario ...] [--short]

Without a scenario all of them. --short is the form that ./test runs: smaller, and without bounds on time."""
import argparse
import json
import math
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BOUND = 60  # seconds for anything that answers at once
MIB = 1 << 20
LONG_PROMPT_RATES = (2000, 1000, 500)  # requests per second


def address(url):
    parts = urllib.parse.urlparse(url)
    return parts.hostname, parts.port


def rss(process):
    """Resident bytes of a Sluice."""
    with open(f"/proc/{process.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_rss(process):
    with open(f"/proc/{process.process.pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


def post(body, target="/generate", host="x", extra=""):
    return (f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + (body if isinstance(body, bytes) else body.encode())


def generate(text="x", stream=False, tokens=4):
    return json.dumps({"text": text, "stream": stream, "sampling_params": {"max_new_tokens": tokens}})


def connect(where):
    client = socket.create_connection(where, timeout=BOUND)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def answered(client):
    """The status of the one answer on a connection, read to its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        if not part:
            raise AssertionError(f"the connection ended after {data!r}")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
    while len(body) < length:
        part = client.recv(65536)
        if not part:
            raise AssertionError("the connection ended in a body")
        body += part
    return int(head.split()[1])


def in_threads(count, work):
    """work(number) in so many threads at once; the results in order, or the first problem."""
    results, problems = [None] * count, []
    gate = threading.Barrier(count)

    def one(number):
        try:
            results[number] = work(number, gate)
        except Exception as problem:  # noqa: BLE001: shown by the main thread
            problems.append(problem)
            gate.abort()

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    if problems:
        raise AssertionError(f"{len(problems)} problems, the first: {problems[0]!r}")
    return results


class Fleet:
    """A gateway that is ready before simulated workers."""

    def __init__(self, binary, workers=1, worker_flags=("--canned",), flags=(), urls=None, env=None, **gateway):
        self.workers = [Sluice(binary, "bench", "worker", "--log-level", "error", *worker_flags) for _ in range(workers)]
        urls = urls or [worker.url for worker in self.workers]
        self.gateway = Sluice(binary, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1",
                              "--prometheus-port", 0, "--log-level", "warn", "--worker-urls", *urls, *flags, env=env)
        wait_until("all workers are healthy", lambda: sum(
            worker["is_healthy"] for worker in call(self.gateway.url + "/workers")[2]["workers"]) == len(urls))
        self.where = address(self.gateway.url)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if failed:
            print("--- output of the gateway ---\n" + self.gateway.output(), flush=True)
        self.gateway.kill()
        for worker in self.workers:
            worker.kill()

    def exposition(self):
        """Lines of the metrics page that are series."""
        url = re.search(r"metrics on (http://\S+)", self.gateway.output())
        where = url[1] if url else None
        text = urllib.request.urlopen((where or self.gateway.url) + "/metrics", timeout=BOUND).read().decode()
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    def metric(self, family):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.exposition() if re.match(family + r"[{ ]", line))

    def settled(self):
        wait_until("nothing is in flight", lambda: self.metric("smg_worker_requests_active") == 0)


class Upstream(threading.Thread):
    """A worker that answers health checks; `serve(connection, head, body)` does the rest, in a thread per connection."""

    def __init__(self, serve):
        super().__init__(daemon=True)
        self.serve, self.listener = serve, socket.create_server(("127.0.0.1", 0), backlog=8192)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            connection = self.listener.accept()[0]
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    part = connection.recv(1 << 20)
                    if not part:
                        return
                    data += part
                head, _, data = data.partition(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    document = b"{}"
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                                       (len(document), document))
                    continue
                data = self.serve(connection, head, data)
                if data is None:
                    return
        except OSError:
            pass
        finally:
            connection.close()


def length_of(head):
    return int(re.search(rb"content-length: (\d+)", head, re.I)[1])


def burst(binary, short):
    """L5: requests that all come at once to a cold fleet of eight are spread evenly, and nobody is refused."""
    count = 256 if short else 2048
    for policy in ("cache_aware", "min_cost"):
        with Fleet(binary, workers=8, worker_flags=("--time-scale", 1), flags=("--policy", policy)) as fleet:
            clients = [connect(fleet.where) for _ in range(count)]
            for number, client in enumerate(clients):
                client.sendall(post(generate(f"question {number} " + "word " * 100)))
            statuses = [answered(client) for client in clients]
            for client in clients:
                client.close()
            assert statuses == [200] * count, f"{count - statuses.count(200)} of {count} failed"
            shares = [call(worker.url + "/sim/counters", {})[2]["generations"] for worker in fleet.workers]
            print(f"burst: {count} at once, {policy}: all answered, per worker {min(shares)} to {max(shares)}")
            assert sum(shares) == count, f"{sum(shares)} requests reached the workers"
            assert max(shares) <= 1.25 * count / 8, f"the shares are {shares}"
            fleet.settled()


def skip_answers(client, count):
    """Reads until so many answers have begun and what came with the last of them."""
    mark, end = b"HTTP/1.1 ", b""
    while count > 0:
        part = client.recv(1 << 20)
        assert part, "the gateway closed the connection"
        text = end + part
        count -= text.count(mark)
        end = text[-(len(mark) - 1):]  # of a mark that is cut; too short to hold a whole one


def names(binary, short):
    """X6: random model names, paths and headers make no series, and memory stays bounded."""
    count, lanes, batch = (2000, 2, 100) if short else (1_000_000, 8, 250)
    with Fleet(binary) as fleet:
        def send(client, number, begin, end):
            requests = b""
            for i in range(begin, end):
                name = f"model-{number}-{i}-{os.urandom(6).hex()}"
                target = f"/v1/{name}" if i % 4 == 0 else "/v1/completions"
                requests += post(json.dumps({"model": name, "prompt": "x"}), target, extra=f"X-{name}: {name}\r\n")
            client.sendall(requests)
            skip_answers(client, end - begin)

        def lane(number, gate):
            with connect(fleet.where) as client:
                gate.wait()
                for sent in range(0, count // lanes, batch):
                    send(client, number, sent, sent + batch)

        with connect(fleet.where) as client:  # what is made once is there before anything is counted
            send(client, lanes, 0, 100)
        series, memory = len(fleet.exposition()), rss(fleet.gateway)
        begin = time.monotonic()
        in_threads(lanes, lane)
        took = time.monotonic() - begin
        fleet.settled()
        grown = rss(fleet.gateway) - memory
        more = len(fleet.exposition()) - series
        print(f"names: {count} requests in {took:.0f} s: {more} more series of {series}, "
              f"resident memory {memory / MIB:.1f} MiB and {grown / MIB:+.1f} MiB")
        assert more == 0, f"{more} series more than before"
        assert grown < (8 if short else 32) * MIB, f"{grown / MIB:.1f} MiB more"


def streams(binary, short):
    """L14: open streams cost little memory each, and health checks answer meanwhile."""
    count = 200 if short else 5000
    flags = ("--canned", "--canned-chunks", 1000, "--canned-interval-ms", 5000, "--threads", 1)
    with Fleet(binary, workers=2, worker_flags=flags, flags=("--stream-idle-timeout-secs", 600)) as fleet:
        request = post(generate(stream=True))

        def open_streams(number):
            clients = []
            for _ in range(number):
                client = connect(fleet.where)
                client.sendall(request)
                clients.append(client)
            for client in clients:
                assert client.recv(4096).startswith(b"HTTP/1.1 200"), "a stream did not begin"
            return clients

        first = open_streams(20)
        before = rss(fleet.gateway)
        clients = open_streams(count)
        each = (rss(fleet.gateway) - before) / count
        waits = []
        for _ in range(20 if short else 200):
            begin = time.monotonic()
            assert call(fleet.gateway.url + "/health")[0] == 200
            waits.append(1000 * (time.monotonic() - begin))
            time.sleep(0 if short else 0.05)
        active = fleet.metric("smg_worker_requests_active")
        assert active == count + 20, f"{active} streams are open"
        print(f"streams: {count} open: {each / 1024:.1f} KiB of resident memory each; /health meanwhile "
              f"{sorted(waits)[len(waits) // 2]:.1f} ms, at most {max(waits):.1f} ms")
        for client in first + clients:
            client.close()
        fleet.settled()
        assert each < (32 if short else 19.5) * 1024, f"{each / 1024:.1f} KiB per stream"
        assert short or max(waits) < 200, f"/health took {max(waits):.0f} ms"


def discard(connection, head, data):
    """Reads a body to its end and answers."""
    left = length_of(head) - len(data)
    while left > 0:
        part = connection.recv(1 << 20)
        if not part:
            return None
        left -= len(part)
    answer = b'{"text":"x","meta_info":{"prompt_tokens":1,"completion_tokens":1,"cached_tokens":0}}'
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                       (len(answer), answer))
    return b""


def large(binary, short):
    """L15: large bodies at once cost the memory that they have, and little more."""
    count, size = (10, 8 * MIB) if short else (200, 32 * MIB)
    if not short:
        with open("/proc/meminfo") as file:
            free = int(re.search(r"MemAvailable:\s+(\d+)", file.read())[1]) * 1024
        assert free > 1.3 * count * size, f"this takes {1.3 * count * size / MIB:.0f} MiB of memory, {free / MIB:.0f} are free"
    upstream = Upstream(discard)
    image = b"A" * size
    body = b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"' + image + b'"}}]}]}'
    head = post(body, "/v1/chat/completions")[:-len(body)]
    with Fleet(binary, workers=0, urls=[upstream.url]) as fleet:
        before = rss(fleet.gateway)

        def client_of(number, gate):
            client = connect(fleet.where)
            client.settimeout(600)
            client.sendall(head)
            client.sendall(memoryview(body)[:-1])  # all but the last byte: all of them are in flight
            gate.wait()
            client.sendall(body[-1:])
            status = answered(client)
            client.close()
            return status

        statuses = in_threads(count, client_of)
        grown = peak_rss(fleet.gateway) - before
        share = grown / (count * len(body))
        print(f"large: {count} bodies of {size // MIB} MiB at once: {grown / MIB:.0f} MiB of resident memory at most, "
              f"{share:.2f} of the bytes in flight; afterwards {(rss(fleet.gateway) - before) / MIB:+.0f} MiB")
        assert statuses == [200] * count, f"{count - statuses.count(200)} failed"
        fleet.settled()
        # One body for each loop is copied while it grows, of ten a fifth.
        assert share < (1.6 if short else 1.15), f"{share:.2f} of the bytes in flight"


def long_prompts(binary, short):
    """L2: prompts of 220 KB, many at once: memory is that of the prompts and of the prefix index. Then what they cost at a rate."""
    lanes, rounds = (10, 4) if short else (200, 50)
    with Fleet(binary, flags=("--policy", "cache_aware", "--prefix-index-bytes", 64 * MIB)) as fleet:
        system = os.urandom(100_000).hex()  # 200 KB that all share

        def lane(number, gate):
            client, waits = connect(fleet.where), []
            requests = [post(generate(system + os.urandom(10_000).hex())) for _ in range(4)]
            gate.wait()
            for i in range(rounds):
                begin = time.monotonic()
                client.sendall(requests[i % len(requests)])
                assert answered(client) == 200
                waits.append(time.monotonic() - begin)
            client.close()
            return waits

        before = rss(fleet.gateway)
        begin = time.monotonic()
        waits = sorted(wait for lane in in_threads(lanes, lane) for wait in lane)
        took = time.monotonic() - begin
        grown = peak_rss(fleet.gateway) - before
        # The index, and for each client a read buffer, the body, its text and what waits for the index.
        bound = 1.1 * 64 * MIB + lanes * MIB + 8 * MIB
        print(f"long_prompts: {lanes} at once, {len(waits)} prompts of 220 KB: {len(waits) / took:.0f} req/s from a client in "
              f"Python, p50 {1000 * waits[len(waits) // 2]:.1f} ms, {grown / MIB:.0f} MiB more resident memory at most")
        fleet.settled()
        assert grown < bound, f"{grown / MIB:.0f} MiB, of at most {bound / MIB:.0f}"
        load = Path(binary).parent / "bench" / "gateway_load"
        if short:
            return
        assert load.exists(), f"{load} is not built: ninja gateway_load"
        # The client of bench/gateway_compare: what the gateway adds to what the worker takes, turn and turn about.
        for rate in LONG_PROMPT_RATES:
            runs = {"direct": [], "gateway": []}
            for _ in range(3):
                for name, port in (("direct", address(fleet.workers[0].url)[1]), ("gateway", fleet.where[1])):
                    command = [load, f"ports={port}", "connections=200", f"rate={rate}", "warm-up=2", "seconds=8", "groups=1",
                               "system-chars=200000", "question-chars=20000", "max-tokens=4"]
                    run = json.loads(subprocess.run(list(map(str, command)), capture_output=True, check=True, text=True)
                                     .stdout.splitlines()[-1])
                    assert run["failed"] == 0, run["errors"]
                    runs[name].append((run["requests"] / run["seconds"], run["p50_ms"], run["p99_ms"]))
            (sent, *direct), (served, *through) = ([statistics.median(column) for column in zip(*runs[name])]
                                                   for name in ("direct", "gateway"))
            print(f"long_prompts: {rate} req/s offered: {served:.0f} served with p50 {through[0]:.2f} ms and p99 {through[1]:.2f} ms, "
                  f"without a gateway {sent:.0f} with {direct[0]:.2f} and {direct[1]:.2f} ms")
            assert served > 0.95 * rate and through[1] - direct[1] < 10, f"p99 {through[1] - direct[1]:.1f} ms more, of at most 10"
        fleet.settled()


def slow_readers(binary, short):
    """L25: readers that take 1 KB a second hold their worker back, cost bounded memory and nobody else anything."""
    count, per_stream, seconds = (50, 4 * MIB, 1) if short else (5000, 8 * MIB, 30)
    written = {}

    def pour(connection, head, data):
        if b'"stream": true' not in data:
            return discard(connection, head, data)
        # The worker's own send buffer would take megabytes, however slow the other side is.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        chunk = b"10000\r\n" + b"data: " + b"x" * (0x10000 - 8) + b"\n\n" + b"\r\n"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        name = connection.fileno()
        written[name] = 0
        while written[name] < per_stream:
            written[name] += connection.send(chunk[written[name] % len(chunk):])
        connection.sendall(b"0\r\n\r\n")
        return b""

    threading.stack_size(256 * 1024)
    upstream = Upstream(pour)
    with Fleet(binary, workers=0, urls=[upstream.url], flags=("--stream-idle-timeout-secs", 600)) as fleet:
        before, clients = rss(fleet.gateway), []
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(BOUND)
            client.connect(fleet.where)
            client.sendall(post(generate(stream=True)))
            clients.append(client)
        for client in clients:
            assert client.recv(64).startswith(b"HTTP/1.1 200"), "a stream did not begin"

        def ask():
            begin = time.monotonic()
            client = connect(fleet.where)
            client.sendall(post(generate()))
            assert answered(client) == 200
            client.close()
            return 1000 * (time.monotonic() - begin)

        waits, end = [], time.monotonic() + seconds
        while time.monotonic() < end or not waits:
            for client in clients:
                client.recv(1024)
            waits.append(ask())
            time.sleep(0.02 if short else 1)
        grown, most = rss(fleet.gateway) - before, max(written.values())
        print(f"slow_readers: {count} at about 1 KB/s: {grown / count / 1024:.0f} KiB of resident memory each, "
              f"at most {most / 1024:.0f} KiB of {per_stream // 1024} taken from the worker; others are answered within "
              f"{sorted(waits)[len(waits) // 2]:.1f} ms, at most {max(waits):.1f} ms")
        assert grown / count < 400 * 1024, f"{grown / count / 1024:.0f} KiB per reader"
        assert most < per_stream, "the worker was not held back"
        for client in clients:
            client.close()
        fleet.settled()
    threading.stack_size(0)


def leaving(binary, short):
    """E1, X10: a client that leaves cancels its upstream within 100 ms, before the head and in a stream. In the phases in which
    nobody works for it what it holds is given back as soon."""
    leaving_a_worker(binary, short)
    leaving_the_gateway(binary, short)


def show_delays(when, what, delays, short):
    delays.sort()
    print(f"leaving: {len(delays)} clients {when}: {what} after {delays[len(delays) // 2]:.2f} ms, p99 "
          f"{delays[int(len(delays) * 0.99)]:.2f} ms, at most {delays[-1]:.2f} ms")
    assert short or delays[-1] < 100, f"{delays[-1]:.0f} ms"


def leaving_a_worker(binary, short):
    rounds = 10 if short else 300
    ended, gone = {}, {}

    def wait_for_the_end(connection, head, data):
        name = re.search(rb"turn-(\d+)-(\w+)", data)
        if name is None:
            return discard(connection, head, data)
        turn, kind = int(name[1]), name[2]
        if kind == b"stream":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                               b"b\r\ndata: {}\n\n \r\n")
        gone.setdefault(turn, threading.Event())
        began[turn].set()
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass
        ended[turn] = time.monotonic()
        gone[turn].set()
        return None

    began = {turn: threading.Event() for turn in range(2 * rounds)}
    upstream = Upstream(wait_for_the_end)
    with Fleet(binary, workers=0, urls=[upstream.url]) as fleet:
        for kind in ("head", "stream"):
            delays = []
            for i in range(rounds):
                turn = i + (rounds if kind == "stream" else 0)
                client = connect(fleet.where)
                client.sendall(post(generate(f"turn-{turn}-{kind}", stream=True)))
                assert began[turn].wait(BOUND), "the request did not reach the worker"
                if kind == "stream":
                    assert client.recv(4096).startswith(b"HTTP/1.1 200"), "the stream did not begin"
                left = time.monotonic()
                client.close()
                assert gone[turn].wait(BOUND), "the upstream was not cancelled"
                delays.append(1000 * (ended[turn] - left))
            show_delays("before the head" if kind == "head" else "in a stream", "the upstream ended", delays, short)
        fleet.settled()


class Unreachable:
    """A worker that passes its health check, and to which no connection comes about from hide() on."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.where = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.where[1]}"
        self.hidden, self.accepted, self.waiting = threading.Event(), [], []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while not self.hidden.is_set():
            connection = self.listener.accept()[0]
            self.accepted.append(connection)
            threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection):
        try:
            while connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        except OSError:
            pass

    def hide(self):
        self.hidden.set()
        for _ in range(16):  # until the queue of the socket is full
            self.waiting.append(socket.socket())
            self.waiting[-1].settimeout(0.5)
            try:
                self.waiting[-1].connect(self.where)
            except TimeoutError:
                return
        raise AssertionError("the queue of the socket is never full")


def leaving_the_gateway(binary, short):
    rounds = 5 if short else 100

    def busy(connection, head, data):
        left = length_of(head) - len(data)
        while left > 0:
            left -= len(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        return b""

    def silent(connection, head, data):
        while connection.recv(65536):
            pass

    def delays_of(fleet, request, when_there, when_gone, rounds=rounds):
        """From the close to the moment in which the metrics show it, which are asked one after the other."""
        delays = []
        for turn in range(rounds):
            client = connect(fleet.where)
            client.sendall(request)
            wait_until("it has come so far", lambda: when_there(fleet, turn))
            left = time.monotonic()
            client.close()
            while not when_gone(fleet):
                assert time.monotonic() - left < BOUND, "what it held was not given back"
            delays.append(1000 * (time.monotonic() - left))
        return delays

    def in_flight(fleet):
        return fleet.metric("smg_admission_inflight")

    whole = post(generate(tokens=1))
    limits = ("--max-concurrent-requests", 1, "--queue-size", 4, "--queue-timeout-secs", 600)
    with Fleet(binary, workers=0, urls=[Upstream(silent).url], flags=limits) as fleet:
        delays = delays_of(fleet, whole[:-5], lambda f, _: in_flight(f) == 1, lambda f: in_flight(f) == 0)
        show_delays("in their bodies", "the slot was free", delays, short)
        first = connect(fleet.where)
        first.sendall(whole)
        wait_until("the slot is taken", lambda: fleet.metric("smg_worker_requests_active") == 1)
        delays = delays_of(fleet, whole, lambda f, _: f.metric("smg_admission_queue_depth") == 1,
                           lambda f: f.metric("smg_admission_queue_depth") == 0)
        show_delays("in the queue", "the place was free", delays, short)
        first.close()
        fleet.settled()
    pauses = ("--retry-initial-backoff-ms", 600_000, "--retry-max-backoff-ms", 600_000, "--disable-circuit-breaker",
              "--disable-health-check", "--slow-start-secs", 0)
    with Fleet(binary, workers=0, urls=[Upstream(busy).url], flags=limits + pauses) as fleet:
        # As many as the budget of retries allows within ten seconds.
        delays = delays_of(fleet, whole, lambda f, turn: f.metric("smg_worker_retries_total") == turn + 1,
                           lambda f: in_flight(f) == 0, min(rounds, 10))
        show_delays("in the pause before another attempt", "the slot was free", delays, short)
    worker = Unreachable()
    flags = limits + ("--disable-health-check", "--connect-timeout-secs", 600)
    with Fleet(binary, workers=0, urls=[worker.url], flags=flags) as fleet:
        worker.hide()
        delays = delays_of(fleet, whole, lambda f, _: f.metric("smg_worker_requests_active") == 1,
                           lambda f: in_flight(f) == 0)
        show_delays("while the gateway connects", "the slot was free", delays, short)
        fleet.settled()


def logs(binary, short):
    """R29: a log on a full disk, and a flood of lines, cost no request anything."""
    count = 200 if short else 20_000

    def serve_all(where, what):
        statuses = {}
        client = connect(where)
        begin = time.monotonic()
        for i in range(count):
            bad = i % 2 == 1  # each is a line: an error of the client, at debug every request
            client.sendall(post('{"text": ' if bad else generate()))
            status = answered(client)
            statuses[status] = statuses.get(status, 0) + 1
        client.close()
        took = time.monotonic() - begin
        print(f"logs: {what}: {statuses} in {took:.1f} s")
        assert statuses == {200: count - count // 2, 400: count // 2}, statuses

    worker = Sluice(binary, "bench", "worker", "--canned", "--log-level", "error")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for what, stderr, limit, flags in [
                ("stderr on a full disk", "/dev/full", None, []),
                ("a log folder on a full disk", "/dev/null", 16384, ["--log-dir", folder]),
            ]:
                out = open(Path(folder) / "out", "w+")
                command = [binary, "gateway", "--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1",
                           "--prometheus-port", "0", "--worker-urls", worker.url, "--log-level", "debug", *flags]
                if limit:
                    # A file may not grow beyond that: to who writes it is a full disk.
                    command = ["sh", "-c", f"trap '' XFSZ; ulimit -f {limit // 512}; exec \"$@\"", "sh", *command]
                process = subprocess.Popen(command, stdout=out, stderr=open(stderr, "w"))
                try:
                    url = wait_until("it listens", lambda: re.search(r"listening on (http://\S+)",
                                                                     (Path(folder) / "out").read_text()))[1]
                    wait_until("it is ready", lambda: call(url + "/readiness")[0] == 200)
                    serve_all(address(url), what)
                    assert process.poll() is None, f"it ended with {process.returncode}"
                    process.terminate()
                    assert process.wait(BOUND) == 0, f"it ended with {process.returncode}"
                finally:
                    process.kill()
                    process.wait()
    finally:
        worker.kill()


# Prompts that differ: equal ones belong to one worker.
RANDOM_PROMPTS = ("--dataset-name", "random", "--random-input-len", 40, "--random-output-len", 16, "--random-range-ratio", 1)


def load_of(binary, url, *flags, prompts=RANDOM_PROMPTS):
    """A run of `sluice bench`: seconds that it took, and (when it was due, latency, error) of each request."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        subprocess.run([binary, "bench", "--base-url", url, "--disable-tqdm", "--warmup-requests", "0", "--output-file", str(path),
                        "--output-details", *map(str, prompts + flags)], stdout=subprocess.DEVNULL, check=False)
        run = json.loads(path.read_text())
    return run["duration"], list(zip(run["due_times"], run["e2e_latencies"], run["errors"]))


def overload(binary, short):
    """L12: three times the load that the workers can take keeps goodput at 90 % of the peak, and ends at once."""
    patience = 10  # an answer is good within so many seconds
    # Two workers that decode four at once: about 40 requests per second.
    worker_flags = ("--max-running", 4, "--decode-base-ms", 10, "--decode-per-request-ms", 0.5)
    limits = ("--max-concurrent-requests", 12, "--queue-size", 60, "--queue-timeout-secs", 5)
    # Without limits all wait, twice as long as the load lasts: that run is shorter.
    for what, flags, seconds in (("with " + " ".join(map(str, limits)), limits, 2 if short else 600),
                                 ("at defaults", (), 2 if short else 40)):
        with Fleet(binary, workers=2, worker_flags=worker_flags, flags=flags) as fleet:
            took, answers = load_of(binary, fleet.gateway.url, "--num-prompts", 40 if short else 1200, "--max-concurrency", 10)
            assert all(not error for _, _, error in answers), "an error below the limit"
            peak = len(answers) / took
            rate = 3 * peak
            _, answers = load_of(binary, fleet.gateway.url, "--num-prompts", int(rate * seconds), "--request-rate", rate)
            begin = time.monotonic()
            wait_until("it is as before", lambda: call(fleet.gateway.url + "/generate", json.loads(generate()))[0] == 200)
            recovered = time.monotonic() - begin
            fleet.settled()
            # Counted while the load lasts; what is in the queue at the end would only flatter.
            good = sum(not error and latency <= patience and due + latency <= seconds for due, latency, error in answers)
            served = sum(not error and due + latency <= seconds for due, latency, error in answers)
            latencies = sorted(latency for _, latency, error in answers if not error)
            refused = sorted({error[:8] for _, _, error in answers if error})
            print(f"overload: {rate:.0f} req/s for {seconds} s, peak {peak:.0f} req/s, {what}: {served / seconds:.0f} req/s "
                  f"served, {good / seconds:.0f} within {patience} s ({100 * good / seconds / peak:.0f} % of the peak), p50 "
                  f"{latencies[len(latencies) // 2]:.1f} s, p99 {latencies[int(len(latencies) * 0.99)]:.1f} s; refused with "
                  f"{', '.join(refused) or 'nothing'}; {recovered:.1f} s after the end all is well")
            assert set(refused) <= {"HTTP 429", "HTTP 408", "HTTP 503"}, refused
            assert served > 0
            if not short and flags:
                assert good / seconds >= 0.9 * peak, f"goodput is {good / seconds:.1f} of {peak:.1f} req/s"
                assert recovered < 5, f"{recovered:.1f} s"


def knee(binary, short):
    """L3: prompts of 60,000 tokens, streamed answers of 500, at twice what the workers can compute: what is admitted has its
    first token within three times of what it takes alone, and the rest is refused."""
    seconds = 3 if short else 60
    # Two workers that take 0.6 s for such a prompt and 5 s for its answer: 18 requests at work keep them busy.
    worker_flags = ("--cache-simulation", "--cache-kv-blocks", 200_000, "--cache-prefill-us-per-token", 10, "--cache-decode-ms", 0,
                    "--cache-decode-ms-per-token", 10)
    limits = ("--max-concurrent-requests", 18, "--queue-size", 2, "--queue-timeout-secs", 5)

    def ask(where):
        """Seconds to the first token, or the status of a refusal."""
        client = connect(where)
        begin = time.monotonic()
        body = generate(os.urandom(120_000).hex(), stream=True, tokens=50 if short else 500)
        client.sendall(post(body, extra="Connection: close\r\n"))
        data, first = b"", None
        while part := client.recv(65536):
            data += part
            if first is None and b"data: " in data:
                first = time.monotonic() - begin
        client.close()
        status = int(data.split()[1])
        if status != 200:
            return status
        assert b"[DONE]" in data, data[-200:]
        return first

    with Fleet(binary, workers=2, worker_flags=worker_flags, flags=("--policy", "min_cost", *limits)) as fleet:
        alone = sorted(ask(fleet.where) for _ in range(1 if short else 3))[0]
        rate = 2 * 2 / 0.6
        begin = time.monotonic() + 1

        def late(number, gate):
            time.sleep(max(0, begin + number / rate - time.monotonic()))
            return ask(fleet.where)

        answers = in_threads(int(rate * seconds), late)
        fleet.settled()
        admitted = sorted(answer for answer in answers if isinstance(answer, float))
        refused = {answer for answer in answers if isinstance(answer, int)}
        middle = admitted[len(admitted) // 2]
        print(f"knee: {rate:.1f} req/s of 60,000 tokens for {seconds} s: {len(admitted) / seconds:.2f} req/s admitted, first token "
              f"after {middle:.2f} s (median), {middle / alone:.1f} times the {alone:.2f} s alone; {len(answers) - len(admitted)} "
              f"refused with {sorted(refused)}")
        assert refused <= {429}, refused
        if not short:
            assert refused, "nothing was refused at twice the capacity"
            assert middle <= 3 * alone, f"{middle:.2f} s, of at most {3 * alone:.2f}"


def scaling(binary, short):
    """R20, L18: while a fleet has 80 % of the load that it can take, cold workers are added and old ones removed. Nothing
    fails, every request is computed once, and a worker that is added leaves the fleet's latency what it was."""
    # A prompt whose system prompt is cached takes some 30 ms of a worker, another 0.3 s.
    worker_flags = ("--cache-simulation", "--cache-prefill-us-per-token", 400, "--cache-decode-ms", 20)
    groups, each, hold, cycles = (8, 40, 0, 1) if short else (32, 100, 25, 4)
    before = 30  # seconds at that load before anything is changed, of which the first third warms the caches

    def prompts(count, seed):
        return ("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", groups, "--gsp-prompts-per-group",
                count // groups, "--gsp-system-prompt-len", 400, "--gsp-question-len", 40, "--gsp-output-len", 8, "--seed", seed)

    for policy in ("min_cost",) if short else ("min_cost", "cache_aware"):
        with Fleet(binary, workers=4, worker_flags=worker_flags, flags=("--policy", policy)) as fleet:
            def listed():
                return {worker["url"]: worker for worker in call(fleet.gateway.url + "/workers")[2]["workers"]}

            def computed(worker):
                return call(worker.url + "/sim/counters", {})[2]["generations"]

            def add(worker):
                assert call(fleet.gateway.url + "/workers", {"url": worker.url})[0] == 202
                wait_until("it is in rotation", lambda: listed().get(worker.url, {}).get("is_healthy"))

            def remove(worker):
                name = urllib.parse.quote(worker.url, safe="")
                assert call(fleet.gateway.url + "/workers/" + name, method="DELETE")[0] == 202
                wait_until("its requests have ended", lambda: worker.url not in listed())
                done = computed(worker)
                worker.kill()  # nobody waits for it any more
                return done

            took, answers = load_of(binary, fleet.gateway.url, "--max-concurrency", 48, prompts=prompts(groups * each, 1))
            assert all(not error for _, _, error in answers), "an error before anything was changed"
            peak, warm = len(answers) / took, sum(computed(worker) for worker in fleet.workers)
            rate = 0.8 * peak
            cold = [Sluice(binary, "bench", "worker", "--log-level", "error", *worker_flags) for _ in range(cycles)]
            fleet.workers += cold
            # Of the load a quarter is left for what adding and removing takes.
            count = 2 * groups * each if short else int(1.25 * rate * (before + 2 * cycles * hold)) // groups * groups
            run = {}

            def send():
                run["took"], run["answers"] = load_of(binary, fleet.gateway.url, "--request-rate", rate,
                                                      prompts=prompts(count, 2))
                run["ended"] = time.monotonic()

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            wait_until("requests come", lambda: fleet.metric("smg_router_requests_total") > warm + count // 20, within=600)
            if not short:
                time.sleep(before)
            changed, gone, added, removed = time.monotonic(), 0, [], []
            for fresh in cold:
                begin = time.monotonic()
                add(fresh)
                time.sleep(hold)
                added.append((begin, time.monotonic()))
                gone += remove(fleet.workers.pop(0))
                assert short or sender.is_alive(), "the load ended before the changes did"
                # Until then its prefixes may all be cheaper where they are held already.
                wait_until("it is used", lambda: computed(fresh) > 0)
                time.sleep(hold)
                removed.append((added[-1][1], time.monotonic()))
            sender.join(1200)
            assert "answers" in run, "the load has given no report"
            fleet.settled()
            errors = sorted({error for _, _, error in run["answers"] if error})
            assert not errors, f"{sum(1 for _, _, error in run['answers'] if error)} of {count} failed: {errors[:5]}"
            total = gone + sum(computed(worker) for worker in fleet.workers)
            assert total == warm + count, f"{total} requests were computed of {warm + count} that were sent"
            began = run["ended"] - run["took"]  # by the clock of the load

            def latencies(*spans):
                """p50 and p99 in ms of what was due in these spans."""
                of = sorted(latency for due, latency, _ in run["answers"] if any(a <= began + due < b for a, b in spans))
                return [1000 * of[int(share * len(of))] for share in (0.5, 0.99)] if of else [0, 0]

            first, after_adding, after_removing = latencies((began + (changed - began) / 3, changed)), latencies(*added), latencies(*removed)
            print(f"scaling: {policy}, {rate:.0f} req/s of at most {peak:.0f}, {count} requests, {cycles} cold workers added and "
                  f"old ones removed: none failed, each was computed once, {computed(fresh)} by the newest; p50 and p99 ms: before "
                  f"{first[0]:.0f} and {first[1]:.0f}, after one was added {after_adding[0]:.0f} and {after_adding[1]:.0f}, after one was "
                  f"removed {after_removing[0]:.0f} and {after_removing[1]:.0f}", flush=True)
            # What was cached by a worker that is removed must be computed again, which takes others' time; and cache_aware sends
            # prompts to an empty worker whenever the loads differ enough, by its rule.
            assert short or policy != "min_cost" or after_adding[1] <= 1.25 * first[1], "a cold worker made the fleet slower"


def frozen(binary, short):
    """R4: one worker of four freezes under load: it accepts and answers nothing. The others serve at least 99 % of what they
    served before, it becomes suspect, and what it has is answered once it goes on."""
    rate, window = 60, 1 if short else 30  # each of the four could take some 45 req/s
    count = rate * (8 if short else 90)
    flags = ("--max-running", 8, "--decode-base-ms", 10, "--decode-per-request-ms", 0.5)
    with Fleet(binary, workers=4, worker_flags=flags, flags=("--policy", "round_robin")) as fleet:
        victim, others = fleet.workers[0], fleet.workers[1:]

        def served():
            return sum(call(worker.url + "/sim/counters", {})[2]["completed"] for worker in others)

        def suspected():
            return next(worker for worker in call(fleet.gateway.url + "/workers")[2]["workers"]
                        if worker["url"] == victim.url).get("suspect")

        run = {}

        def send():
            run["took"], run["answers"] = load_of(binary, fleet.gateway.url, "--num-prompts", count, "--request-rate", rate)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        wait_until("requests come", lambda: served() > rate / 2)
        counts = [served()]
        time.sleep(window)
        counts.append(served())
        os.kill(victim.process.pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            wait_until("it is suspect", suspected, within=30)
            found, at_suspicion = time.monotonic() - begin, served()
            wait_until("the others go on", lambda: served() > counts[1] + rate / 2)
            time.sleep(max(0, window - (time.monotonic() - begin)))
            counts.append(served())
            meanwhile = time.monotonic() - begin
        finally:
            os.kill(victim.process.pid, signal.SIGCONT)
        sender.join(600)
        assert "answers" in run, "the load has given no report"
        fleet.settled()
        errors = sorted({error for _, _, error in run["answers"] if error})
        assert not errors, f"{sum(1 for _, _, error in run['answers'] if error)} of {count} failed: {errors[:5]}"
        before, after = (counts[1] - counts[0]) / window, (counts[2] - counts[1]) / meanwhile
        alone = (counts[2] - at_suspicion) / (meanwhile - found)
        print(f"frozen: {rate} req/s to four workers: three of them serve {before:.1f} req/s, and {after:.1f} while the fourth is "
              f"frozen ({100 * after / max(before, 0.1):.0f} %), {alone:.1f} once it is suspect, after {found:.1f} s; all {count} were answered")
        assert short or after >= 0.99 * before, "the others served less"
        # Arrivals are random: 30 s of 60 a second are 1,800, give or take 5 %.
        assert short or alone >= 0.95 * rate, "the others did not take all"


def killed(binary, short):
    """R1: one worker of four is killed while the fleet has 80 % of the load that it can take, half of it streams. What fails is no
    more than the streams that had begun there, and each is told so."""
    running = 8
    flags = ("--max-running", running, "--decode-base-ms", 10, "--decode-per-request-ms", 0.5)
    for policy in ("min_cost",) if short else ("min_cost", "cache_aware"):
        with Fleet(binary, workers=4, worker_flags=flags, flags=("--policy", policy)) as fleet:
            took, answers = load_of(binary, fleet.gateway.url, "--num-prompts", 200 if short else 2000, "--max-concurrency", 4 * running)
            rate = 0.8 * len(answers) / took
            half = int(rate / 2 * (4 if short else 60))
            before = fleet.metric("smg_router_requests_total")
            runs = {}

            def send(kind, *more):
                took, answers = load_of(binary, fleet.gateway.url, "--num-prompts", half, "--request-rate", rate / 2, "--seed", len(kind), *more)
                runs[kind] = time.monotonic() - took, answers

            senders = [threading.Thread(target=send, args=sending, daemon=True)
                       for sending in (("streams",), ("whole answers", "--disable-stream"))]
            for sender in senders:
                sender.start()
            wait_until("half of the requests have come", lambda: fleet.metric("smg_router_requests_total") > before + half, within=300)
            fleet.workers[0].kill()
            at = time.monotonic()
            for sender in senders:
                sender.join(600)
            assert len(runs) == 2, "a load has given no report"
            fleet.settled()
            begin, streams = runs["streams"]
            failed = [(begin + due, error) for due, _, error in streams if error]
            whole = [error for _, _, error in runs["whole answers"][1] if error]
            assert not whole, f"{len(whole)} whole answers were lost: {whole[:5]}"
            assert len(failed) <= running, f"{len(failed)} streams were lost, and {running} at most had begun"
            late = max((due - at for due, _ in failed), default=-math.inf)
            assert short or late < 1, f"a request failed that came {late:.1f} s after the worker's end"
            told = sorted({error for _, error in failed})
            assert all("worker" in error for error in told), f"a stream ended without a reason: {told}"
            print(f"killed: {policy}, {rate:.0f} req/s, of {2 * half} requests {len(failed)} failed, streams that had begun at the "
                  f"killed worker, of {running} at most; told: {told[:1]}", flush=True)


SCENARIOS = [burst, names, streams, large, long_prompts, slow_readers, leaving, logs, overload, knee, scaling, frozen, killed]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("binary")
    arguments.add_argument("scenarios", nargs="*", choices=[[], *(s.__name__ for s in SCENARIOS)])
    arguments.add_argument("--short", action="store_true")
    options = arguments.parse_args()
    for scenario in SCENARIOS:
        if not options.scenarios or scenario.__name__ in options.scenarios:
            scenario(options.binary, options.short)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
