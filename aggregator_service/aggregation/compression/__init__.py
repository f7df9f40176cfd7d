"""How a combination becomes an adapter of the run's rank: one rule per file."""
