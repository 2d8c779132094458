"""DICOM files -> volumes and label maps, and label maps -> DICOM SEG."""
