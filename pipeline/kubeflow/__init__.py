"""Compiling the pipeline for Kubeflow and Vertex AI, and rehearsing compiled pipelines locally."""
