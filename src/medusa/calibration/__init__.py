"""Calibration: measure heads and step times on this machine and choose the fastest tree."""
