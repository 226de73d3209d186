"""From a graph and a checkpoint to a compiled model directory."""
