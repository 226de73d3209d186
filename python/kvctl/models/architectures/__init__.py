"""Model graphs: what each architecture computes."""
