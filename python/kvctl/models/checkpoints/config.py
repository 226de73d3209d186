"""What a Llama model looks like: the few numbers that its graph and its cache depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..._ffi.untrusted import reading

# Far above any real model, far below what could exhaust memory by a number in a file.
_LIMITS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 22,
    "context_window_size": 1 << 24,
}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama: RMSNorm, RoPE, grouped-query attention, SwiGLU, no biases.

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

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"{name} must be an integer from 1 to {limit}, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, not {self.head_dim}")
        if not 0.0 < self.rms_norm_eps < 1.0 or not 1.0 < self.rope_theta < 1e12:
            raise ValueError(
                f"rms_norm_eps ({self.rms_norm_eps}) must be between 0 and 1, "
                f"rope_theta ({self.rope_theta}) between 1 and 1e12"
            )

    @property
    def num_qkv_heads(self) -> int:
        """Heads of the fused projection: the queries', then the keys', then the values'."""
        return self.num_attention_heads + 2 * self.num_key_value_heads

    @classmethod
    @reading("the model's config.json")
    def from_huggingface(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read a ``config.json`` of Hugging Face's.

        Raises
        ------
        ValueError
            If the model is not one that kvctl can build; the message says why.
        """
        architecture = str(config.get("model_type"))
        if architecture != "llama":
            raise ValueError(f"kvctl compiles models of type 'llama', not '{architecture}'")
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind != "default":
            raise ValueError(f"kvctl does not build models with '{kind}' scaling of RoPE")
        for flag in ("attention_bias", "mlp_bias"):
            if config.get(flag):
                raise ValueError(f"kvctl does not build models with {flag}")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"kvctl builds models with SiLU, not '{config['hidden_act']}'")
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                hidden_size=hidden,
                intermediate_size=config["intermediate_size"],
                num_hidden_layers=config["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                vocab_size=config["vocab_size"],
                rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                rope_theta=float(config.get("rope_theta", scaling.get("rope_theta", 10000.0))),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                context_window_size=config.get("max_position_embeddings", 2048),
            )
        except KeyError as missing:
            raise ValueError(f"the model's config.json lacks {missing}") from None

    def to_mlc(self) -> dict[str, Any]:
        """Return the ``model_config`` that MLC writes for this model."""
        config = asdict(self)
        config["position_embedding_base"] = config.pop("rope_theta")
        return config
