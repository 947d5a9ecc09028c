"""Descriptions of Medusa's steps, for the page that draws them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from .answers import Piece


def step_fields(piece: Piece, step: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the description of a step: its tokens, and the candidates that it verified.

    Args:
        step: number of the step; 0 is the prefill.
    """
    timing = piece.event.timing if piece.event is not None else None
    found = {
        "step": step,
        "nodes": timing.nodes if timing else 0,
        "milliseconds": round(1000 * timing.seconds, 2) if timing else 0.0,
        "tokens": [{"text": each.text, "accepted": each.accepted} for each in piece.tokens],
    }
    return {**found, "candidates": _candidates(piece, tokenizer)}


def _candidates(piece: Piece, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the nodes of the tree that the step verified, in order; none for the prefill."""
    verified = piece.event.candidates if piece.event is not None else None
    if verified is None:
        return []
    tree, accepted = verified.tree, set(verified.path)
    return [
        {
            "parent": int(tree.parent[node]),
            "depth": int(tree.depth[node]),
            "text": tokenizer.decode([token]),
            "accepted": node in accepted,
        }
        for node, token in enumerate(verified.tokens)
    ]
