"""A server that answers every request of `sluice bench` with the same three words and keeps what it was sent."""
import collections
import http.server
import itertools
import json
import threading

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")
ANSWER = "one two three"
PROMPT_TOKENS, ANSWER_TOKENS, CACHED_TOKENS = 7, 3, 2  # as its answers say

Request = collections.namedtuple("Request", "path headers body connection")


def answer(path, stream):
    if path == "/generate":
        return {"text": ANSWER, "meta_info": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS,
                                              "cached_tokens": CACHED_TOKENS}}
    message = {"delta" if stream else "message": {"role": "assistant", "content": ANSWER}}
    return {"choices": [message if "chat" in path else {"text": ANSWER}],
            "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": ANSWER_TOKENS,
                      "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS}}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.number = next(self.server.numbers)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.reply(json.dumps({"data": [{"id": "first-model"}]}))

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = json.loads(text) if text else None
        self.server.received.append(Request(self.path, self.headers, body, self.number))
        if self.path not in PATHS:
            self.reply("{}")
            return
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        self.server.hold()
        with self.server.lock:
            self.server.under_way -= 1
        said = json.dumps(answer(self.path, body["stream"]))
        self.reply(f"data: {said}\n\ndata: [DONE]\n\n" if body["stream"] else said)

    def reply(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class BenchServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, host="127.0.0.1"):
        super().__init__((host, 0), Handler)
        self.lock = threading.Lock()
        self.numbers = itertools.count()  # of the connections
        self.received = []
        self.under_way = self.most_under_way = 0
        self.hold = lambda: None  # called before each answer to a prompt
        self.port = self.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def prompts(self):
        """The requests with a prompt, oldest first."""
        return [request for request in self.received if request.path in PATHS]

    def handle_error(self, *_):
        """A client that has left."""

    def stop(self):
        self.shutdown()
        self.socket.close()
