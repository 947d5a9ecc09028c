"""Heads for SmolLM2-135M-Instruct: fetch the model, make the data, train and calibrate."""
