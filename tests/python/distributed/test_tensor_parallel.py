"""Models over several workers: logits, hidden states and exits are those of one worker."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from family_files import Family
from kvctl.models import compile_model
from shards import shards
from tiny_model import compile_tiny_model

BOUND = 1e-4


def assert_close(found, wanted, bound=BOUND):
    """Relative to the largest logit; minus infinity where that is wanted."""
    assert (np.isinf(found) == np.isinf(wanted)).all()
    error = np.abs(np.where(np.isinf(wanted), 0, found - wanted)).max()
    assert error < bound * np.abs(wanted[np.isfinite(wanted)]).max(), error


def compare(one, group, tokens, *, bound=BOUND):
    """Prompts in chunks, a token each, a tree, and what is committed of it."""
    for seq_id in (0, 1):
        one.cache.add_sequence(seq_id)
        group.add_sequence(seq_id)
    prompts = [tokens[:30], tokens[:7]]
    tree = kvctl.TokenTree([tokens[9], 5, *tokens[10:14]], [-1, 0, 0, 2, 3, 3])
    steps = [
        ("prefill", [0, 1], prompts),
        ("decode", [1, 0], [tokens[7], tokens[30]]),
        ("forward", [1], [tokens[8:9]]),
        ("verify", [1], [tree]),
    ]
    for method, *arguments in steps:
        wanted = getattr(one, method)(*arguments).numpy()
        assert_close(group.call(method, *arguments).numpy(), wanted, bound)
    one.cache.commit([1], [[0, 2, 3]])
    group.commit([1], [[0, 2, 3]])
    chain = kvctl.TokenTree.chain(tokens[12:20])
    wanted = one.verify([1], [chain]).numpy()
    assert_close(group.call("verify", [1], [chain]).numpy(), wanted, bound)


FAMILIES = [
    ("qwen2", 2),  # biases
    ("gemma2", 2),  # norms on both sides, soft caps, a tied head
    ("phi3_longrope", 4),  # LongRoPE
    ("gpt2", 2),  # biases behind the allreduce, no gate, learned positions
]


@pytest.mark.parametrize(("case", "workers"), FAMILIES)
def test_families(tmp_path, case, workers):
    family = Family(case)
    source = family.write(tmp_path / "source")
    one = kvctl.ModelRunner.load(compile_model(source, tmp_path / "one"), prefill_chunk_size=24)
    directory = compile_model(
        source, tmp_path / "several", tensor_parallel=workers, tensor_parallel_sums="partial"
    )
    with shards(workers) as group:
        group.load(directory, prefill_chunk_size=24)
        compare(one, group, family.tokens)


def test_uneven_shares_hidden_states_and_exits(tmp_path):
    """Three heads of keys, 100 inside and 259 logits over two workers: shares are filled up."""
    changes = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 16}
    changes |= {"intermediate_size": 101, "vocab_size": 259, "tie_word_embeddings": True}
    options = {"hidden_layers": [0], "exit_layers": [1], "changes": changes}
    one = kvctl.ModelRunner.load(compile_tiny_model(tmp_path / "one", **options))
    notes = []
    several = compile_tiny_model(
        tmp_path / "several",
        tensor_parallel=2,
        tensor_parallel_sums="partial",
        note=notes.append,
        **options,
    )
    assert any("9 heads do not divide over 2 workers" in note for note in notes)
    tokens = np.random.default_rng(0).integers(0, 259, 40).tolist()
    with shards(2) as group:
        group.load(several)
        compare(one, group, tokens)
        assert group.runners[1].cache.num_kv_heads == 2
        one.cache.abort()
        group.on_all(lambda rank: group.runners[rank].cache.abort())
        chain = kvctl.TokenTree.chain(tokens[:5])
        for arguments in ({"hidden": [0]}, {"hidden": True, "layers": range(1)}):
            logits, hidden = one.verify([1], [chain], **arguments)
            found = group.every("verify", [1], [chain], **arguments)
            assert_close(found[0][0].numpy(), logits.numpy())
            assert_close(found[0][1].numpy(), hidden.numpy())
            np.testing.assert_array_equal(found[0][1].numpy(), found[1][1].numpy())
            if "layers" in arguments:
                assert_close(group.call("complete", [1]).numpy(), one.complete([1]).numpy())
            one.cache.abort()
            group.on_all(lambda rank: group.runners[rank].cache.abort())


def test_keys_on_several_workers(tmp_path):
    """Two heads of keys over four workers: two workers have each."""
    changes = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    one = kvctl.ModelRunner.load(compile_tiny_model(tmp_path / "one", changes=changes))
    options = {"tensor_parallel": 4, "tensor_parallel_sums": "partial"}
    several = compile_tiny_model(tmp_path / "several", changes=changes, **options)
    with shards(4) as group:
        group.load(several)
        compare(one, group, list(range(40)))
        assert group.collectives % 4 == 0  # two for each of two layers


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_types_of_weights(tmp_path, dtype):
    """The files are those of one worker, and a share has whole groups of weights."""
    changes = {"intermediate_size": 160, "num_attention_heads": 8, "vocab_size": 258}
    made = [
        compile_tiny_model(
            tmp_path / str(n),
            changes=changes,
            dtype=dtype,
            tensor_parallel=n,
            tensor_parallel_sums="partial",
        )
        for n in (1, 2)
    ]
    one = kvctl.ModelRunner.load(made[0])
    files = [(directory / "params_shard_0.bin").read_bytes() for directory in made]
    assert files[0] == files[1]
    with shards(2) as group:
        group.load(made[1])
        compare(one, group, list(range(40)))


@pytest.mark.parametrize("vocab_size", [16000, 257])
def test_columns_behind_the_last_token(tmp_path, vocab_size):
    """They weigh nothing, for workers that sample from their own columns."""
    changes = {"vocab_size": vocab_size, "num_hidden_layers": 1}
    directory = compile_tiny_model(tmp_path / "m", changes=changes, tensor_parallel=2)
    with shards(2) as group:
        group.load(directory).add_sequence(0)
        _, last = group.every("prefill", [0], [[1, 2, 3]])
    columns = last.numpy().shape[1]
    assert np.isneginf(last.numpy()[0, vocab_size - columns :]).all()
    assert np.isfinite(last.numpy()[0, : vocab_size - columns]).all()
