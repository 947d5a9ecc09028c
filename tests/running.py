"""The server under test, over real HTTP on a free port."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from medusa import demo
from medusa.serve.app import create_app
from medusa.serve.settings import ServerSettings


def demo_app(model, tokenizer, **settings):
    return create_app(model, tokenizer, ServerSettings(**{"name": "demo", **settings}))


@contextmanager
def running(app):
    """Run an application; give its address, and the server."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def prompts(count):
    """Return requests of the embedded model's tasks."""
    return [task.prompt for task in demo.calibration_tasks(count)]
