#!/usr/bin/env python3
"""What the gateway's options change that only a whole process shows: addresses, the log, how long a drain may take.

usage: gateway_options_test.py <sluice binary>"""
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import unittest
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv[1]


def gateway(*flags):
    flags = list(map(str, flags))
    for flag in ("--port", "--prometheus-port"):
        flags += [] if flag in flags else [flag, "0"]
    return Sluice(BINARY, "gateway", *flags)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def metrics_port(server):
    return urllib.parse.urlparse(server.metrics_url()).port


def answers(host, port, path):
    try:
        return call(f"http://{host}:{port}{path}", timeout=10)[0] == 200
    except OSError:
        return False


def log_of(*flags):
    """What a gateway that starts and is told to stop writes to the log."""
    with gateway("--shutdown-grace-period-secs", 1, *flags) as server:
        if server.stop() != 0:
            raise AssertionError(server.output())
        wait_until("its output has ended", lambda: server.process.stdout.closed, within=10)
        return [line for line in server.lines if not re.match(r"(listening|metrics) on ", line)]


class AddressTest(unittest.TestCase):
    def test_host(self):
        with gateway("--host", "127.0.0.2") as server:
            port = int(server.url.rsplit(":", 1)[1])
            self.assertTrue(answers("127.0.0.2", port, "/health"))
            self.assertFalse(answers("127.0.0.1", port, "/health"))

    def test_port(self):
        port = free_port()
        with gateway("--host", "127.0.0.1", "--port", port) as server:
            self.assertEqual(server.url, f"http://127.0.0.1:{port}")
            self.assertTrue(answers("127.0.0.1", port, "/health"))

    def test_prometheus_host(self):
        with gateway("--prometheus-host", "127.0.0.2") as server:
            self.assertTrue(answers("127.0.0.2", metrics_port(server), "/metrics"))
            self.assertFalse(answers("127.0.0.1", metrics_port(server), "/metrics"))

    def test_prometheus_port(self):
        port = free_port()
        with gateway("--prometheus-port", port) as server:
            self.assertEqual(metrics_port(server), port)
            self.assertTrue(answers("127.0.0.1", port, "/metrics"))


class LogTest(unittest.TestCase):
    def test_log_level(self):
        self.assertTrue(any("info" in line and "draining" in line for line in log_of()))
        self.assertEqual(log_of("--log-level", "error"), [])

    def test_log_json(self):
        lines = [json.loads(line) for line in log_of("--log-json")]
        self.assertIn("draining", [line["message"] for line in lines])
        self.assertEqual({line["level"] for line in lines}, {"info"})

    def test_log_dir(self):
        with tempfile.TemporaryDirectory() as folder:
            log_of("--log-dir", folder)
            files = os.listdir(folder)
            self.assertEqual(len(files), 1)
            with open(os.path.join(folder, files[0])) as file:
                self.assertIn("draining", file.read())


class DrainTest(unittest.TestCase):
    def test_shutdown_grace_period_secs(self):
        """What does not end within the grace is cut off: by default that would take three minutes."""
        with socket.create_server(("127.0.0.1", 0)) as silent, \
                gateway("--shutdown-grace-period-secs", 1, "--disable-health-check") as server:
            def serve():
                while True:
                    try:
                        connection, _ = silent.accept()
                    except OSError:
                        return
                    if b"GET /health" in connection.recv(4096):
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    kept.append(connection)
            kept = []
            threading.Thread(target=serve, daemon=True).start()
            call(server.url + "/workers", {"url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
            wait_until("it is ready", lambda: call(server.url + "/readiness")[0] == 200, within=30)
            with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client:
                client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"text\":\"x\"}")
                wait_until("the request is under way", lambda: call(server.url + "/workers")[2]["workers"][0]["load"] == 1)
                self.assertEqual(server.stop(signal.SIGTERM, within=60), 0)
            wait_until("it is said", lambda: "1 requests were cut off" in server.output(), within=10)
            for connection in kept:
                connection.close()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
