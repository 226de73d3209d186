"""kvctl's cache under PyTorch models: attention, steps, and tensors that share memory.

Needs PyTorch, which kvctl does not install by itself: ``pip install 'kvctl[torch]'``. Tested with
2.13.0.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "kvctl.torch needs PyTorch, which is not installed: pip install 'kvctl[torch]'",
        name="torch",
    ) from error

from .attend import attention
from .module import Attention
from .runner import ModelRunner
from .step import current_cache, forward
from .tensors import from_cache, to_cache

__all__ = [
    "Attention",
    "ModelRunner",
    "attention",
    "current_cache",
    "forward",
    "from_cache",
    "to_cache",
]
