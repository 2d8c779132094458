"""Weights of other programs, imported as checkpoints of this project."""
