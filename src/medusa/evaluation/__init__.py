"""Evaluation: decoding methods run interleaved on the same prompts and compared as ratios."""

from .measure import Comparison, Prompt, Totals, compare
from .methods import METHODS, Method, Run

__all__ = ["METHODS", "Comparison", "Method", "Prompt", "Run", "Totals", "compare"]
