"""From cases to TFRecords of patches: targets, patches, splits, Beam runners, output folders."""

from preprocessing.quiet_start import quiet_worker

# Beam's worker processes import this package before TensorFlow.
quiet_worker()
