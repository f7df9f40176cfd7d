"""The worker's side of the wire."""
