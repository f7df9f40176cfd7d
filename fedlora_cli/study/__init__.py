"""Studies: a grid of federations, run in one process each, and what they show."""
