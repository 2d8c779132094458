"""Synthetic data sets with exact ground truth: abdominal CT and breast tomosynthesis."""
