"""EAGLE-3's head in torch, with training-time test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, silu

from .shared import Shared, cross_entropy, rms_norm, weight

_DISCOUNT = 0.8  # of the loss, for each step of the head's own features


class Eagle3(nn.Module):
    """The head as `kvctl.heads` compiles it; parameters have the names of its files.

    The output layer is the target's rows of the draft vocabulary, and is not trained: few answers
    teach it little, and most of the work of a step would be its gradient.

    Parameters
    ----------
    shared
        Of the target.
    steps
        How many steps of the head's own features are trained, the target's being the first.
    """

    def __init__(self, shared: Shared, *, steps: int = 4) -> None:
        super().__init__()
        config = shared.config
        width, inside, dim = config.hidden_size, config.intermediate_size, config.head_dim
        self.shared, self.steps = shared, steps
        parameters = {
            "fc.weight": weight(width, 3 * width),
            "midlayer.self_attn.q_proj.weight": weight(config.num_attention_heads * dim, 2 * width),
            "midlayer.self_attn.k_proj.weight": weight(config.num_key_value_heads * dim, 2 * width),
            "midlayer.self_attn.v_proj.weight": weight(config.num_key_value_heads * dim, 2 * width),
            "midlayer.self_attn.o_proj.weight": weight(
                width, config.num_attention_heads * dim, scale=0.5
            ),
            "midlayer.mlp.gate_proj.weight": weight(inside, width),
            "midlayer.mlp.up_proj.weight": weight(inside, width),
            "midlayer.mlp.down_proj.weight": weight(width, inside, scale=0.5),
            "midlayer.hidden_norm.weight": nn.Parameter(torch.ones(width)),
            "midlayer.input_layernorm.weight": nn.Parameter(torch.ones(width)),
            "midlayer.post_attention_layernorm.weight": nn.Parameter(torch.ones(width)),
            "norm.weight": nn.Parameter(shared.norm.clone()),
        }
        _begin(parameters, shared.last_layer)
        self.by_name = parameters
        self.weights = nn.ParameterList(parameters.values())

    def loss(self, batch: Any) -> tuple[Any, Any]:
        """Return the loss of a batch, and (steps, 2): drafts that were right, and all of them."""
        tokens, hidden, config = batch.tokens, batch.hidden, self.shared.config
        trained = batch.answers[:, 2:] & (self.shared.own_ids[tokens[:, 2:]] >= 0)
        trained[:, : self.steps] = False
        teacher = self.shared.probabilities(hidden[:, 1:-1, -1][trained])
        best = teacher.argmax(-1)
        total, counts, reached = 0.0, [], trained
        for step, feature in enumerate(self.features(tokens, hidden)):
            normed = rms_norm(feature[trained], self.by_name["norm.weight"], config)
            one, said = cross_entropy(normed, self.shared.output, teacher)
            total = total + _DISCOUNT**step * one
            right = torch.zeros_like(trained)
            right[trained] = said == best
            right &= reached
            counts.append(torch.stack([right.sum(), reached.sum()]))
            # A deeper draft counts where the ones before it on its path were right.
            reached = trained & _shifted(right)
        return total, torch.stack(counts)

    def features(self, tokens: Any, hidden: Any) -> Iterator[Any]:
        """Yield, for each step, what the head gives for all entries: (B, T - 2, width).

        Entry i is about what follows token i + 1. At step s it has the feature that the entry
        before it gave at step s - 1, as the s-th node of a draft has; the first s entries are of no
        draft.
        """
        config, w = self.shared.config, self.by_name
        size = tokens.shape[1] - 2
        embedded = self.shared.embedding[tokens[:, 1:-1]]
        token = rms_norm(embedded, w["midlayer.input_layernorm.weight"], config)
        feature = linear(hidden[:, :size, :3].flatten(2), w["fc.weight"])
        rope = _rope_table(size, config)
        keys: list[Any] = []
        values: list[Any] = []
        for step in range(self.steps):
            if step:
                feature = torch.nn.functional.pad(feature[:, :-1], (0, 0, 1, 0))
            feature = self._layer(feature, token, rope, keys, values)
            yield feature

    def _layer(self, x: Any, token: Any, rope: Any, keys: list[Any], values: list[Any]) -> Any:
        """Run the decoder layer; adds the step's keys and values."""
        config, w, stem = self.shared.config, self.by_name, "midlayer"
        b, n, _ = x.shape
        joined = torch.cat([token, rms_norm(x, w[f"{stem}.hidden_norm.weight"], config)], -1)
        q, k, v = (
            linear(joined, w[f"{stem}.self_attn.{part}_proj.weight"])
            .view(b, n, -1, config.head_dim)
            .transpose(1, 2)
            for part in "qkv"
        )
        groups = config.num_attention_heads // config.num_key_value_heads
        q, k = _rotated(q, rope), _rotated(k, rope)
        keys.append(k.repeat_interleave(groups, 1))
        values.append(v.repeat_interleave(groups, 1))
        attended = _attend(q, keys, values).transpose(1, 2).reshape(b, n, -1)
        x = x + linear(attended, w[f"{stem}.self_attn.o_proj.weight"])
        y = rms_norm(x, w[f"{stem}.post_attention_layernorm.weight"], config)
        inside = silu(linear(y, w[f"{stem}.mlp.gate_proj.weight"]))
        inside = inside * linear(y, w[f"{stem}.mlp.up_proj.weight"])
        return x + linear(inside, w[f"{stem}.mlp.down_proj.weight"])


