"""The training log: a line for each entry, with the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback, TrainerState

from .progress import LOG_INTERVAL

EARLY_STEPS = 3
"""Number of steps after which the time left is first printed."""


class StepTimer:
    """A timer of training steps and evaluations, which estimates the time left."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start the timer; `step` is the number of steps that an earlier run has done."""
        self.begun, self.first = time.monotonic(), step
        self.evaluation_seconds = self.last_evaluation_seconds = 0.0

    def add_evaluation(self, seconds: float) -> None:
        """Record the time of an evaluation, which then does not count as training."""
        self.evaluation_seconds += seconds
        self.last_evaluation_seconds = seconds

    def seconds_per_step(self, step: int) -> float:
        """Return the mean time of a step so far, without evaluations, in seconds."""
        training = time.monotonic() - self.begun - self.evaluation_seconds
        return training / max(1, step - self.first)

    def time_left(self, step: int, steps: int, evaluations: int) -> timedelta:
        """Return the estimated time of the remaining steps and evaluations."""
        training = self.seconds_per_step(step) * (steps - step)
        return timedelta(seconds=round(training + evaluations * self.last_evaluation_seconds))


class LogPrinter(TrainerCallback):
    """A callback that prints each log entry, and the time left early and in long silences.

    Args:
        timer: timer of the run.
        evaluates: True if the run evaluates.
        say: prints a line.
    """

    def __init__(self, timer: StepTimer, evaluates: bool, say: Callable[[str], None]):
        self.timer, self.evaluates, self.say = timer, evaluates, say

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.timer.begin(state.global_step)
        self.first, self.last_line = state.global_step, time.monotonic()
        if self.first and state.is_world_process_zero:
            self.say(f"going on from step {self.first}")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        early = state.global_step == min(self.first + EARLY_STEPS, state.max_steps - 1)
        silent = time.monotonic() - self.last_line >= LOG_INTERVAL
        logs = state.global_step % args.logging_steps == 0
        if (early or silent) and not logs and state.is_world_process_zero:
            self.last_line = time.monotonic()
            seconds = self.timer.seconds_per_step(state.global_step)
            self.say(
                f"step {state.global_step}/{state.max_steps}  {seconds:.2g} s a step  "
                f"{self._time_left(args, state)} left"
            )

    def _time_left(self, args: Any, state: TrainerState) -> timedelta:
        rest, evaluations = state.max_steps - state.global_step, int(self.evaluates)
        if evaluations and args.eval_strategy == "steps":
            evaluations = math.ceil(rest / args.eval_steps)
        return self.timer.time_left(state.global_step, state.max_steps, evaluations)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            self.last_line = time.monotonic()
            self.say(f"{_losses(logs, state)}  {self._time_left(args, state)} left")
        elif "eval_perplexity" in logs:
            self.say(_evaluation(logs, state))


def _losses(logs: dict[str, float], state: TrainerState) -> str:
    """Return the line of a log entry with training losses."""
    heads = " ".join(f"{logs[name]:.3f}" for name in logs if name.startswith("loss_head_"))
    backbone = f"  backbone {logs['loss_backbone']:.3f}" if "loss_backbone" in logs else ""
    return (
        f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}{backbone}  "
        f"heads {heads}  lr {logs['learning_rate']:.1e}"
    )


def _evaluation(logs: dict[str, float], state: TrainerState) -> str:
    """Return the line of a log entry with evaluation metrics."""
    top_1 = [f"{value:.1%}" for name, value in logs.items() if name.endswith("_top_1")]
    return (
        f"step {state.global_step}, evaluation: heads right {', '.join(top_1)}; "
        f"perplexity {logs['eval_perplexity']:.3f} ({logs['eval_perplexity_change']:+.3f}); "
        f"{logs['eval_acceleration_rate']:.2f} tokens a step expected"
    )
