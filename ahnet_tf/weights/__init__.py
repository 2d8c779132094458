"""Weights by name: checkpoints, transfer from 2D to 3D, import of other programs' files."""
