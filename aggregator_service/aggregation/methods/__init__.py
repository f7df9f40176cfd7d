"""The aggregation methods, one idea per file; the registry name is the file's."""
