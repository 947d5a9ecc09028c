"""`medusa serve`: answer requests over HTTP, in OpenAI's and Anthropic's protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import ModelOptions
from .parameters import option
from .streams import note

if TYPE_CHECKING:
    from ..serve.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options that say where the server listens, and its limits."""

    host: str = option("Address to listen at; 0.0.0.0 is all of this machine", default="127.0.0.1")
    port: int = option("Port to listen at", default=8000, min=0, max=65535)
    name: str | None = option(
        "Name of the model in the protocol; by default MODEL", default=None, metavar="NAME"
    )
    api_key: str | None = option(
        "Key that clients must send; by default none", default=None, metavar="KEY"
    )
    max_rows: int = option(
        "Number of requests that decode at the same time; others wait", default=32, min=1, max=4096
    )
    max_waiting: int = option(
        "Number of requests that may wait; further ones get status 429",
        default=1024,
        min=0,
        max=1_000_000,
    )
    cache_gib: float = option(
        "Memory in GiB for keys and values of requests and of earlier texts; a request waits until "
        "there is room for its longest text",
        default=2.0,
        min=0.01,
    )
    max_prompt: int | None = option(
        "Maximum number of tokens in a prompt; by default what the model can hold",
        default=None,
        min=1,
    )
    max_new_tokens: int = option(
        "Maximum number of new tokens of an answer whose request sets no limit",
        default=1024,
        min=1,
    )
    max_seconds: float = option(
        "Maximum number of seconds from a request's arrival to the end of its answer",
        default=600.0,
        min=0.0,
    )
    origin: list[str] | None = option(
        "Web origin whose pages may call the server, such as https://example.org; may be repeated",
        default=None,
        metavar="ORIGIN",
    )

    def settings(self, model: str) -> ServerSettings:
        """Return the settings of the library's server."""
        from ..serve.settings import ServerSettings

        return ServerSettings(
            name=self.name or model,
            max_rows=self.max_rows,
            max_waiting=self.max_waiting,
            cache_bytes=int(self.cache_gib * 2**30),
            max_prompt=self.max_prompt,
            max_new_tokens=self.max_new_tokens,
            max_seconds=self.max_seconds,
            api_key=self.api_key,
            origins=tuple(self.origin or ()),
        )


def serve(options: ServeOptions, model: ModelOptions) -> None:
    """Answer requests over HTTP, in OpenAI's and Anthropic's protocols, until Ctrl-C."""
    try:
        from ..serve.app import create_app
        from ..serve.listening import Listener
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install 'medusa-decoding[serve]'"
        ) from error
    from ..runtime.threads import in_passing_thread
    from ..serve.logs import log_to_stderr
    from .models import load

    log_to_stderr()
    app = in_passing_thread(lambda: create_app(*load(model), options.settings(model.model)))
    note(
        f"http://{options.host}:{options.port} serves {options.name or model.model}; Ctrl-C ends it"
    )
    Listener(app, options.host, options.port).run()
