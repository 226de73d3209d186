"""What heads share with their target while they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...models.checkpoints.config import DecoderConfig
from ...models.checkpoints.weights import Checkpoint

_BLOCK = 256  # rows whose logits are computed at once: they stay in the processor's cache


@dataclass(frozen=True)
class Shared:
    """The target's table of embeddings, its last norm, and some rows of its output layer.

    Attributes
    ----------
    config
        The target's.
    embedding
        (V, width).
    norm, output
        (width,), and (k, width) of the draft vocabulary, as bfloat16.
    token_ids
        (k,) the target's tokens of the draft vocabulary.
    own_ids
        (V,) the draft vocabulary's of each of the target's; -1 where it has none.
    last_layer
        Weights of the target's last layer by their names in a layer, to begin with.
    """

    config: DecoderConfig
    embedding: Any
    norm: Any
    output: Any
    token_ids: Any
    own_ids: Any
    last_layer: dict[str, Any]

    @classmethod
    def of(cls, target: Checkpoint, token_ids: Any) -> Shared:
        """Read them from the target's files.

        Raises
        ------
        ValueError
            If the target has parts that training does not know: another norm than RMSNorm, scaled
            embeddings or logits, or a rotation that is not plain RoPE.
        """
        config = target.config
        if (
            config.norm != "rms"
            or config.embedding_scale != 1.0
            or config.logit_scale != 1.0
            or config.logit_soft_cap is not None
            or not config.cache_rotates
        ):
            raise ValueError(
                f"heads are trained for targets with RMSNorm, plain RoPE and unscaled embeddings "
                f"and logits, and this {config.model_type} is none"
            )
        table = target.tensor("model.embed_tokens.weight")
        tied = config.tie_word_embeddings
        output = (table if tied else target.tensor("lm_head.weight"))[token_ids]
        own = np.full(config.vocab_size, -1, np.int64)
        own[token_ids] = np.arange(len(token_ids))
        return cls(
            config,
            torch.from_numpy(np.array(table)),
            torch.from_numpy(np.array(target.tensor("model.norm.weight"))),
            torch.from_numpy(np.array(output)).to(torch.bfloat16),
            torch.from_numpy(np.asarray(token_ids, np.int64)),
            torch.from_numpy(own),
            _last_layer(target),
        )

    def probabilities(self, last: Any) -> Any:
        """Return the target's distribution over the draft vocabulary.

        ``(n, width)``, the outputs of its last layer -> ``(n, k)`` float32.
        """
        with torch.no_grad():
            normed = rms_norm(last, self.norm, self.config).to(self.output.dtype)
            return nn.functional.linear(normed, self.output).float().softmax(-1)


def _last_layer(target: Checkpoint) -> dict[str, Any]:
    """Return what a head's layer can begin with; nothing of a layer that is not a Llama's."""
    config = target.config
    if (
        config.norm_placement != "before"
        or not config.gated_mlp
        or config.activation != "silu"
        or config.parallel_residual
    ):
        return {}
    stem = f"model.layers.{config.num_hidden_layers - 1}."
    names = [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    names += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    names += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    return {name: torch.from_numpy(np.array(target.tensor(stem + name))) for name in names}


def rms_norm(x: Any, weight: Any, config: DecoderConfig) -> Any:
    """Return the RMSNorm of the last axis."""
    x = x.float()
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps)
    return x * scale * weight


class _CrossEntropy(torch.autograd.Function):
    """The cross-entropy to a given distribution under a frozen output layer.

    Logits of all rows at once would be the largest tensors of a training step by far. Since the
    layer is not trained, the gradient of a block of rows is known with its loss: both are computed
    here, and no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, rows: Any, output: Any, teacher: Any) -> tuple[Any, Any]:
        """``(n, width)``, ``(k, width)`` and ``(n, k)`` -> the sum of losses, and ``(n,)``."""
        total, best, gradient = 0.0, [], torch.empty_like(rows)
        for first in range(0, len(rows), _BLOCK):
            here = slice(first, first + _BLOCK)
            logits = nn.functional.linear(rows[here].to(output.dtype), output).float()
            shares = teacher[here]
            most, found = logits.max(-1)
            best.append(found)
            expected = torch.bmm(shares[:, None, :], logits[:, :, None])[:, 0, 0]
            said = logits.softmax(-1)
            whole = most - said.gather(-1, found[:, None])[:, 0].log()  # the logits' logsumexp
            total = total + (whole - expected).sum()
            gradient[here] = said.sub_(shares).to(output.dtype) @ output
        ctx.save_for_backward(gradient)
        tokens = torch.cat(best) if best else torch.zeros(0, dtype=torch.long)
        ctx.mark_non_differentiable(tokens)
        return total if len(rows) else rows.sum(), tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None


def cross_entropy(rows: Any, output: Any, teacher: Any) -> tuple[Any, Any]:
    """Return the mean cross-entropy of rows to a teacher, and their most likely tokens.

    Parameters
    ----------
    rows
        ``(n, width)``, what the output layer reads.
    output
        ``(k, width)``, the layer; it is not trained.
    teacher
        ``(n, k)`` float32, the teacher's probabilities.

    Returns
    -------
    tuple
        The mean over rows, 0 of no rows, and ``(n,)``.
    """
    with torch.autocast("cpu", enabled=False):
        total, best = _CrossEntropy.apply(rows, output, teacher)
    return total / max(1, len(rows)), best


def weight(*shape: int, scale: float = 1.0) -> Any:
    """Return a matrix to train, of normal numbers."""
    return nn.Parameter(torch.randn(*shape) * (scale * shape[-1] ** -0.5))
