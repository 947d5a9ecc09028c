"""Trainer of the embedded model, and the generators of the texts it trains on."""
