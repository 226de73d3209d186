"""Any causal language model of Hugging Face transformers on kvctl's cache.

Needs PyTorch and transformers, which kvctl does not install by itself:
``pip install 'kvctl[hf]'``. Tested with PyTorch 2.13.0 and transformers 5.24.0.
"""

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers"):
        raise
    raise ModuleNotFoundError(
        f"kvctl.hf needs {error.name}, which is not installed: pip install 'kvctl[hf]'",
        name=error.name,
    ) from error

from .runner import ModelRunner

__all__ = ["ModelRunner"]
