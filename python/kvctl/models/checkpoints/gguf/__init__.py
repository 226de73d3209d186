"""Checkpoints in GGUF files: the container, its blocks, names and metadata."""
