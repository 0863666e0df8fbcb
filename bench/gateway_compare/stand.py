"""What the measurements stand on: programs pinned to a core, the CPU time and memory that they take, the simulated
workers, the gateways under comparison, and the load."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Stand:
    """Paths, cores and settings of one run of the harness. Leaving it ends every program that it started."""

    def __init__(self, arguments):
        self.build = Path(arguments.build)
        self.sluice = self.build / "sluice"
        self.peers = Path(arguments.peers) if arguments.peers else None
        self.worker_arguments = arguments.worker_arguments.split()
        self.priority = arguments.priority
        cores = sorted(os.sched_getaffinity(0))
        self.gateway_core, self.load_core = cores[0], cores[-1]
        self.folder = Path(tempfile.mkdtemp(prefix="gateway_compare."))
        self.programs = []

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        for program in reversed(self.programs):
            program.stop()
        if not failed:  # else its logs may tell why
            shutil.rmtree(self.folder)

    def start(self, command, core, **options):
        program = Program(self, [str(part) for part in command], core, **options)
        self.programs.append(program)
        return program

    def end(self, program):
        program.stop()
        self.programs.remove(program)


class Program:
    """A child process on one core, with all that it starts."""

    def __init__(self, stand, command, core, stdout=None, stdin=None):
        self.command = command
        self.log = stand.folder / f"{len(stand.programs)}-{Path(command[0]).name}-{time.monotonic_ns()}.log"

        def pin():
            os.sched_setaffinity(0, {core})
            if stand.priority:
                os.setpriority(os.PRIO_PROCESS, 0, stand.priority)

        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=stdout or log, stderr=log, stdin=stdin or subprocess.DEVNULL,
                                            preexec_fn=pin, start_new_session=True, text=True)

    def pids(self):
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    todo += map(int, children.read_text().split())
                except OSError:
                    pass
        return found

    def cpu_seconds(self):
        """User and system time of all processes and threads. Threads that live are counted by the scheduler's
        nanoseconds; if some have ended, the ticks of /proc/<pid>/stat know more."""
        exact = ticks = 0.0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ticks += sum(map(int, fields[11:15])) / TICK
                for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    exact += int(schedstat.read_text().split()[0]) / 1e9
            except OSError:
                pass
        return exact if ticks < exact * 1.02 + 0.1 else ticks

    def rss(self):
        total = 0
        for pid in self.pids():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
            except OSError:
                pass
        return total

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for stream in (self.process.stdout, self.process.stdin):
            if stream:
                stream.close()

    def tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_worker(stand, *arguments):
    """A simulated worker; its port."""
    program = stand.start([stand.sluice, "bench", "worker", "--log-level", "warn", *arguments, *stand.worker_arguments],
                          stand.load_core, stdout=subprocess.PIPE)
    for line in program.process.stdout:
        if "listening on" in line:
            program.port = int(line.rsplit(":", 1)[1])
            return program
    raise SystemExit(f"a worker did not start:\n{program.tail()}")


HAPROXY = """global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-keep-alive
  http-reuse always
{no_delay}frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance roundrobin
{servers}
"""


class Gateway:
    """A gateway in front of the workers, which answers. `name` is that of a contender; "direct" is none at all."""

    def __init__(self, stand, name, worker_ports, policy="cache_aware", flags=(), no_delay=False):
        self.stand, self.name, self.policy, self.program = stand, name, policy, None
        self.ports = list(worker_ports)
        if name == "direct":
            return
        port, metrics_port = free_port(), free_port()
        urls = [f"http://127.0.0.1:{p}" for p in worker_ports]
        common = ["--host", "127.0.0.1", "--port", port, "--prometheus-host", "127.0.0.1", "--prometheus-port", metrics_port,
                  "--policy", policy, "--worker-startup-check-interval", "1", *flags, "--worker-urls", *urls]
        if name == "haproxy":
            config = stand.folder / f"haproxy-{port}.cfg"
            config.write_text(HAPROXY.format(
                port=port, no_delay="  option http-no-delay\n" if no_delay else "",
                servers="\n".join(f"  server s{i} 127.0.0.1:{p}" for i, p in enumerate(worker_ports))))
            command = ["haproxy", "-db", "-f", config]
        elif name == "epoll relay":
            command = [stand.build / "bench/epoll_relay", "stream", port, *worker_ports]
        elif name == "sluice":
            command = [stand.sluice, "gateway", "--log-level", "warn", *common]
        elif name == "sglang-router":
            command = [stand.peers / "sglang-router/bin/sglang-router", "launch", "--log-level", "warn", *common]
        elif name == "smg":
            # Its default, 4,096 at once, would refuse requests where the cache simulation overloads a policy.
            command = [stand.peers / "smg/bin/smg", "launch", "--log-level", "warn", "--max-concurrent-requests", "20000",
                       *common]
        elif name == "vllm-router":
            command = [stand.peers / "vllm-router/bin/vllm-router", "--log-level", "warning", *common]
        else:
            raise SystemExit(f"{name}: no such gateway")
        self.ports, self.metrics_port = [port], metrics_port
        self.program = stand.start(command, stand.gateway_core)
        self.command = self.program.command
        self._await_answers(len(worker_ports))

    def _await_answers(self, workers):
        body = json.dumps({"model": "sim-model", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.program.process.poll() is not None:
                break
            try:
                ready = self.ask("POST", "/v1/chat/completions", body)[0] == 200
            except (OSError, http.client.HTTPException):
                ready = False
            if ready and self._worker_count() in (None, workers):
                time.sleep(0.5)
                return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} did not come up:\n{' '.join(self.command)}\n{self.program.tail()}")

    def _worker_count(self):
        """None where the gateway does not tell."""
        if self.name in ("haproxy", "epoll relay"):
            return None
        try:
            status, text = self.ask("GET", "/workers")
            return len(json.loads(text)["workers"]) if status == 200 else None
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            return None

    def ask(self, method, path, body=None, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.ports[0], timeout=30)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def cpu_seconds(self):
        return self.program.cpu_seconds() if self.program else 0.0

    def stop(self):
        if self.program:
            self.stand.end(self.program)
            self.program = None


def machine_busy_seconds():
    """What all cores have run, of any program."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICK


