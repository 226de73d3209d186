"""Whether a model is in evaluation mode: in training mode dropout makes its logits random."""

from __future__ import annotations

import torch


def put_into_evaluation(model: object) -> None:
    """Take a module out of training mode; a plain function has none."""
    if isinstance(model, torch.nn.Module):
        model.eval()


def check_evaluation(model: object) -> None:
    """Raise RuntimeError if a module has been put back into training mode."""
    if isinstance(model, torch.nn.Module) and model.training:
        raise RuntimeError(
            f"{type(model).__name__} has been put into training mode, where dropout changes its "
            "logits: call the model's eval() first"
        )
