"""Evaluation: decoding methods answer the same questions in turns, and are compared as ratios."""

from .bench import Bench, BenchSettings, run_bench
from .methods import METHODS, Method, Run

__all__ = ["METHODS", "Bench", "BenchSettings", "Method", "Run", "run_bench"]
