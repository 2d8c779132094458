"""Volumes as arrays with a geometry: NIfTI files, resampling, lesion heat maps, quality checks."""
