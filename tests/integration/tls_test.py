#!/usr/bin/env python3
"""TLS of a whole gateway, with certificates of the openssl command: clients (Python's ssl, curl) over https, a worker over
https that wants a certificate of ours, certificates that change while it runs, and files that cannot be used.

usage: tls_test.py <sluice binary>"""
import http.client
import http.server
import json
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import unittest
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))
from certificates import Folder  # noqa: E402
from sluice_process import Sluice, wait_until  # noqa: E402

BINARY = sys.argv.pop(1)
BOUND = 60


class Worker(http.server.BaseHTTPRequestHandler):
    """Answers /generate in two pieces, over kept connections."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b'{"data": [{"id": "tls-model"}]}' if self.path == "/v1/models" else b"{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b'{"text": "over TLS"}')

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:5])
        self.wfile.flush()
        self.wfile.write(body[5:])

    def log_message(self, *_):
        pass


def start_worker(folder):
    """A worker over TLS that serves only who has a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "worker.pem", folder / "worker.key")
    context.load_verify_locations(folder / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    server.daemon_threads = True
    # The handshake is for the connection's own thread.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None  # who has no certificate
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def gateway(folder, *arguments):
    return Sluice(BINARY, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1",
                  "--prometheus-port", 0, "--worker-startup-check-interval", 1, *arguments)


def connect(url, authority):
    parts = urllib.parse.urlparse(url)
    context = ssl.create_default_context(cafile=str(authority))
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=BOUND, context=context)


def ask(connection, method, target, body=None):
    connection.request(method, target, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


class GatewayTlsTest(unittest.TestCase):
    def setUp(self):
        self.folder = Folder()
        self.folder.authority("authority")
        for name in ("gateway", "worker", "client"):
            self.folder.make(name, "authority")

    def test_both_sides_over_tls_and_certificates_that_change(self):
        worker = start_worker(self.folder)
        url = f"https://127.0.0.1:{worker.server_port}"
        with gateway(self.folder, "--worker-urls", url, "--client-cert-path", self.folder / "client.pem",
                     "--client-key-path", self.folder / "client.key", "--ca-cert-paths", self.folder / "authority.pem",
                     "--tls-cert-path", self.folder / "gateway.pem", "--tls-key-path", self.folder / "gateway.key") as sluice:
            self.assertTrue(sluice.url.startswith("https://"), sluice.url)
            kept = connect(sluice.url, self.folder / "authority.pem")
            wait_until("readiness", lambda: ask(kept, "GET", "/readiness")[0] == 200)
            for _ in range(3):
                self.assertEqual(ask(kept, "POST", "/generate", {"text": "x"}), (200, b'{"text": "over TLS"}'))
            self.assertEqual(kept.sock.selected_alpn_protocol(), None)  # it asked for none
            if shutil.which("curl"):
                answer = subprocess.run(["curl", "-sS", "--cacert", self.folder / "authority.pem", "-d", '{"text": "x"}',
                                         "-w", "%{http_version}", sluice.url + "/generate"],
                                        capture_output=True, timeout=BOUND)
                self.assertEqual(answer.stdout, b'{"text": "over TLS"}1.1', answer.stderr)

            # A file that cannot be used is said, and the old certificate stays.
            (self.folder / "gateway.pem").write_text("nothing")
            wait_until("the warning", lambda: "the old ones stay" in sluice.output(), within=BOUND)
            self.assertEqual(ask(connect(sluice.url, self.folder / "authority.pem"), "GET", "/health")[0], 200)
            # A new authority: new connections see it, the kept one goes on.
            self.folder.authority("next")
            self.folder.make("gateway", "next")
            wait_until("the news", lambda: "use the new ones" in sluice.output(), within=BOUND)
            self.assertEqual(ask(connect(sluice.url, self.folder / "next.pem"), "GET", "/health")[0], 200)
            self.assertEqual(ask(kept, "GET", "/health")[0], 200)
            with self.assertRaises(ssl.SSLCertVerificationError):
                ask(connect(sluice.url, self.folder / "authority.pem"), "GET", "/health")
            self.assertEqual(sluice.stop(signal.SIGTERM), 0)
        worker.shutdown()

    def test_a_worker_that_does_not_trust_us_is_not_used_and_the_log_says_why(self):
        worker = start_worker(self.folder)
        url = f"https://127.0.0.1:{worker.server_port}"
        with gateway(self.folder, "--worker-urls", url, "--ca-cert-paths", self.folder / "authority.pem") as sluice:
            wait_until("the reason", lambda: "certificate required" in sluice.output(), within=BOUND)
        with gateway(self.folder, "--worker-urls", url) as sluice:
            wait_until("the reason", lambda: "self-signed certificate in certificate chain" in sluice.output(), within=BOUND)
        worker.shutdown()

    def test_bad_files_end_the_start_with_their_names(self):
        for flags, what in [(["--tls-cert-path", "/nowhere.pem", "--tls-key-path", "/nowhere.key"], "/nowhere.pem"),
                            (["--tls-cert-path", "/nowhere.pem"], "need each other"),
                            (["--ca-cert-paths", "/nowhere.pem"], "--ca-cert-paths: cannot read certificate /nowhere.pem")]:
            ended = subprocess.run([BINARY, "gateway", *flags], capture_output=True, text=True, timeout=BOUND)
            self.assertEqual(ended.returncode, 2, ended.stderr)
            self.assertIn(what, ended.stderr)

    def test_old_protocols_and_other_applications_are_refused(self):
        with gateway(self.folder, "--tls-cert-path", self.folder / "gateway.pem", "--tls-key-path",
                     self.folder / "gateway.key") as sluice:
            port = urllib.parse.urlparse(sluice.url).port
            context = ssl.create_default_context(cafile=str(self.folder / "authority.pem"))
            context.set_alpn_protocols(["h2"])
            with self.assertRaises(ssl.SSLError):
                http.client.HTTPSConnection("127.0.0.1", port, timeout=BOUND, context=context).connect()
            context.set_alpn_protocols(["h2", "http/1.1"])
            both = http.client.HTTPSConnection("127.0.0.1", port, timeout=BOUND, context=context)
            both.connect()
            self.assertEqual(both.sock.selected_alpn_protocol(), "http/1.1")
            self.assertIn(both.sock.version(), ("TLSv1.2", "TLSv1.3"))
            plain = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND)
            status, body = ask(plain, "GET", "/health")
            self.assertEqual(status, 400)
            self.assertIn(b"use https://", body)


if __name__ == "__main__":
    unittest.main()
