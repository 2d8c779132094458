"""Scores of segmentations and detections: pure functions on arrays."""
