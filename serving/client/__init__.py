"""Clients of TF Serving's gRPC protocol, blocking and asyncio."""

from serving.client.sync import AHNetClient, open_predictor

__all__ = ["AHNetClient", "open_predictor"]
