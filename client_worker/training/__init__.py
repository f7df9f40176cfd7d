"""Local training and scoring of an adapter."""
