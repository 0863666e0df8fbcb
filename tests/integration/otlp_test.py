#!/usr/bin/env python3
"""Traces of the gateway and of the engine arrive at a real OTLP receiver, made of the packages opentelemetry-proto and grpcio:
over gRPC and over HTTP, plain or over TLS, with parents, children and attributes; a receiver that is away, slow or refuses costs
traces and no request.

usage: otlp_test.py <sluice binary> [folder of fixtures]; without it the engine's part is skipped"""
import concurrent.futures
import http.server
import re
import ssl
import sys
import threading
import unittest
from pathlib import Path

try:
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
except ImportError as missing:
    print(f"skipped: {missing}; ./test installs what this needs")
    sys.exit(77)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))
from certificates import Folder  # noqa: E402
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv.pop(1)
MODEL = Path(sys.argv.pop(1)) / "tiny-llama" if len(sys.argv) > 1 else None
WAIT = 60
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Kept:
    """What a receiver got."""

    def __init__(self):
        self.lock = threading.Lock()
        self.requests = []
        self.hold = threading.Event()
        self.hold.set()
        self.refuse = None

    def add(self, request):
        with self.lock:
            self.requests.append(request)

    def spans(self):
        with self.lock:
            return [(span, resource.resource) for request in self.requests for resource in request.resource_spans
                    for scope in resource.scope_spans for span in scope.spans]

    def of_trace(self, trace):
        return {span.name: span for span, _ in self.spans() if span.trace_id.hex() == trace}


class GrpcReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, kept, port=0, tls=None):
        self.kept = kept
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self.server)
        address = f"127.0.0.1:{port}"
        self.port = self.server.add_secure_port(address, tls) if tls else self.server.add_insecure_port(address)
        self.server.start()
        self.endpoint = f"{'grpcs://' if tls else ''}127.0.0.1:{self.port}"

    def Export(self, request, context):
        self.kept.hold.wait(WAIT)
        if self.kept.refuse:
            context.abort(self.kept.refuse, "not now")
        self.kept.add(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self):
        self.kept.hold.set()
        self.server.stop(0).wait(WAIT)


