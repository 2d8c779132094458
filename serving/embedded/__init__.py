"""An embedded model server with TF Serving's gRPC protocol."""
