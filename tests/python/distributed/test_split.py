"""Which part of each parameter a worker has."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from kvctl.models.graph.layers import ParamSpec
from kvctl.models.graph.tensor_parallel import TensorParallel
from tiny_model import tiny_config


def share(split, array, worker):
    """Return a worker's share of an array."""
    parts = []
    for size, (begin, end) in zip(split.local, split.ranges[worker], strict=True):
        part = np.take(array, range(begin, end), axis=split.axis)
        pad = [(0, 0)] * array.ndim
        pad[split.axis] = (0, size - (end - begin))
        parts.append(np.pad(part, pad))
    return np.concatenate(parts, axis=split.axis)


def attend(config, qkv, weight):
    """Multiply each head of queries by its keys and values, and project: what splits by heads."""
    heads = qkv.reshape(-1, config.head_dim)
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    q, k, v = np.split(heads, [queries, queries + keys])
    group = queries // keys
    return weight @ (q * np.repeat(k, group, 0) + np.repeat(v, group, 0) * (q != 0)).reshape(-1)


@pytest.mark.parametrize("seed", range(60))
def test_shares_add_up_to_the_whole(seed):
    rng = np.random.default_rng(seed)
    keys, group = int(rng.integers(1, 9)), int(rng.integers(1, 9))
    config = tiny_config(
        num_attention_heads=keys * group,
        num_key_value_heads=keys,
        head_dim=8,
        intermediate_size=int(rng.integers(8, 200)),
        vocab_size=int(rng.integers(16, 300)),
    )
    workers = int(rng.integers(2, keys * group + 1)) if keys * group > 1 else 1
    parallel = TensorParallel(config, workers)
    local = parallel.local
    rows = config.num_qkv_heads * 8
    qkv, out = rng.normal(size=rows), rng.normal(size=(5, config.num_attention_heads * 8))
    inside = config.intermediate_size
    gate_up, down = rng.normal(size=2 * inside), rng.normal(size=(5, inside))
    logits = rng.normal(size=config.vocab_size)

    def split(name, array):
        found = parallel.split(ParamSpec(name, array.shape, "float32"))
        return [share(found, array, worker) for worker in range(workers)]

    stem = "model.layers.0."
    attended = [
        attend(local, a, b)
        for a, b in zip(
            split(stem + "self_attn.qkv_proj.weight", qkv),
            split(stem + "self_attn.o_proj.weight", out),
            strict=True,
        )
    ]
    np.testing.assert_allclose(sum(attended), attend(config, qkv, out), atol=1e-9)
    halves = [np.split(one, 2) for one in split(stem + "mlp.gate_up_proj.weight", gate_up)]
    fed = [
        weight @ (gate * up)
        for weight, (gate, up) in zip(
            split(stem + "mlp.down_proj.weight", down), halves, strict=True
        )
    ]
    gate, up = np.split(gate_up, 2)
    np.testing.assert_allclose(sum(fed), down @ (gate * up), atol=1e-9)
    parts = split("lm_head.weight", logits)
    np.testing.assert_array_equal(np.concatenate(parts)[: config.vocab_size], logits)
    assert {one.shape for one in parts} == {(parallel.vocab,)}


@pytest.mark.parametrize("workers", [0, 5, True, 2.0, "2"])
def test_numbers_of_workers(workers):
    with pytest.raises(ValueError, match="from 1 to the model's 4 heads of queries, not"):
        TensorParallel(tiny_config(), workers)


def test_models_that_cannot_be_split():
    with pytest.raises(ValueError, match="cannot split a model that normalises the queries"):
        TensorParallel(tiny_config(qk_norm="all"), 2)
    # Heads of 8: a worker with three of them would begin within a group of 32.
    config = tiny_config(num_attention_heads=12, num_key_value_heads=12, head_dim=8)
    parallel = TensorParallel(config, 4)
    blocks = ParamSpec("model.layers.0.self_attn.o_proj.weight", (64, 3, 18), "uint8")
    with pytest.raises(ValueError, match=r"o_proj\.weight cuts such groups: compile the model"):
        parallel.split(blocks)


def test_notes():
    assert TensorParallel(tiny_config(), 2).notes() == []
    (note,) = TensorParallel(tiny_config(), 4).notes()
    assert note.startswith("2 heads of keys and values are fewer than the 4 workers: up to 2")
    many = dataclasses.replace(tiny_config(), num_attention_heads=6, num_key_value_heads=3)
    assert "and 2 of them are zeros" in TensorParallel(many, 2).notes()[0]