class HttpReceiver:
    def __init__(self, kept, tls=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
                kept.add(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
            self.server.handle_error = lambda *_: None  # who does not trust it
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_address[1]}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class OtlpTest(unittest.TestCase):
    def setUp(self):
        self.kept = Kept()
        self.worker = self.started(Sluice(BINARY, "bench", "worker", "--port", 0))

    def started(self, thing):
        self.addCleanup(thing.stop)
        return thing

    def gateway(self, endpoint, *flags, env=None):
        gateway = self.started(Sluice(
            BINARY, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1", "--prometheus-port", 0,
            "--enable-trace", "--otlp-traces-endpoint", endpoint, "--shutdown-grace-period-secs", "0",
            "--worker-urls", self.worker.url, *flags, env=env))
        wait_until("the gateway is ready", lambda: call(gateway.url + "/readiness")[0] == 200)
        return gateway

    def chat(self, gateway, headers=None, stream=True):
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": stream}
        status, _, text = call(gateway.url + "/v1/chat/completions", body, headers=headers)
        self.assertEqual(status, 200, text)

    def traces(self, gateway, result):
        text = call(gateway.metrics_url() + "/metrics")[2]
        found = re.search(rf'^smg_traces_total{{result="{result}"}} (\S+)', text, re.M)
        return float(found[1]) if found else 0

    def wait_for_traces(self, gateway, result, count):
        wait_until(f"{count} traces {result}", lambda: self.traces(gateway, result) == count)

    def check_trace(self, stream):
        spans = wait_until("the trace", lambda: self.kept.of_trace(TRACE))
        root = spans["POST /v1/chat/completions"]
        self.assertEqual(root.parent_span_id.hex(), SPAN)
        self.assertEqual(root.kind, 2)
        names = {"queue", "read", "choose", "connect", "first byte"} | ({"stream"} if stream else set())
        self.assertLessEqual(names, set(spans))
        end = root.start_time_unix_nano
        for name in ("queue", "read", "choose", "connect", "first byte"):
            child = spans[name]
            self.assertEqual(child.parent_span_id, root.span_id)
            self.assertEqual(child.start_time_unix_nano, end, name)
            end = child.end_time_unix_nano
        self.assertLessEqual(end, root.end_time_unix_nano)
        attributes = {item.key: item.value for item in root.attributes}
        self.assertEqual(attributes["http.request.method"].string_value, "POST")
        self.assertEqual(attributes["http.route"].string_value, "/v1/chat/completions")
        self.assertEqual(attributes["http.response.status_code"].int_value, 200)
        self.assertEqual(attributes["gen_ai.operation.name"].string_value, "chat")
        self.assertTrue(attributes["gen_ai.request.model"].string_value)
        self.assertEqual(attributes["sluice.worker"].string_value, self.worker.url)
        self.assertEqual(attributes["sluice.outcome"].string_value, "ok")
        self.assertTrue({"sluice.policy", "sluice.reason"} <= {item.key for item in spans["choose"].attributes})
        resource = self.kept.spans()[0][1]
        self.assertEqual({item.key: item.value.string_value for item in resource.attributes}["service.name"], "sgl-router")

    def test_over_grpc(self):
        gateway = self.gateway(self.started(GrpcReceiver(self.kept)).endpoint)
        self.chat(gateway, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
        self.check_trace(stream=True)
        self.wait_for_traces(gateway, "exported", 1)

    def test_over_http(self):
        gateway = self.gateway(self.started(HttpReceiver(self.kept)).endpoint)
        self.chat(gateway, {"traceparent": f"00-{TRACE}-{SPAN}-01"}, stream=False)
        self.check_trace(stream=False)
        self.wait_for_traces(gateway, "exported", 1)

    def certificates(self):
        folder = Folder()
        folder.authority("authority")
        for name in ("receiver", "gateway"):
            folder.make(name, "authority")
        return folder

    def check_certificates_on_both_sides(self, receiver, folder):
        gateway = self.gateway(receiver.endpoint, env={
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(folder / "authority.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(folder / "gateway.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(folder / "gateway.key")})
        self.chat(gateway, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
        self.check_trace(stream=True)
        self.wait_for_traces(gateway, "exported", 1)
        stranger = self.gateway(receiver.endpoint)
        self.chat(stranger)
        wait_until("the reason", lambda: "certificate" in stranger.output())
        stranger.stop()
        self.assertEqual(len(self.kept.requests), 1)

    def test_over_https_with_certificates_on_both_sides(self):
        folder = self.certificates()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "receiver.pem", folder / "receiver.key")
        context.load_verify_locations(folder / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        self.check_certificates_on_both_sides(self.started(HttpReceiver(self.kept, context)), folder)

    def test_over_grpc_and_tls_with_certificates_on_both_sides(self):
        folder = self.certificates()
        pem = {name: Path(folder / name).read_bytes() for name in ("receiver.key", "receiver.pem", "authority.pem")}
        credentials = grpc.ssl_server_credentials([(pem["receiver.key"], pem["receiver.pem"])], pem["authority.pem"], True)
        self.check_certificates_on_both_sides(self.started(GrpcReceiver(self.kept, tls=credentials)), folder)

    def test_a_server_that_does_not_agree_on_http2_is_said_to_be_no_grpc_server(self):
        folder = self.certificates()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "receiver.pem", folder / "receiver.key")
        receiver = self.started(HttpReceiver(self.kept, context))
        gateway = self.gateway(receiver.endpoint.replace("https://", "grpcs://"),
                               env={"OTEL_EXPORTER_OTLP_CERTIFICATE": str(folder / "authority.pem")})
        self.chat(gateway)
        wait_until("the reason", lambda: "does not speak gRPC over TLS" in gateway.output())
        self.wait_for_traces(gateway, "failed", 1)

    def test_a_grpc_server_that_refuses_the_certificate_is_quoted(self):
        folder = self.certificates()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(folder / "receiver.pem", folder / "receiver.key")
        context.load_verify_locations(folder / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED  # with TLS 1.3 it says so after the client's handshake
        receiver = self.started(HttpReceiver(self.kept, context))
        gateway = self.gateway(receiver.endpoint.replace("https://", "grpcs://"),
                               env={"OTEL_EXPORTER_OTLP_CERTIFICATE": str(folder / "authority.pem")})
        self.chat(gateway)
        wait_until("the reason", lambda: "TLS failed: " in gateway.output() and "certificate" in gateway.output())

    def test_many_in_few_batches_and_what_waits_at_the_end(self):
        gateway = self.gateway(self.started(GrpcReceiver(self.kept)).endpoint)
        for _ in range(300):
            self.chat(gateway)
        gateway.stop()
        roots = [span for span, _ in self.kept.spans() if span.kind == 2]
        self.assertEqual(len(roots), 300)
        self.assertEqual(len({span.trace_id for span in roots}), 300)
        self.assertLess(len(self.kept.requests), 100)

    def test_errors_of_the_worker_are_errors_of_the_trace(self):
        gateway = self.gateway(self.started(GrpcReceiver(self.kept)).endpoint, "--disable-retries")
        self.worker.stop()
        status, _, _ = call(gateway.url + "/generate", {"text": "x"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
        self.assertIn(status, (502, 503))
        root = wait_until("the trace", lambda: self.kept.of_trace(TRACE))["POST /generate"]
        self.assertEqual(root.status.code, 2)
        self.assertEqual({item.key: item.value for item in root.attributes}["http.response.status_code"].int_value, status)

    def test_a_receiver_that_comes_back_gets_what_waited(self):
        receiver = GrpcReceiver(self.kept)
        gateway = self.gateway(receiver.endpoint)
        self.chat(gateway)
        self.wait_for_traces(gateway, "exported", 1)
        receiver.stop()
        self.chat(gateway, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
        self.started(GrpcReceiver(self.kept, receiver.port))
        self.check_trace(stream=True)

    def test_a_slow_receiver_delays_no_request(self):
        receiver = self.started(GrpcReceiver(self.kept))
        gateway = self.gateway(receiver.endpoint)
        self.kept.hold.clear()
        for _ in range(50):
            self.chat(gateway)
        self.assertEqual(self.kept.requests, [])
        self.kept.hold.set()
        self.wait_for_traces(gateway, "exported", 50)

    def test_a_receiver_that_refuses_for_good_is_asked_once(self):
        self.kept.refuse = grpc.StatusCode.INVALID_ARGUMENT
        gateway = self.gateway(self.started(GrpcReceiver(self.kept)).endpoint)
        self.chat(gateway)
        self.wait_for_traces(gateway, "failed", 1)


@unittest.skipUnless(MODEL, "no engine in this build")
class EngineOtlpTest(unittest.TestCase):
    def setUp(self):
        self.kept = Kept()
        self.receiver = self.started(GrpcReceiver(self.kept))

    def started(self, thing):
        self.addCleanup(thing.stop)
        return thing

    def server(self, *flags, env=None):
        return self.started(Sluice(
            BINARY, "server", "--model-path", MODEL, "--port", 0, "--max-total-tokens", 4096, "--threads", 1, "--enable-metrics",
            "--enable-trace", "--otlp-traces-endpoint", self.receiver.endpoint, *flags, env=env))

    def generate(self, server, headers=None, **more):
        body = {"input_ids": list(range(10, 42)), "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}, **more}
        status, _, text = call(server.url + "/generate", body, headers=headers)
        self.assertEqual(status, 200, text)

    def traces(self, server, result):
        text = call(server.url + "/metrics")[2]
        found = re.search(rf'^sluice:traces_total{{result="{result}"}} (\S+)', text, re.M)
        return float(found[1]) if found else 0

    def spans_of(self, trace):
        return wait_until("the trace", lambda: [span for span, _ in self.kept.spans() if span.trace_id.hex() == trace])

    def test_a_request_and_its_way_through_its_rank(self):
        server = self.server("--dp-size", 2)
        self.generate(server, {"traceparent": f"00-{TRACE}-{SPAN}-01"}, routed_dp_rank=1)
        spans = {span.name: span for span in self.spans_of(TRACE)}
        self.assertEqual(set(spans), {"POST /generate", "read", "tokenize", "queue", "prefill", "decode"})
        root = spans["POST /generate"]
        self.assertEqual((root.parent_span_id.hex(), root.kind), (SPAN, 2))
        attributes = {name: {item.key: item.value for item in span.attributes} for name, span in spans.items()}
        self.assertEqual(attributes["POST /generate"]["http.response.status_code"].int_value, 200)
        end = root.start_time_unix_nano
        for name in ("read", "tokenize", "queue", "prefill", "decode"):
            self.assertEqual(spans[name].parent_span_id, root.span_id)
            self.assertGreaterEqual(spans[name].start_time_unix_nano, end, name)
            end = spans[name].end_time_unix_nano
        self.assertLessEqual(end, root.end_time_unix_nano)
        for name in ("queue", "prefill", "decode"):
            self.assertEqual(attributes[name]["sluice.rank"].int_value, 1)
        self.assertEqual(attributes["prefill"]["gen_ai.usage.input_tokens"].int_value, 32)
        self.assertEqual(attributes["decode"]["gen_ai.usage.output_tokens"].int_value, 4)
        wait_until("it is counted", lambda: self.traces(server, "exported") == 1)

    def test_below_the_gateways_span(self):
        server = self.server()
        gateway = self.started(Sluice(
            BINARY, "gateway", "--host", "127.0.0.1", "--port", 0, "--prometheus-host", "127.0.0.1", "--prometheus-port", 0,
            "--enable-trace", "--otlp-traces-endpoint", self.receiver.endpoint, "--worker-urls", server.url))
        wait_until("the gateway is ready", lambda: call(gateway.url + "/readiness")[0] == 200)
        self.generate(gateway, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
        roots = wait_until("both", lambda: (found := [span for span in self.spans_of(TRACE) if span.kind == 2]) and
                           len(found) == 2 and found)
        above = next(span for span in roots if span.parent_span_id.hex() == SPAN)
        below = next(span for span in roots if span is not above)
        self.assertEqual(below.parent_span_id, above.span_id)
        services = {item.value.string_value for span, resource in self.kept.spans() for item in resource.attributes
                    if item.key == "service.name"}
        self.assertEqual(services, {"sgl-router", "sglang"})

    def test_the_level_says_how_much(self):
        server = self.server(env={"SGLANG_TRACE_LEVEL": "1", "OTEL_SERVICE_NAME": "ours"})
        for level, samples in ((1, 0), (2, 1), (3, 3)):
            self.assertEqual(call(f"{server.url}/set_trace_level?level={level}", method="POST")[0], 200)
            trace = f"{level:032x}"
            self.generate(server, {"traceparent": f"00-{trace}-{SPAN}-01"},
                          sampling_params={"max_new_tokens": 4, "n": 3, "temperature": 0, "ignore_eos": True})
            spans = self.spans_of(trace)
            self.assertEqual(len([span for span in spans if span.name == "decode"]), samples)
            self.assertEqual(len(spans), 1 if level == 1 else 3 + 3 * samples)
        # The client's word counts as well, and nothing is recorded at level 0.
        self.generate(server, {"traceparent": f"00-{TRACE}-{SPAN}-00"})
        self.assertEqual(call(f"{server.url}/set_trace_level?level=0")[0], 200)
        self.generate(server)
        self.assertEqual(call(f"{server.url}/set_trace_level?level=1")[0], 200)
        self.generate(server)
        wait_until("all", lambda: self.traces(server, "exported") == 4)
        self.assertNotIn(TRACE, {span.trace_id.hex() for span, _ in self.kept.spans()})
        for wrong in ("", "?level=-1", "?level=x"):
            self.assertEqual(call(server.url + "/set_trace_level" + wrong)[0], 400)

    def test_a_receiver_that_is_slow_or_away_delays_no_request(self):
        server = self.server()
        self.kept.hold.clear()
        for _ in range(20):
            self.generate(server)
        self.assertEqual(self.kept.requests, [])
        self.kept.hold.set()
        wait_until("all", lambda: self.traces(server, "exported") == 20)
        self.receiver.stop()
        for _ in range(20):
            self.generate(server)


if __name__ == "__main__":
    unittest.main()
