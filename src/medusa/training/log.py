"""The log of training in lines, with the time that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerState

from .progress import EVERY

EARLY = 3
"""Steps after which the time left is told first."""


class Pace:
    """Measures how long steps and evaluations take, and says how long the rest will."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        """Training begins or goes on after `step`."""
        self.begun, self.first = time.monotonic(), step
        self.evaluating = self.last = 0.0

    def evaluated(self, seconds: float) -> None:
        self.evaluating, self.last = self.evaluating + seconds, seconds

    def step(self, step: int) -> float:
        """Return the seconds that a step takes, evaluations left out."""
        return (time.monotonic() - self.begun - self.evaluating) / max(1, step - self.first)

    def left(self, step: int, steps: int, evaluations: int) -> timedelta:
        """Return the time that the rest takes, with so many evaluations."""
        return timedelta(seconds=round(self.step(step) * (steps - step) + evaluations * self.last))


class Lines(TrainerCallback):
    """Says a line for every entry of the log, and how long it will take after the first steps and
    from time to time.
    """

    def __init__(self, pace: Pace, evaluates: bool, say: Callable[[str], None]):
        self.pace, self.evaluates, self.say = pace, evaluates, say

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.pace.begin(state.global_step)
        self.first, self.said = state.global_step, time.monotonic()
        if self.first and state.is_world_process_zero:
            self.say(f"going on from step {self.first}")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        early = state.global_step == min(self.first + EARLY, state.max_steps - 1)
        silent = time.monotonic() - self.said >= EVERY
        logs = state.global_step % args.logging_steps == 0
        if (early or silent) and not logs and state.is_world_process_zero:
            self.said = time.monotonic()
            pace = self.pace.step(state.global_step)
            self.say(
                f"step {state.global_step}/{state.max_steps}  {pace:.2g} s a step  "
                f"{self._left(args, state)} left"
            )

    def _left(self, args: Any, state: TrainerState) -> timedelta:
        rest, evaluations = state.max_steps - state.global_step, int(self.evaluates)
        if evaluations and args.eval_strategy == "steps":
            evaluations = math.ceil(rest / args.eval_steps)
        return self.pace.left(state.global_step, state.max_steps, evaluations)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        heads = [logs[name] for name in logs if name.startswith("loss_head_")]
        shown = " ".join(f"{value:.3f}" for value in heads)
        if "loss" in logs and state.is_world_process_zero:
            backbone = f"  backbone {logs['loss_backbone']:.3f}" if "loss_backbone" in logs else ""
            self.said = time.monotonic()
            self.say(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}{backbone}  "
                f"heads {shown}"
                f"  lr {logs['learning_rate']:.1e}  {self._left(args, state)} left"
            )
        elif "eval_perplexity" in logs and state.is_world_process_zero:
            top = [f"{value:.1%}" for name, value in logs.items() if name.endswith("_top_1")]
            self.say(
                f"step {state.global_step}, evaluation: heads right {', '.join(top)}; "
                f"perplexity {logs['eval_perplexity']:.3f} "
                f"({logs['eval_perplexity_change']:+.3f}); "
                f"{logs['eval_acceleration_rate']:.2f} tokens a step expected"
            )
