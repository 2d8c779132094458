"""Weights that people have, turned into this project's checkpoints."""
