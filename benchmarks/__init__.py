"""Benchmarks of this project, on one shared harness; run one with `python -m benchmarks.NAME`."""
