"""What a Llama model looks like: the few numbers that its graph and its cache depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .huggingface_config import read_huggingface_config
from .limits import LIMITS, check_size

# Both ends excluded.
_RANGES = {"rms_norm_eps": (0.0, 1.0), "rope_theta": (1.0, 1e12), "rope_scale": (0.0, 1e6)}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama: RMSNorm, RoPE, grouped-query attention, SwiGLU, no biases.

    RoPE multiplies positions by ``rope_scale``: linear scaling by a factor is its inverse.

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
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, not {value!r}")
            if not low < value < high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(
                f"tie_word_embeddings must be true or false, not {self.tie_word_embeddings!r}"
            )

    @property
    def num_qkv_heads(self) -> int:
        """Heads of the fused projection: the queries', then the keys', then the values'."""
        return self.num_attention_heads + 2 * self.num_key_value_heads

    @classmethod
    def from_huggingface(
        cls, config: Mapping[str, Any], *, where: str = "the model's config.json"
    ) -> LlamaConfig:
        """Read a ``config.json`` of Hugging Face's; `where` names it in messages.

        Raises
        ------
        ValueError
            If the model is not one that kvctl can build; the message names the field.
        """
        fields = read_huggingface_config(config, where)
        try:
            return cls(**fields)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_mlc(self) -> dict[str, Any]:
        """Return the ``model_config`` that MLC writes for this model."""
        config = asdict(self)
        config["position_embedding_base"] = config.pop("rope_theta")
        if config["rope_scale"] == 1.0:
            del config["rope_scale"]
        return config
