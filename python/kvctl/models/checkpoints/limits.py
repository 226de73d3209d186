"""How large the sizes of a model may be."""

from __future__ import annotations

from typing import Any

# Far above any real model, far below what could exhaust memory by a number in a file.
LIMITS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 256,
    "vocab_size": 1 << 22,
    "context_window_size": 1 << 24,
}


def check_size(name: str, value: Any) -> None:
    """Check one of the sizes of a model, by its name in `LlamaConfig`.

    Raises
    ------
    ValueError
        If it is no integer, or outside its range.
    """
    limit = LIMITS[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise ValueError(f"{name} must be an integer from 1 to {limit}, not {value!r:.60}")