def _begin(parameters: dict[str, Any], layer: dict[str, Any]) -> None:
    """Let the head begin as the target's last layer, over the latest of the three layers.

    It then says what the target said of the token that the head is given, in the target's own
    terms; what that token changes is left to learn.
    """
    if not layer:
        return
    width = len(layer["input_layernorm.weight"])
    with torch.no_grad():
        fused = parameters["fc.weight"]
        fused *= 0.1
        fused[:, 2 * width :] += torch.eye(width)
        for name, given in layer.items():
            if name == "input_layernorm.weight":
                parameters["midlayer.hidden_norm.weight"].copy_(given)
            elif name.startswith("self_attn") and "o_proj" not in name:
                mine = parameters[f"midlayer.{name}"]
                mine *= 0.3
                mine[:, width:].copy_(given)
            else:
                parameters[f"midlayer.{name}"].copy_(given)


def _attend(q: Any, keys: list[Any], values: list[Any]) -> Any:
    """Attend as a draft of this depth would.

    Entry i sees the true entries up to i - s, and of step m the entry i - s + m.
    """
    step, n, scale = len(keys) - 1, q.shape[2], q.shape[-1] ** -0.5
    scores = (q @ keys[0].transpose(-1, -2)).float() * scale
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1 - step)
    hidden[:step, 0] = False  # rows that no draft has: something finite
    scores = scores.masked_fill(hidden, -torch.inf)
    later = range(1, step + 1)
    own = [(q * _moved(keys[m], step - m)).sum(-1, keepdim=True) * scale for m in later]
    shares = torch.cat([scores, *own], -1).softmax(-1).to(q.dtype)
    attended = shares[..., :n] @ values[0].to(q.dtype)
    for m in later:
        attended = attended + shares[..., n + m - 1, None] * _moved(values[m], step - m)
    return attended


def _moved(x: Any, places: int) -> Any:
    """Return rows (B, heads, n, dim) moved down by some places."""
    if places == 0:
        return x
    return torch.nn.functional.pad(x[:, :, :-places], (0, 0, places, 0))


def _shifted(right: Any) -> Any:
    """Return whether the entry before each was right."""
    return torch.nn.functional.pad(right[:, :-1], (1, 0))


def _rope_table(n: int, config: Any) -> tuple[Any, Any]:
    frequencies, _ = config.frequencies("global")
    angles = torch.arange(n)[:, None].double() * torch.from_numpy(frequencies)
    return angles.cos().float(), angles.sin().float()


def _rotated(x: Any, rope: Any) -> Any:
    """Apply RoPE to (B, heads, n, dim)."""
    cosines, sines = rope
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cosines - b * sines, b * cosines + a * sines], -1).to(x.dtype)
