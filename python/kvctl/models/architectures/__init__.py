"""The model families that kvctl compiles: one file each, by what it differs from a Llama."""
