"""A worker's examples: read, checked, split, turned into tokens, cut into batches."""
