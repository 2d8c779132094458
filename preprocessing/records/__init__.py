"""From cases to TFRecords of patches: targets, patches, splits, Beam runners, output folders."""
