"""The answer, in words, to the question why Medusa is not faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.schedule import Calibration
from .bench_report import ALL, categories

GOOD = 1.5
"""Speedup over plain decoding that needs no diagnosis."""
FEW_TOKENS = 1.8
"""Fewer tokens a step than this limit the speedup."""
HIGH_OVERHEAD = 1.4
"""A higher overhead than this limits the speedup."""
BESIDES = 0.15
"""A larger share of a step outside the model's forward is worth saying."""
UNACCEPTED = {
    "medusa": "no token of the heads was accepted, although {drafting} of {steps} steps verified a "
    "tree: check that the heads were trained for this model.",
    "draft": "no token of the draft model was accepted in {steps} steps: check that it has this "
    "model's tokenizer, and that it was trained on texts like these.",
    "prompt_lookup": "no token that was looked up in a prompt was accepted in {steps} steps: these "
    "answers may repeat nothing of their prompts.",
}
"""Explanations of methods whose candidates were never accepted, by the beginning of their name."""


def unaccepted(found: Mapping[str, Mapping[str, Mapping[str, Any]]], method: str) -> str | None:
    """Return a sentence about a method that drafts, if no drafted token was accepted in any run.

    Without accepted tokens the answers are right and drafting only costs time, so that such an
    error would not be noticed. That a tree was never tried is no error.
    """
    own = found[ALL][method]
    said = [text for name, text in UNACCEPTED.items() if method.startswith(name)]
    steps = sum(own["accepted"].values())
    if not said or not steps or any(int(count) > 1 for count in own["accepted"]):
        return None
    if own["drafting_steps"] == 0:
        return (
            f"{method} decoded plainly in all {steps} steps: no tree was tried, because none "
            "seemed faster here."
        )
    return f"{method}: {said[0].format(steps=steps, drafting=own['drafting_steps'])}"


def diagnosis(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    method: str,
    baseline: str,
    calibration: Calibration,
    device: str,
) -> list[str]:
    """Return sentences about what limits a method's speedup over plain decoding.

    Args:
        found: figures by group and method.
        calibration: of the heads; another device's says little about this one.
        device: the name of this device.
    """
    own, plain = found[ALL][method], found[ALL][baseline]
    speedup = own["speedup_over"][baseline]["median"]
    said = [f"{method} is {speedup:.2f} times as fast as {baseline}."]
    if overhead := own["overhead"]:
        said[0] += (
            f" It writes {own['tokens_per_step']:.2f} tokens a step, and a step takes "
            f"{overhead:.2f} plain steps."
        )
        if speedup < GOOD and overhead > HIGH_OVERHEAD:
            said.append(_why_overhead(own, plain))
    if speedup < GOOD and own["step_ms"] and own["tokens_per_step"] < FEW_TOKENS:
        said += _why_few_tokens(found, method)
    made = calibration.made.get("device")
    if not made:
        said.append("The heads are not calibrated here: `medusa calibrate` finds the best tree.")
    elif made != device:
        said.append(f"The tree was calibrated on another device ({made}), not on {device}.")
    if wrong := own["greedy_turns"] - own["identical"]:
        said.append(
            f"{wrong} of {own['greedy_turns']} greedy answers differ from those of {baseline}, "
            "which only ties of the two best tokens may cause."
        )
    if own["measured_again"]:
        said.append(
            f"{own['measured_again']} runs stalled and were measured again: something else used "
            "this machine."
        )
    return said


def _why_overhead(own: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Return which phase takes the time that a step takes longer than plain decoding's."""
    longer = {
        name: milliseconds - plain["phases_ms"].get(name, 0.0)
        for name, milliseconds in own["phases_ms"].items()
    }
    phase = max(longer, key=lambda name: longer[name])
    remedy = {
        "verify": "the tree has more nodes than this device verifies for little",
        "heads": "the heads are large for this model",
    }.get(phase, "this is Python code of the library")
    return f"Overhead: {longer[phase]:.1f} ms of a step are in the phase {phase}; {remedy}."


def _why_few_tokens(found: Mapping[str, Mapping[str, Mapping[str, Any]]], method: str) -> list[str]:
    """Return where few tokens are accepted: at which depth, and in which category."""
    shares = found[ALL][method]["reached"]
    said = []
    if shares:
        said.append(
            f"Acceptance: the first head's token is accepted in {shares[0]:.0%} of the steps"
            + (f", the second's in {shares[1]:.0%}." if len(shares) > 1 else ".")
        )
    rates = {
        name: rate
        for name in categories(found)
        if (rate := found[name][method]["tokens_per_step"]) is not None
    }
    if len(rates) > 1:
        worst = min(rates, key=lambda name: rates[name])
        said.append(f"The category with the fewest tokens a step is {worst} ({rates[worst]:.2f}).")
    return said
