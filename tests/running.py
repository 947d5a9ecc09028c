"""The server under test, over real HTTP on a free port."""

import socket
import threading
import warnings
from contextlib import contextmanager

import uvicorn

from medusa import demo
from medusa.serve.app import create_app
from medusa.serve.settings import ServerSettings

PATIENCE = 30.0
"""Seconds that a server may take to end."""


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
        thread.join(PATIENCE)
        left = _left(server)
        server.force_exit = True  # a request that never ends must not hang the tests
        thread.join()
        listener.close()
        if left:
            warnings.warn(f"the server waited {PATIENCE:g} s for {left}", stacklevel=1)


def _left(server):
    """Return what a server that should have ended waits for."""
    connections = [vars(each).get("scope") for each in server.server_state.connections]
    return [*connections, *(each.get_stack() for each in server.server_state.tasks)]


def prompts(count):
    """Return requests of the embedded model's tasks."""
    return [task.prompt for task in demo.calibration_tasks(count)]
