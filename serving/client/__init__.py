"""Client of TF Serving's gRPC protocol."""

from serving.client.sync import AHNetClient, open_predictor

__all__ = ["AHNetClient", "open_predictor"]
