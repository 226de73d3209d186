"""A Llama in NumPy, as plain as it gets (no cache, no fusing, float64): the oracle of models."""

from __future__ import annotations

import numpy as np


class ReferenceLlama:
    """Runs a kvctl.models.Checkpoint from its own (unfused) weights."""

    def __init__(self, checkpoint):
        self.config = checkpoint.config
        self._checkpoint = checkpoint

    def _weight(self, name):
        return self._checkpoint.tensor(name + ".weight").astype(np.float64)

    def _norm(self, x, name):
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.config.rms_norm_eps) * self._weight(name)

    def _rotate(self, x, positions):
        half = self.config.head_dim // 2
        scaled = positions[:, None] * getattr(self.config, "rope_scale", 1.0)
        angle = scaled * self.config.rope_theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _attend(self, x, prefix, positions, visible, sinks=None):
        c, n = self.config, len(x)
        q = (x @ self._weight(prefix + "q_proj").T).reshape(n, c.num_attention_heads, c.head_dim)
        k = (x @ self._weight(prefix + "k_proj").T).reshape(n, c.num_key_value_heads, c.head_dim)
        v = (x @ self._weight(prefix + "v_proj").T).reshape(n, c.num_key_value_heads, c.head_dim)
        group = c.num_attention_heads // c.num_key_value_heads
        plain_q = q
        q, k = self._rotate(q, positions), self._rotate(k, positions)
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(c.head_dim)
        if sinks is not None:
            count, past = sinks
            q = self._rotate(plain_q, np.minimum(positions, past))
            scores[..., :count] = np.einsum("qhd,khd->hqk", q, k[:count]) / np.sqrt(c.head_dim)
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (
            np.einsum("hqk,khd->qhd", weights, v).reshape(n, -1) @ self._weight(prefix + "o_proj").T
        )

    def logits(self, tokens, *, positions=None, visible=None, sinks=None):
        """Logits (n, vocab) of a sequence; causal unless told which columns each row sees.

        `visible` may have a layer axis. `sinks` is a number of columns and the greatest distance
        from the first at which rows look at them.
        """
        n = len(tokens)
        positions = np.arange(n) if positions is None else np.asarray(positions)
        visible = np.tri(n, dtype=bool) if visible is None else visible
        visible = np.broadcast_to(visible, (self.config.num_hidden_layers, n, n))
        table = self._weight("model.embed_tokens")
        x = table[np.asarray(tokens)]
        for index in range(self.config.num_hidden_layers):
            layer = f"model.layers.{index}."
            x = x + self._attend(
                self._norm(x, layer + "input_layernorm"),
                layer + "self_attn.",
                positions,
                visible[index],
                sinks,
            )
            h = self._norm(x, layer + "post_attention_layernorm")
            gate, up = (
                h @ self._weight(layer + "mlp.gate_proj").T,
                h @ self._weight(layer + "mlp.up_proj").T,
            )
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self._weight(layer + "mlp.down_proj").T
        head = table if self.config.tie_word_embeddings else self._weight("lm_head")
        return self._norm(x, "model.norm") @ head.T
