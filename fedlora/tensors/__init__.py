"""Named tensors as bytes: manifests, the safetensors format, and what is refused of it."""
