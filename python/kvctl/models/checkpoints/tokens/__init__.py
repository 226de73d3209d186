"""The tokenizers of checkpoints: rebuilt from GGUF, completed, and compared with a model."""
