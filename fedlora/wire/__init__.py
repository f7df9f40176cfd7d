"""Where messages and domain types meet, and how payloads are framed."""
