"""gRPC: decode a request, call the coordinator, encode the answer."""
