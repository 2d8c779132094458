"""Export for TF Serving, a gRPC client, and an embedded server with the same protocol."""
