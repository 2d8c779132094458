"""From TFRecords to training batches: validation of records, input pipelines, augmentation."""
