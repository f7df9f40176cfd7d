"""gRPC plumbing that both ends share: channels, limits, errors as statuses."""
