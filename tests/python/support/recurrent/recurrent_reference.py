"""The recurrent models in NumPy, as plain as it gets: float64, one token after another."""

from __future__ import annotations

import numpy as np

from kvctl.models.build.recurrent_library import random_parameter
from kvctl.models.graph.layers import ParamSpec
from llama_reference import ReferenceLlama


def silu(x):
    return x / (1 + np.exp(-x))


class ReferenceRecurrent(ReferenceLlama):
    """Runs the weights of `compile_recurrent`, whose library's metadata it takes."""

    def __init__(self, config, metadata, *, seed=0):
        self.config = config
        specs = [
            ParamSpec(param["name"], tuple(param["shape"]), param["dtype"])
            for param in metadata["params"]
        ]
        self.params = {spec.name: random_parameter(spec, seed=seed) for spec in specs}

    def _weight(self, name):
        prefix, _, kind = name.rpartition(".")
        c = self.config
        if kind in ("q_proj", "k_proj", "v_proj"):
            q, k = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
            begin, size = {"q_proj": (0, q), "k_proj": (q, k), "v_proj": (q + k, k)}[kind]
            fused = self.params[f"{prefix}.qkv_proj.weight"]
            return fused[begin : begin + size].astype(np.float64)
        return self.params[name + ".weight"].astype(np.float64)

    def _recur(self, x, prefix):
        """The gated delta rule in the paper's own form, S of shape (value_dim, key_dim)."""
        c, n = self.config, len(x)
        weights = {
            key: self.params[prefix + key].astype(np.float64)
            for key in ("conv", "a_log", "dt_bias", "norm")
        }
        proj = x @ self._weight(prefix + "in_proj").T
        channels, heads = c.conv_channels, c.num_heads
        inputs, rest = proj[:, :channels], proj[:, channels:]
        padded = np.concatenate([np.zeros((c.conv_width - 1, channels)), inputs])
        conv = sum(padded[i : i + n] * weights["conv"][i] for i in range(c.conv_width))
        q, k, v = np.split(silu(conv), [heads * c.key_dim, 2 * heads * c.key_dim], axis=1)
        q, k = q.reshape(n, heads, -1), k.reshape(n, heads, -1)
        q = q / np.sqrt((q * q).sum(-1, keepdims=True) + 1e-6) * c.key_dim**-0.5
        k = k / np.sqrt((k * k).sum(-1, keepdims=True) + 1e-6)
        v = v.reshape(n, heads, -1)
        z, b, a = np.split(rest, [heads * c.value_dim, heads * (c.value_dim + 1)], axis=1)
        beta = 1 / (1 + np.exp(-b))
        alpha = np.exp(-np.exp(weights["a_log"]) * np.log1p(np.exp(a + weights["dt_bias"])))
        out = np.empty((n, heads, c.value_dim))
        for h in range(heads):
            state = np.zeros((c.value_dim, c.key_dim))
            for t in range(n):
                kt = k[t, h]
                forget = alpha[t, h] * (np.eye(c.key_dim) - beta[t, h] * np.outer(kt, kt))
                state = state @ forget + beta[t, h] * np.outer(v[t, h], kt)
                out[t, h] = state @ q[t, h]
        norm = np.sqrt((out * out).mean(-1, keepdims=True) + c.rms_norm_eps)
        out = out / norm * weights["norm"] * silu(z).reshape(n, heads, -1)
        return out.reshape(n, -1) @ self._weight(prefix + "out_proj").T

    def logits(self, tokens):
        """Logits (n, vocab) of a sequence."""
        c, n = self.config, len(tokens)
        x = self._weight("embed_tokens")[np.asarray(tokens)]
        for index in range(c.num_hidden_layers):
            layer = f"layers.{index}."
            h = self._norm(x, layer + "input_layernorm")
            if c.is_recurrent(index):
                x = x + self._recur(h, layer + "delta.")
            else:
                causal = np.tri(n, dtype=bool)
                x = x + self._attend(h, layer + "self_attn.", np.arange(n), causal)
            h = self._norm(x, layer + "post_attention_layernorm")
            gate, up = np.split(h @ self._weight(layer + "mlp.gate_up_proj").T, 2, axis=1)
            x = x + silu(gate) * up @ self._weight(layer + "mlp.down_proj").T
        return self._norm(x, "norm") @ self._weight("lm_head").T
