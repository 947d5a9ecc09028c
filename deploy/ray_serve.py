"""Several copies of the server behind one address, with Ray Serve.

    pip install 'medusa-decoding[serve]' 'ray[serve]>=2.60'
    MEDUSA_MODEL=smollm2 serve run deploy.ray_serve:application

Each replica is a whole server: a model, an engine and the protocol of `medusa serve`, streaming
included. Environment variables set it up:

    MEDUSA_MODEL         what `medusa serve` takes as MODEL (default: demo)
    MEDUSA_NAME          the model's name in the protocol (default: MEDUSA_MODEL)
    MEDUSA_API_KEY       key that clients must send (default: none)
    MEDUSA_MIN_REPLICAS  replicas that always run (default: 1)
    MEDUSA_MAX_REPLICAS  replicas under load (default: 4)
    MEDUSA_MAX_ROWS      requests that one replica decodes at the same time (default: 32)
    MEDUSA_CPUS          CPUs, and threads, of a replica (default: 1)
    MEDUSA_GPUS          GPUs of a replica (default: 0)
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig


def setting(name: str, default: int) -> int:
    """Return a whole number from an environment variable.

    Raises:
        ValueError: the variable holds no whole number.
    """
    value = os.environ.get(name, str(default))
    if not value.isdigit():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def build_app() -> Any:
    """Return the ASGI application of a replica, in whose process the model is loaded."""
    import torch

    from medusa.cli.models import load
    from medusa.cli.options import ModelOptions
    from medusa.runtime.threads import in_passing_thread
    from medusa.serve.app import create_app
    from medusa.serve.logs import log_to_stderr
    from medusa.serve.settings import ServerSettings

    log_to_stderr()
    torch.set_num_threads(max(1, setting("MEDUSA_CPUS", 1)))
    name = os.environ.get("MEDUSA_MODEL", "demo")
    device = "cuda" if setting("MEDUSA_GPUS", 0) else None
    settings = ServerSettings(
        name=os.environ.get("MEDUSA_NAME", name),
        max_rows=setting("MEDUSA_MAX_ROWS", 32),
        api_key=os.environ.get("MEDUSA_API_KEY"),
    )
    options = ModelOptions(model=name, device=device)
    return in_passing_thread(lambda: create_app(*load(options), settings))


def scaling() -> AutoscalingConfig:
    """Return how many replicas run: one more whenever the others have half their rows taken."""
    least = setting("MEDUSA_MIN_REPLICAS", 1)
    return AutoscalingConfig(
        min_replicas=least,
        initial_replicas=least,
        max_replicas=max(least, setting("MEDUSA_MAX_REPLICAS", 4)),
        target_ongoing_requests=max(1, setting("MEDUSA_MAX_ROWS", 32) // 2),
        upscale_delay_s=10,
        downscale_delay_s=300,
    )


class MedusaServer:
    """A replica."""

    def __init__(self) -> None:
        self._app = build_app()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application; Ray calls this once."""
        return self._app

    async def check_health(self) -> None:
        """Raise an error if the engine has died, after which Ray replaces the replica."""
        worker = self._app.state.server.worker
        if worker.fault is not None:
            raise RuntimeError(worker.reason)


deployment = serve.deployment(
    name="MedusaServer",
    autoscaling_config=scaling(),
    # more than a replica decodes, so that its rows never wait for the next request
    max_ongoing_requests=2 * setting("MEDUSA_MAX_ROWS", 32),
    ray_actor_options={
        "num_cpus": setting("MEDUSA_CPUS", 1),
        "num_gpus": setting("MEDUSA_GPUS", 0),
    },
    health_check_period_s=5,
    graceful_shutdown_timeout_s=60,
)
application = deployment(serve.ingress()(MedusaServer)).bind()
