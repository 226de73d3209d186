"""K and V of several workers: read, saved to a file and loaded from one, as those of one worker."""

from __future__ import annotations

import json

import numpy as np
import pytest

import kvctl
from kvctl.distributed import ModelRunner
from kvctl.distributed.heads import Heads, heads_of
from tiny_model import compile_tiny_model

TEXT = np.random.default_rng(6).integers(0, 256, 60).tolist()


@pytest.fixture(scope="module")
def alone(tiny_model):
    return kvctl.ModelRunner.load(tiny_model, max_sequences=5, max_total_tokens=640)


@pytest.fixture
def both(runner, alone):
    alone.cache.clear()
    for one in (runner, alone):
        one.cache.add_sequence(0)
        one.prefill([0], [TEXT[:40]])
    return runner, alone


def values(tensors):
    return [np.from_dlpack(tensor) for tensor in tensors]


def test_get_kv_has_the_heads_of_all(both):
    two, one = both
    two.cache.popn(0, 3)  # noted, and not yet done by the other worker
    one.cache.popn(0, 3)
    for arguments in ((), (5,), (5, 9), (7, 7)):
        for found, wanted in zip(
            values(two.cache.get_kv(0, *arguments)),
            values(one.cache.get_kv(0, *arguments)),
            strict=True,
        ):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(KeyError):
        two.cache.get_kv(3)
    with pytest.raises(IndexError):
        two.cache.get_kv(0, 0, 99)
    with pytest.raises(IndexError, match="negative"):
        two.cache.get_kv(0, 0, -2)
    two.decode([0], [1])


@pytest.mark.parametrize("evicts", [False, True])
@pytest.mark.parametrize("way", ["two to one", "one to two", "two to two"])
def test_a_file_goes_from_any_number_of_workers_to_any(both, tmp_path, way, evicts):
    by_name = dict(zip(("two", "one"), both, strict=True))
    source, target = (by_name[name] for name in way.split(" to "))
    if evicts:
        source.cache.evict(0, [0, 1, *range(9, 40)])
    source.cache.save_sequence(0, tmp_path / "text")
    target.cache.load_sequence(1, tmp_path / "text")
    assert target.cache.sequence_length(1) == source.cache.sequence_length(0)
    for step in (lambda r, i: r.decode([i], [5]), lambda r, i: r.prefill([i], [TEXT[40:]])):
        wanted, found = (np.from_dlpack(step(r, i)) for r, i in ((source, 0), (target, 1)))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_load_that_fails_changes_nothing(both, tmp_path):
    two, one = both
    one.cache.save_sequence(0, tmp_path / "text")
    with pytest.raises(ValueError, match="already"):
        two.cache.load_sequence(0, tmp_path / "text")
    for seq_id in range(1, 5):
        two.cache.add_sequence(seq_id)
    with pytest.raises((RuntimeError, ValueError)):  # too many sequences
        two.cache.load_sequence(9, tmp_path / "text")
    two.cache.remove_sequence(1)
    for seq_id, length in ((2, 290), (3, 256)):
        two.prefill([seq_id], [[1] * length])
    free = two.cache.num_available_pages
    with pytest.raises(kvctl.OutOfPagesError):
        two.cache.load_sequence(9, tmp_path / "text")
    assert two.cache.num_available_pages == free and 9 not in two.cache
    (tmp_path / "text").write_bytes(b"no sequence")
    with pytest.raises(ValueError):
        two.cache.load_sequence(9, tmp_path / "text")
    two.decode([0], [1])  # the other worker has followed


def test_pages_of_int8_and_heads_that_several_workers_have(gloo, tmp_path):
    changes = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}
    directories = [
        compile_tiny_model(tmp_path / str(n), changes=changes, tensor_parallel=n) for n in (1, 2)
    ]
    one = kvctl.ModelRunner.load(directories[0], kv_dtype="int8")
    with ModelRunner.load(directories[1], workers=2, threads=1, kv_dtype="int8") as two:
        for runner in (one, two):
            runner.cache.add_sequence(0)
            runner.prefill([0], [TEXT])
        two.cache.save_sequence(0, tmp_path / "text")
        one.cache.load_sequence(1, tmp_path / "text")
        two.cache.load_sequence(1, tmp_path / "text")
        found, wanted = (np.from_dlpack(r.decode([1], [4])) for r in (two, one))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("total", "workers", "ranges"),
    [
        (4, 2, [(0, 2), (2, 4)]),
        (3, 2, [(0, 2), (2, 3)]),
        (2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (5, 4, [(0, 2), (2, 4), (4, 5), (5, 5)]),
    ],
)
def test_heads_are_split_as_the_compiler_splits_them(tmp_path, total, workers, ranges):
    from kvctl.models.graph.tensor_parallel import TensorParallel
    from tiny_model import tiny_config

    split = TensorParallel(
        tiny_config(num_attention_heads=2 * total, num_key_value_heads=total), workers
    )
    assert split._key_ranges == ranges
    config = {"tensor_parallel_shards": workers, "model_config": {"num_key_value_heads": total}}
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps(config))
    local = split.local.num_key_value_heads
    heads = heads_of(tmp_path, local, workers)
    assert heads == Heads(total, local, ranges)
    whole = np.arange(2 * 3 * total * 4).reshape(2, 3, total, 4)
    np.testing.assert_array_equal(heads.join(heads.split(whole)), whole)


def test_recurrent_layers_are_refused(gloo, recurrent_models, tmp_path):
    directory = recurrent_models("hybrid", emit_steps=True)
    with pytest.raises(NotImplementedError, match="recurrent layers: such models run on one"):
        ModelRunner.load(directory, workers=2)
    for file in directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "mlc-chat-config.json"  # of a model whose name does not tell
    text = config.read_text().replace("gated_delta_net", "other")
    config.unlink()
    config.write_text(text)
    with pytest.raises(NotImplementedError, match="recurrent layers"):
        ModelRunner.load(tmp_path, workers=2)
