"""The TFX pipeline: validation, training, evaluation, blessing, push."""
