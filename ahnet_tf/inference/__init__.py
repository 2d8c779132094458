"""From volumes to label maps and lesions: sliding windows, predictors, post-processing."""
