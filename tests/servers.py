"""A server of an OpenAI-compatible interface, whose replies a test chooses."""

import json
import socketserver
import threading
from contextlib import contextmanager


def body(content):
    """Return a whole HTTP reply with this content, as JSON unless it is bytes."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)


def reply(content="fine", finish="stop", **message):
    return {
        "id": "x",
        "choices": [
            {"index": 0, "message": {"content": content, **message}, "finish_reason": finish}
        ],
        "usage": {"completion_tokens": 3},
    }


def stream(*events):
    """Return a reply that sends events (JSON, or text such as "[DONE]"), as pieces to send."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event)
        yield f"data: {text}\n\n".encode()


def said(content, **delta):
    """Return an event of a stream with a piece of an answer."""
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}}]}


def used(tokens):
    """Return the event that counts the tokens of an answer."""
    return {"choices": [], "usage": {"completion_tokens": tokens}}


def status(code, text="no", header=""):
    return f"HTTP/1.1 {code} Status\r\n{header}Content-Length: {len(text)}\r\n\r\n{text}".encode()


@contextmanager
def serving(answer):
    """Run a server that sends the bytes which `answer(request, number)` returns or yields.

    The request is the JSON that was sent, or None where nothing was sent with it.
    """
    asked, lock = [], threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            head = b""
            while (line := self.rfile.readline()) != b"\r\n":
                if not line:
                    return  # a client that connected and asked for nothing
                head += line
            _, _, length = head.lower().partition(b"content-length:")
            request = json.loads(self.rfile.read(int(length.split()[0]))) if length else None
            with lock:
                asked.append((request, head.decode()))
                number = len(asked)
            sent = answer(request, number)
            try:
                for piece in [sent] if isinstance(sent, bytes) else sent:
                    self.wfile.write(piece)
            except OSError:
                pass  # the client has closed the connection

    class Running(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Running(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}/v1", asked
        finally:
            running.shutdown()
