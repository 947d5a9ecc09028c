"""Scripts that measure this project; run them as `python -m benchmarks.NAME`."""
