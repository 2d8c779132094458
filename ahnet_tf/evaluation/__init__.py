"""Scores of segmentations and detections: the measures of LiTS, and FROC."""
