"""Facts about devices: where a figure was measured, and how time is measured."""
