"""Checkpoint formats: heads, trees, adapters, and the base models they belong to."""
