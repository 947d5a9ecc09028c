"""`ServerSettings`: the limits of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits of a server, and who may use it.

    Attributes:
        name: the model's name in the protocol.
        max_rows: requests that decode at the same time; others wait.
        max_waiting: requests that wait at most; further ones are refused with status 429.
        max_prompt: tokens that a prompt may have; None leaves it to the model's positions.
        max_new_tokens: tokens of an answer whose request sets no limit.
        max_seconds: seconds after a request's arrival, waiting included, from which its answer ends
            at the next token, with finish reason "length".
        cache_bytes: memory for keys and values of the requests under way and of earlier texts; None
            for no limit.
        prefix_share: share of that memory which earlier texts may take while requests leave it; a
            prompt that begins like one of them runs only what is new.
        max_body: bytes that the body of a request may have.
        api_key: key that clients must send; None lets everybody in.
        origins: web origins whose pages may call the server (CORS); none by default.
        keep_alive: seconds without data after which a stream gets a comment.
    """

    name: str
    max_rows: int = 32
    max_waiting: int = 1024
    max_prompt: int | None = None
    max_new_tokens: int = 1024
    max_seconds: float = 600.0
    cache_bytes: int | None = 2 * 2**30
    prefix_share: float = 0.5
    max_body: int = 8 * 2**20
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    keep_alive: float = 10.0
