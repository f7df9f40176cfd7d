"""Generated protocol buffers; the sources are in `proto/` at the repository's root."""
