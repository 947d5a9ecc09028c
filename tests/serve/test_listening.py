"""Tests of how the server keeps its connections."""

import httpx2
import openai
from running import demo_app

from medusa.serve.listening import Listener


def test_clients_close_idle_connections_before_the_server_does(demo_model):
    """Otherwise a request may be on its way to a connection that is being closed."""
    server = Listener(demo_app(*demo_model), "127.0.0.1", 0).config.timeout_keep_alive
    limits = (httpx2.Limits(), openai.DEFAULT_CONNECTION_LIMITS)
    assert all(each.keepalive_expiry < server / 2 for each in limits)
