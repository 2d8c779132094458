"""Volumes on disk -> checked volumes -> TFRecords of anisotropic patches, by Beam."""
