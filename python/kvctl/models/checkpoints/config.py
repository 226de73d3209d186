"""What a decoder looks like: everything that its graph and its cache depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .limits import LIMITS, check_size
from .rope import RopeScaling

# Both ends excluded.
_RANGES = {
    "rms_norm_eps": (0.0, 1.0),
    "rope_theta": (1.0, 1e12),
    "local_rope_theta": (1.0, 1e12),
    "rope_scale": (0.0, 1e6),
    "attention_scale": (0.0, 1e6),
    "attention_soft_cap": (0.0, 1e6),
    "logit_soft_cap": (0.0, 1e6),
    "embedding_scale": (0.0, 1e6),
    "residual_scale": (0.0, 1e6),
    "logit_scale": (0.0, 1e6),
}
# What says "none" where a number is asked for.
_ABSENT = ("local_rope_theta", "attention_scale", "attention_soft_cap", "logit_soft_cap")
_CHOICES = {
    "norm": ("rms", "layer"),
    "norm_placement": ("before", "after", "both"),
    "qk_norm": (None, "head", "all"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}
_FLAGS = (
    *("tie_word_embeddings", "qkv_bias", "output_bias", "mlp_bias", "gated_mlp"),
    "parallel_residual",
)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. The defaults are a Llama's; each family says what it does otherwise.

    Parameters
    ----------
    hidden_size, intermediate_size, num_hidden_layers, vocab_size, context_window_size : int
        Sizes.
    num_attention_heads, num_key_value_heads, head_dim : int
        Heads of queries, of keys and values, and their length.
    model_type : str
        The family, by Hugging Face's name.
    norm : str
        "rms" or "layer" (which has biases); `rms_norm_eps` is either's epsilon.
    norm_placement : str
        Whether attention and feed-forward layers are normalised "before", "after" (what is added
        to the residual stream) or "both".
    qkv_bias, output_bias, mlp_bias : bool
        Biases of the projections to q, k and v, of the one behind attention, of the feed-forward.
    qk_norm : str, optional
        RMSNorm of q and k: "head" for each head alone, "all" for all heads together.
    activation : str
        "silu", "gelu", "gelu_tanh" or "relu".
    gated_mlp : bool
        Whether the activated half is multiplied by another (SwiGLU, GeGLU).
    parallel_residual : bool
        Whether attention and feed-forward read the same input.
    rope_theta, rope_scale, rope_scaling
        RoPE's base; what positions are multiplied by (linear scaling); any other scaling.
    local_rope_theta : float, optional
        The base in layers with a window, which then are not scaled.
    rotary_dim : int, optional
        Leading elements of a head that are rotated; all by default.
    no_rope_layers : tuple of int
        Layers that rotate nothing.
    learned_positions : int
        Rows of a table of positions that is added to the embeddings, in place of RoPE; 0: none.
    layer_windows : tuple of int
        For each layer how many tokens a token sees, its own included, 0 being all; or empty.
    attention_scale : float, optional
        What scores are multiplied by; one over the root of `head_dim` by default.
    attention_soft_cap, logit_soft_cap : float, optional
        Scores and logits become ``cap * tanh(x / cap)``.
    embedding_scale, residual_scale, logit_scale : float
        What embeddings, every addition to the residual stream, and logits are multiplied by.
    tie_word_embeddings : bool
        Whether the output layer is the embedding table.

    Raises
    ------
    ValueError
        If a number is outside its range or the heads do not fit together.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    context_window_size: int = 2048
    rope_scale: float = 1.0
    model_type: str = "llama"
    norm: str = "rms"
    norm_placement: str = "before"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    activation: str = "silu"
    gated_mlp: bool = True
    parallel_residual: bool = False
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    rotary_dim: int | None = None
    no_rope_layers: tuple[int, ...] = ()
    learned_positions: int = 0
    layer_windows: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in LIMITS:
            check_size(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        if self.head_dim % 8:
            raise ValueError(
                f"head_dim must be a multiple of 8 for kvctl's cache, not {self.head_dim}"
            )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _ABSENT:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if not low < value < high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.num_hidden_layers
        if self.layer_windows and len(self.layer_windows) != layers:
            raise ValueError(f"{len(self.layer_windows)} layer_windows for {layers} layers")
        for window in self.layer_windows:
            if type(window) is not int or not 0 <= window < 1 << 31:
                raise ValueError(f"a layer's window must be from 0 to 2^31 - 1, not {window!r}")
        if self.learned_positions not in (0, False):
            check_size("context_window_size", self.learned_positions)
        if any(type(one) is not int or not 0 <= one < layers for one in self.no_rope_layers):
            raise ValueError(f"no_rope_layers must be from 0 to {layers - 1}")
        dim = self.rotary_dim
        if dim is not None and (type(dim) is not int or not 2 <= dim <= self.head_dim or dim % 2):
            raise ValueError(f"rotary_dim must be even, from 2 to {self.head_dim}, not {dim!r}")
        for factors in (
            (self.rope_scaling.short, self.rope_scaling.long) if self.rope_scaling else ()
        ):
            if factors and len(factors) != self.rotated // 2:
                raise ValueError(
                    f"RoPE has {self.rotated // 2} frequencies, and {len(factors)} factors for them"
                )

    @property
    def num_qkv_heads(self) -> int:
        """Heads of the fused projection: the queries', then the keys', then the values'."""
        return self.num_attention_heads + 2 * self.num_key_value_heads

    @property
    def rotated(self) -> int:
        """Leading elements of each head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def sm_scale(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def cache_rotates(self) -> bool:
        """Whether the cache can apply this model's RoPE: whole heads, one table for all layers."""
        return (
            self.rope_scaling is None
            and self.rotated == self.head_dim
            and not (self.no_rope_layers or self.learned_positions)
            and self.local_rope_theta is None
        )

    def window(self, layer: int) -> int:
        """Return how many tokens a layer sees, 0 being all."""
        return self.layer_windows[layer] if self.layer_windows else 0

    def rotation(self, layer: int) -> str | None:
        """Return the kind of rotation that a layer applies: "global", "local" or None."""
        if self.learned_positions or layer in self.no_rope_layers:
            return None
        return "local" if self.local_rope_theta is not None and self.window(layer) else "global"

    def frequencies(self, rotation: str) -> tuple[npt.NDArray[np.float64], float]:
        """Return the angles of position 1, ``(rotated / 2,)``, and what multiplies both sines."""
        half = self.rotated // 2
        local = rotation == "local" and self.local_rope_theta is not None
        theta = float(self.local_rope_theta if local else self.rope_theta)  # type: ignore[arg-type]
        plain = theta ** (-np.arange(half, dtype=np.float64) / half)
        if local:
            return plain, 1.0
        if self.rope_scaling is None:
            return plain * self.rope_scale, 1.0
        scaled = self.rope_scaling.scale(plain, theta=theta, context=self.context_window_size)
        return scaled, self.rope_scaling.attention_factor

    def with_context(self, context_window_size: int) -> DecoderConfig:
        """Return the same model with another context window."""
        return replace(self, context_window_size=context_window_size)

    @classmethod
    def from_huggingface(
        cls, config: Mapping[str, Any], *, where: str = "the model's config.json"
    ) -> DecoderConfig:
        """Read a ``config.json`` of Hugging Face's; `where` names it in messages.

        Raises
        ------
        ValueError
            If the model is not one that kvctl can build; the message names the field.
        """
        from .huggingface_config import read_huggingface_config

        fields = read_huggingface_config(config, where)
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_mlc(self) -> dict[str, Any]:
        """Return the ``model_config`` that MLC writes for this model."""
        config = asdict(self)
        defaults = {name: field.default for name, field in self.__dataclass_fields__.items()}
        for name in list(config)[list(config).index("rope_scale") :]:
            if config[name] == defaults[name]:
                del config[name]
        config.pop("model_type", None)
        config["position_embedding_base"] = config.pop("rope_theta")
        return config


LlamaConfig = DecoderConfig
"""The name of before other families were built."""
