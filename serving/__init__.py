"""Export for TF Serving, a gRPC predict client, an embedded server of the same protocol."""
