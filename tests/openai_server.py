"""A small server of the OpenAI API, which stands in for an engine in tests."""

import contextlib
import http.server
import json
import threading


class Server:
    """A server of the OpenAI API, whose answers say what it was asked.

    Attributes:
      requests: what was asked: (path, body, headers).
      most: the number of answers that it gives at most to one request.
      fail: called with a body; what it returns, if not None, is (status, text).
    """

    def __init__(self, url):
        self.url, self.requests, self.most = url, [], 100
        self.fail = lambda body: None

    def answer(self, path, body):
        if path.endswith("/models"):
            return {"data": [{"id": "small"}, {"id": "ann"}]}
        # No two answers are equal.
        number = len(self.requests)
        texts = [f"{number}.{i}" for i in range(min(body["n"], self.most))]
        if path.endswith("/chat/completions"):
            asked = body["messages"][-1]["content"]
            return {
                "choices": [{"message": {"content": f"{asked}: {x}"}} for x in texts]
            }
        return {"choices": [{"text": f"{body['prompt']}{x}"} for x in texts]}


@contextlib.contextmanager
def listening(answer):
    """A server with its address, which calls `answer(handler, path, body)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            answer(self, self.path, json.loads(self.rfile.read(size) or "null"))

        def reply(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def serving():
    def answer(handler, path, body):
        found.requests.append((path, body, dict(handler.headers)))
        status, text = found.fail(body) or (200, json.dumps(found.answer(path, body)))
        handler.reply(status, text)

    with listening(answer) as url:
        found = Server(url)
        yield found
