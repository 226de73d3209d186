"""Model graphs: what a compiled model computes."""
