"""Scores of segmentations (measures of LiTS) and of detections (FROC)."""
