"""A module that attends over a cache where a model calls scaled_dot_product_attention."""

from __future__ import annotations

import torch

from .arguments import autocast
from .attend import attention
from .compiled import ORDER, attention_op
from .step import current_cache
from .tensors import refuse_autograd


class Attention(torch.nn.Module):
    """Attends over the cache of the surrounding :func:`forward`, in one layer of a model.

    It takes the arguments of ``torch.nn.functional.scaled_dot_product_attention``. Give it the new
    tokens' q, k and v after the model's RoPE, k and v before they are repeated for GQA. It has no
    parameters and does not know its cache, so a model with it serves several caches in several
    threads, also compiled by ``torch.compile``.

    Parameters
    ----------
    layer : int
        The layer of the cache.
    scale : float, optional
        Scores are multiplied by it; ``head_dim ** -0.5`` by default.
    soft_cap : float
        If positive, scores become ``soft_cap * tanh(scores / soft_cap)``.
    alibi_slopes, sinks : tensor, (num_qo_heads,) float32, optional
        As of :meth:`kvctl.PagedKVCache.attention`. They move with the module.

    Examples
    --------
    >>> model.layers[3].attend = kvctl.torch.Attention(3)
    >>> with torch.inference_mode(), kvctl.torch.forward(cache, [0], [5]) as positions:
    ...     logits = model(tokens, positions)
    """

    def __init__(
        self,
        layer: int,
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.soft_cap = soft_cap
        self.register_buffer("alibi_slopes", alibi_slopes, persistent=False)
        self.register_buffer("sinks", sinks, persistent=False)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"layer={self.layer}, scale={self.scale}, soft_cap={self.soft_cap}"

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: None = None,
        dropout_p: float = 0.0,
        is_causal: bool = True,
        scale: float | None = None,
        enable_gqa: bool = True,
    ) -> torch.Tensor:
        """Append K and V, and attend under the step's mask.

        Parameters
        ----------
        query, key, value : tensor
            As q, k and v of :func:`attention`.
        attn_mask : None
            The mask is the step's: ``mask=`` of :func:`forward`.
        dropout_p : float
            0.
        is_causal, enable_gqa : bool
            Ignored: without a mask the step is causal, and the cache knows its KV heads.
        scale : float, optional
            Instead of the module's.

        Returns
        -------
        tensor, of query's shape
            As of :func:`attention`.

        Raises
        ------
        RuntimeError
            If the thread is in no :func:`forward`.
        ValueError
            If there is a mask or dropout, or as :func:`attention`.
        """
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: the cache attends under the step's mask, which "
                "kvctl.torch.forward(cache, seq_ids, lengths, mask=...) takes as a kvctl.Mask"
            )
        if dropout_p != 0.0:
            raise ValueError(f"dropout_p must be 0, got {dropout_p}: the cache is for inference")
        scale = self.scale if scale is None else scale
        if torch.compiler.is_compiling():
            query, key, value = autocast(query, key, value)
            refuse_autograd(q=query, k=key, v=value)
            return attention_op(
                ORDER,
                self.layer,
                query,
                key,
                value,
                scale,
                self.soft_cap,
                self.alibi_slopes,
                self.sinks,
            )
        return attention(
            current_cache(),
            self.layer,
            query,
            key,
            value,
            scale=scale,
            soft_cap=self.soft_cap,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
        )
