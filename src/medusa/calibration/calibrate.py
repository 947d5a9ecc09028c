"""The stages of a calibration: record the heads, time steps, choose a tree, try it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ..core.model import TreeModel
from ..hardware.provenance import device_name, provenance
from .choice import choose, predictions
from .latency import SIZES, Latency, measure_latency, usual_contexts
from .recording import Recording, record
from .report import Report
from .search import joint_tree
from .settings import DEFAULT_SETTINGS, CalibrationSettings, PromptIds
from .trial import measure_tree

Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""Takes a stage's title, its number of parts and what they are, in the plural; the context gives a
function that is called with the number of parts finished since the last call.
"""


def calibrate(
    model: TreeModel,
    prompts: PromptIds,
    trial_prompts: PromptIds,
    arguments: dict[str, Any],
    settings: CalibrationSettings = DEFAULT_SETTINGS,
    *,
    acceptance: str = "auto",
    work: Path | None = None,
    progress: Progress = lambda title, total, unit: nullcontext(lambda parts: None),
) -> Report:
    """Find the tree that decodes fastest on this machine, and whether compiled steps are faster.

    The model's `compiled` is set to what was found.

    Args:
        prompts: token ids of prompts; the heads are recorded along the model's own answers to them.
        trial_prompts: token ids of other prompts, on which the chosen tree is measured.
        arguments: keyword arguments of `generate` that the tree will serve: max_new_tokens,
            do_sample, temperature, ...
        acceptance: the acceptance policy that the tree will serve.
        work: folder in which an interrupted recording is resumed.
        progress: shows the progress of each stage.

    Raises:
        ValueError: there are no prompts, no answer has two tokens, the model has fewer heads than
            `settings` asks for, or it does not hold a context that `settings` names.
    """
    if not prompts or not trial_prompts:
        raise ValueError("calibration needs prompts: some to record, and others to try the tree on")
    settings.check(model)
    recording = _record(model, prompts, arguments, acceptance, settings, work, progress)
    decoding = {**arguments, "acceptance": acceptance}
    contexts = settings.contexts or _recorded_contexts(model, settings, prompts, recording.lengths)
    latency = _faster_steps(
        model,
        recording,
        settings,
        lambda: _time_steps(model, prompts, recording, decoding, settings, contexts, progress),
    )
    candidates = predictions(recording, latency, settings.max_nodes)
    chosen = choose(candidates)
    with progress("trying the tree on other prompts", len(trial_prompts), "prompts") as finished:
        measured = measure_tree(model, trial_prompts, chosen.tree, decoding, finished)
    metadata = _metadata(model, prompts, arguments, acceptance, settings, contexts)
    return Report(settings, recording, latency, candidates, chosen, measured, metadata)


def _record(
    model: TreeModel,
    prompts: PromptIds,
    arguments: dict[str, Any],
    acceptance: str,
    settings: CalibrationSettings,
    work: Path | None,
    progress: Progress,
) -> Recording:
    """Record the heads that are to be used along the model's answers.

    Raises:
        ValueError: every answer ends at its first token.
    """
    title = "recording the heads on the model's own answers"
    with progress(title, len(prompts), "prompts") as finished:
        recording = record(
            model,
            prompts,
            arguments,
            acceptance=acceptance,
            ranks=settings.ranks,
            work=work,
            finished=finished,
        ).first(settings.num_heads or model.heads.config.num_heads)
    if not len(recording.credit):
        raise ValueError(
            "the model's answers to these prompts end at their first token: nothing to calibrate on"
        )
    return recording


def _faster_steps(
    model: TreeModel,
    recording: Recording,
    settings: CalibrationSettings,
    time_steps: Callable[[], Latency],
) -> Latency:
    """Time steps compiled and not, as the settings say; leave the model as it was faster."""
    tries_both = settings.compiled is None and model.compilable
    tokens_per_second: dict[float, tuple[bool, Latency]] = {}
    for compiled in (False, True) if tries_both else (bool(settings.compiled),):
        model.compiled = compiled
        latency = time_steps()
        best = choose(predictions(recording, latency, settings.max_nodes))
        works = compiled and model.programs.failed is None
        tokens_per_second[best.speedup / latency.plain()] = works, latency
    model.compiled, latency = tokens_per_second[max(tokens_per_second)]
    return latency


def _time_steps(
    model: TreeModel,
    prompts: PromptIds,
    recording: Recording,
    decoding: dict[str, Any],
    settings: CalibrationSettings,
    contexts: Sequence[int],
    progress: Progress,
) -> Latency:
    """Time steps with the best tree of each size, after text made of the prompts."""
    sizes = [size for size in SIZES if size < settings.max_nodes] + [settings.max_nodes]
    with progress("timing steps", settings.rounds * len(contexts), "rounds") as finished:
        return measure_latency(
            model,
            [token for prompt in prompts for token in prompt],
            [joint_tree(recording, size) for size in sizes],
            decoding,
            contexts=contexts,
            batch_size=settings.batch_size,
            rounds=settings.rounds,
            finished=finished,
        )


def _recorded_contexts(
    model: TreeModel, settings: CalibrationSettings, prompts: PromptIds, answers: Sequence[int]
) -> tuple[int, ...]:
    """Return the usual contexts of the texts, cut so that the timed steps fit after them."""
    positions = model.positions.trained
    longest = (
        math.inf
        if positions is None
        else max(1, positions - settings.timed_tokens(model.heads.config.num_heads))
    )
    contexts = usual_contexts(prompts, answers)
    return tuple(sorted({int(min(longest, context)) for context in contexts}))


def _metadata(
    model: TreeModel,
    prompts: PromptIds,
    arguments: dict[str, Any],
    acceptance: str,
    settings: CalibrationSettings,
    contexts: Sequence[int],
) -> dict[str, Any]:
    """Return provenance, model, decoding arguments and prompts, to be stored beside the figures."""
    return {
        **provenance(),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "base": model.base.config.name_or_path,
        "batch_size": settings.batch_size,
        "compiled": model.compiled,
        "prepack": model.prepack,
        "contexts": list(contexts),
        "arguments": {name: value for name, value in arguments.items() if _is_plain(value)},
        "acceptance": acceptance,
        "prompts": {"count": len(prompts), "sha256": _digest(prompts)},
    }


def _is_plain(value: Any) -> bool:
    """Return True if JSON can hold the value as it is; a tokenizer or a processor it cannot."""
    return value is None or isinstance(value, (bool, int, float, str))


def _digest(prompts: PromptIds) -> str:
    text = json.dumps([list(prompt) for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
