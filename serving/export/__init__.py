"""Export of trained networks for TF Serving, and to ONNX."""