def follow(stand, program, gateway):
    """Reads what a load prints to its end; its result with the CPU time of the gateway in the window."""
    marks, result = {}, None
    for line in program.process.stdout:
        line = line.strip()
        if line in ("begin", "end"):
            ours = sum(p.cpu_seconds() for p in stand.programs)
            marks[line] = (gateway.cpu_seconds(), machine_busy_seconds() - ours)
        elif line.startswith("{"):
            result = json.loads(line)
    program.process.wait()
    tail = program.tail()
    stand.end(program)
    if result is None:
        return {"requests": 0, "failed": 1, "errors": {tail[-300:]: 1}, "seconds": 0, "void": True}
    result["cpu_s"] = round(marks["end"][0] - marks["begin"][0], 6)
    result["other_programs"] = round(max(0.0, marks["end"][1] - marks["begin"][1]) / result["seconds"], 3)
    result["load_average"] = os.getloadavg()[0]
    # More than a thousandth failed, or nothing came back at all: not a measurement.
    done = result["requests"] + result["chunks"]
    result["void"] = done == 0 or result["failed"] > 0.001 * (result["requests"] + result["failed"])
    return result


def load(stand, gateway, **arguments):
    """One run of gateway_load; its result with the CPU time of the gateway in the window."""
    words = [f"{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    command = [stand.build / "bench/gateway_load", "ports=" + ",".join(map(str, gateway.ports)), *words]
    return follow(stand, stand.start(command, stand.load_core, stdout=subprocess.PIPE), gateway)
