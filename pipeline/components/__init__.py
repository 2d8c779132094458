"""The TFX components of the pipeline and the modules that they run."""
