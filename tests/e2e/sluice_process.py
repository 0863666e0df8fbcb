"""Starts a sluice command for a test and ends it whatever happens."""
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

LISTENING = re.compile(r"listening on (https?://\S+)")


class Sluice:
    """`sluice <arguments>` as a child process. `url` is where it listens, read from the line that it prints."""

    def __init__(self, binary, *arguments, env=None):
        self.lines = []
        self.url = None
        self._listening = threading.Event()
        self.process = subprocess.Popen([binary, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, errors="replace", env={**os.environ, **(env or {})})
        threading.Thread(target=self._read, daemon=True).start()
        if not self._listening.wait(60):
            self.kill()
            raise AssertionError("no 'listening on' line within 60 s; the output was:\n" + self.output())

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            match = LISTENING.search(line)
            if match and self.url is None:
                self.url = match[1].replace("0.0.0.0", "127.0.0.1")
                self._listening.set()
        self.process.stdout.close()
        self._listening.set()

    def output(self):
        return "".join(self.lines[-200:])

    def metrics_url(self):
        """Of a gateway."""
        return wait_until("the line of the metrics", lambda: re.search(r"metrics on (\S+)", "".join(self.lines)))[1].replace("0.0.0.0", "127.0.0.1")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, how=signal.SIGTERM, within=60):
        self.process.send_signal(how)
        return self.process.wait(within)

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        self.kill()
        if failed:
            print("--- output of sluice ---\n" + self.output(), flush=True)


def call(url, body=None, method=None, headers=None, timeout=120):
    """(status, headers, parsed JSON or text); an HTTP error is a status like any other."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method,
                                     headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, head, text = answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, head, text = error.code, error.headers, error.read().decode()
    try:
        return status, head, json.loads(text)
    except ValueError:
        return status, head, text


def wait_until(what, condition, within=120, every=0.05):
    """Polls `condition` until it gives something true, which is returned."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(every)
    raise AssertionError(f"{what}: not within {within} s")


def descendants(pid):
    """The processes below `pid`, as {pid: command line}."""
    parents, commands = {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{name}/cmdline") as file:
                commands[int(name)] = file.read().replace("\0", " ").strip()
        except OSError:
            continue
    found, todo = {}, [pid]
    while todo:
        current = todo.pop()
        for child, parent in parents.items():
            if parent == current and child not in found:
                found[child] = commands.get(child, "")
                todo.append(child)
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
