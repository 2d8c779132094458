"""Training data: record files, input pipelines, augmentation."""
