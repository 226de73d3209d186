"""The smallest models with recurrent layers: two of them, and two with two of attention."""

from __future__ import annotations

import pytest

NUMBERS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "key_dim": 8,
    "value_dim": 16,
    "vocab_size": 64,
}
ATTENTION = {
    "attention_every": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
KINDS = ("delta", "hybrid")


def config_of(kind):
    """The configuration of "delta" or "hybrid"; skips the test where TVM's compiler is missing."""
    pytest.importorskip("kvctl.models", reason="needs TVM's compiler")
    from kvctl.models.graph.gated_delta_net import GatedDeltaNetConfig
    from kvctl.models.graph.hybrid import HybridConfig

    if kind == "delta":
        return GatedDeltaNetConfig(**NUMBERS, num_hidden_layers=2)
    return HybridConfig(**NUMBERS, **ATTENTION, num_hidden_layers=4)


@pytest.fixture(scope="session")
def recurrent_models(tmp_path_factory):
    """Directories by (kind, emit_steps), each compiled when it is first asked for."""
    directories = {}

    def get(kind, *, emit_steps):
        key = (kind, emit_steps)
        if key not in directories:
            config = config_of(kind)
            from kvctl.models.build.recurrent_library import compile_recurrent

            name = f"{kind}_{'steps' if emit_steps else 'final'}"
            directories[key] = compile_recurrent(
                config, tmp_path_factory.mktemp("recurrent") / name, emit_steps=emit_steps
            )
        return directories[key]

    return get
