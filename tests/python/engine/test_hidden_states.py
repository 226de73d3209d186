"""Hidden states, early exits and embeddings of compiled models."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl.models import RandomCheckpoint
from llama_reference import ReferenceLlama
from plain_model import compile_plain_model
from tiny_model import compile_tiny_model, tiny_config

PROMPT = [3, 1, 4, 1, 5]
TREE = kvctl.TokenTree([9, 2, 6, 5], [-1, 0, 0, 2])
CONFIG = tiny_config(num_hidden_layers=3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return compile_tiny_model(
        tmp_path_factory.mktemp("hidden") / "m",
        changes={"num_hidden_layers": 3},
        hidden_layers=[0, 2],
        exit_layers=[1, 2],
    )


@pytest.fixture
def runner(directory):
    runner = kvctl.ModelRunner.load(directory, prefill_chunk_size=8)
    for seq_id in (0, 1):
        runner.cache.add_sequence(seq_id)
    runner.prefill([0, 1], [PROMPT, PROMPT[:2]])
    return runner


def numpy(rows):
    return tuple(np.from_dlpack(one).copy() for one in rows)


def norm(x):
    weight = RandomCheckpoint(CONFIG).tensor("model.norm.weight")
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + CONFIG.rms_norm_eps) * weight


def test_hidden_states_beside_the_logits(runner):
    trees = [TREE, kvctl.TokenTree.chain([7, 8])]
    (plain,) = numpy([runner.verify([0, 1], trees)])
    runner.cache.abort()
    logits, last = numpy(runner.verify([0, 1], trees, hidden=True))
    np.testing.assert_array_equal(logits, plain)  # the very bits
    assert last.shape == (6, 1, CONFIG.hidden_size)
    head = RandomCheckpoint(CONFIG).tensor("lm_head.weight")
    np.testing.assert_allclose(last[:, 0] @ head.T, logits, atol=2e-5)
    runner.cache.abort()
    logits, states = numpy(runner.verify([0, 1], trees, hidden=[2, 0]))
    np.testing.assert_array_equal(logits, plain)
    assert states.shape == (6, 2, CONFIG.hidden_size)
    np.testing.assert_allclose(norm(states[:, 0]), last[:, 0], atol=2e-5)
    runner.cache.abort()
    _, entered = numpy(runner.verify([0, 1], trees, layers=range(1), hidden=True))
    np.testing.assert_allclose(norm(states[:, 1]), entered[:, 0], atol=2e-5)


def test_hidden_states_of_chunks(runner):
    """Chunks and batches do not change a bit."""
    tokens = np.random.default_rng(4).integers(0, 256, 20)
    logits, states = numpy(runner.forward([0], [tokens], hidden=[0]))
    assert (logits.shape, states.shape) == ((20, 256), (20, 1, CONFIG.hidden_size))
    runner.cache.popn(0, 20)
    for row, token in enumerate(tokens):
        one, state = numpy(runner.forward([0], [[token]], hidden=[0]))
        np.testing.assert_array_equal(one[0], logits[row])
        np.testing.assert_array_equal(state[0], states[row])


@pytest.mark.parametrize("until", [1, 2])
def test_an_exit_is_a_shorter_model(runner, until):
    (found,) = numpy([runner.verify([0], [TREE], layers=range(until))])
    shorter = tiny_config(num_hidden_layers=until)
    for node, path in enumerate([[9], [9, 2], [9, 6], [9, 6, 5]]):
        wanted = ReferenceLlama(RandomCheckpoint(shorter)).logits(PROMPT + path)[-1]
        np.testing.assert_allclose(found[node], wanted, atol=2e-5)


def test_rows_of_an_exit_are_never_committed(runner):
    runner.verify([0], [TREE], layers=range(1))
    with pytest.raises(ValueError, match="cannot be committed"):
        runner.cache.commit([0], [[0]])
    runner.cache.abort([0])
    assert runner.cache.sequence_length(0) == len(PROMPT)
    with pytest.raises(RuntimeError, match="must be pending"):
        from kvctl._ffi import functions as ffi

        ffi.runner.forward_states(runner._handle, (0,), (1,), (7,), None, None, 0, (), 1)
    assert runner.cache.sequence_length(0) == len(PROMPT)


def test_completed_rows_are_those_of_all_layers(runner):
    trees = [TREE, kvctl.TokenTree.chain([7, 8])]
    (plain,) = numpy([runner.verify([0, 1], trees)])
    runner.cache.abort()
    runner.verify([0, 1], trees, layers=range(2))
    (found,) = numpy([runner.complete([0, 1])])
    np.testing.assert_array_equal(found, plain)
    runner.cache.commit([0, 1], [[0, 2, 3], [0]])
    assert runner.cache.sequence_length(0) == len(PROMPT) + 3
    (after,) = numpy([runner.decode([0], [11])])
    wanted = ReferenceLlama(RandomCheckpoint(CONFIG)).logits([*PROMPT, 9, 6, 5, 11])[-1]
    np.testing.assert_allclose(after[0], wanted, atol=2e-5)


def test_drafts_that_an_exit_makes_itself(runner):
    """Tokens go through the first layers one by one; all layers then verify them at once."""
    drafted = [21, 22, 23]
    for token in drafted:
        runner.forward([0], [[token]], layers=range(1))
    with pytest.raises(ValueError, match=r"3 pending rows that ran 1 layers; complete, commit"):
        runner.forward([0], [[24]], pending=True)
    logits, states = numpy(runner.complete([0], hidden=True))
    assert states.shape == (3, 1, CONFIG.hidden_size)
    wanted = ReferenceLlama(RandomCheckpoint(CONFIG)).logits(PROMPT + drafted)[len(PROMPT) :]
    np.testing.assert_allclose(logits, wanted, atol=2e-5)
    runner.cache.commit([0], [[0, 1]])
    runner.forward([0], [[5]], layers=range(1))
    runner.forward([0], [[6]], layers=range(1))
    runner.cache.popn(0, 1)
    (found,) = numpy([runner.complete([0])])
    wanted = ReferenceLlama(RandomCheckpoint(CONFIG)).logits([*PROMPT, 21, 22, 5])[-1:]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    with pytest.raises(ValueError, match="no rows that wait"):
        runner.complete([0])


def test_rows_that_cannot_be_completed(runner):
    runner.verify([0], [TREE], layers=range(1))
    runner.verify([1], [TREE], layers=range(2))
    with pytest.raises(ValueError, match=r"stopped before different layers, \[1, 2\]"):
        runner.complete([0, 1])
    with pytest.raises(NotImplementedError, match="hidden=True"):
        runner.complete([0], hidden=[2])
    runner.cache.abort()
    mask = kvctl.Mask.causal() & kvctl.Mask.window(2)
    runner.forward([0], [[1, 2, 3]], mask=mask, layers=range(1))
    with pytest.raises(ValueError, match="under a mask that is no tree"):
        runner.complete([0])
    runner.cache.abort()
    assert runner.cache.sequence_length(0) == len(PROMPT)


def test_a_completion_that_fails_changes_nothing(runner):
    from kvctl._ffi import functions as ffi

    (plain,) = numpy([runner.verify([0], [TREE])])
    runner.cache.abort()
    runner.verify([0], [TREE], layers=range(1))
    with pytest.raises(ValueError, match="4 pending rows, and the rows that enter layer 1 are"):
        ffi.runner.complete(runner._handle, (0,), runner.embed([1, 2]), 1)
    wrong = np.zeros((4, 32), np.float32)
    with pytest.raises(Exception):  # noqa: B017  (TVM's own, of the graph)
        ffi.runner.complete(runner._handle, (0,), wrong, 1)
    (found,) = numpy([runner.complete([0])])
    np.testing.assert_array_equal(found, plain)


def test_embeddings_are_a_prompt(runner):
    (plain,) = numpy([runner.prefill([0, 1], [PROMPT * 4, PROMPT])])
    runner.cache.popn(0, 20)
    runner.cache.popn(1, 5)
    rows = runner.embed(PROMPT)
    (values,) = numpy([rows])
    table = RandomCheckpoint(CONFIG).tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(values, table[PROMPT])
    found = runner.prefill_embeddings([0, 1], [np.concatenate([values] * 4), rows])
    np.testing.assert_array_equal(np.from_dlpack(found), plain)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda r: r.verify([0], [TREE], hidden=[1]), NotImplementedError, "layers 0, 2"),
        (lambda r: r.verify([0], [TREE], hidden=[-1]), ValueError, "hidden must be True or"),
        (lambda r: r.verify([0], [TREE], hidden=[]), ValueError, "hidden must be True or"),
        (lambda r: r.verify([0], [TREE], layers=range(1, 2)), ValueError, r"layers must be range"),
        (
            lambda r: r.verify([0], [TREE], hidden=[0], layers=range(1)),
            NotImplementedError,
            "of layer 0 where it stops early",
        ),
        (lambda r: r.complete([0]), ValueError, "no rows that wait for their other layers"),
        (lambda r: r.embed([256]), ValueError, r"token 256 is not in the model's vocabulary"),
        (lambda r: r.embed([]), ValueError, "no tokens to embed"),
        (
            lambda r: r.prefill_embeddings([0], [np.zeros((2, 3), np.float32)]),
            ValueError,
            r"must be \(n, 64\) with n from 1",
        ),
        (
            lambda r: r.prefill_embeddings([0], [np.zeros((2, 64), np.float64)]),
            TypeError,
            "must be float32, not float64",
        ),
    ],
)
def test_what_the_library_does_not_give(runner, call, kind, message):
    with pytest.raises(kind, match=message):
        call(runner)
    assert runner.cache.sequence_length(0) == len(PROMPT)
    assert runner.cache.pending_length(0) == 0


def test_abilities(runner, tiny_model):
    assert runner.abilities == {"embed", "hidden", "layers"}
    plain = kvctl.ModelRunner.load(tiny_model)
    assert plain.abilities == {"embed"}
    plain.cache.add_sequence(0)
    with pytest.raises(NotImplementedError, match="--hidden-layers"):
        plain.verify([0], [TREE], hidden=True)
    with pytest.raises(NotImplementedError, match="--exit-layers"):
        plain.verify([0], [TREE], layers=range(1))
    plain.verify([0], [TREE], layers=range(2))  # that is all of them


@pytest.mark.parametrize(
    "options", [{"hidden_layers": [3]}, {"hidden_layers": [1, 0]}, {"exit_layers": [0]}]
)
def test_layers_that_are_none(tmp_path, options):
    with pytest.raises(ValueError, match="_layers must ascend from"):
        compile_tiny_model(tmp_path / "m", **options)


def test_last_hidden_states_of_mlc_libraries(tmp_path):
    runner = kvctl.ModelRunner.load(compile_plain_model(tmp_path / "m", last_hidden=True))
    assert runner.abilities == {"embed", "hidden"}
    runner.cache.add_sequence(0)
    runner.prefill([0], [PROMPT])
    (plain,) = numpy([runner.verify([0], [TREE])])
    runner.cache.abort()
    logits, last = numpy(runner.verify([0], [TREE], hidden=True))
    np.testing.assert_allclose(logits, plain, atol=1e-5)
    head = RandomCheckpoint(tiny_config()).tensor("lm_head.weight")
    np.testing.assert_allclose(last[:, 0] @ head.T, logits, atol=2e-5)
    runner.cache.abort()
    with pytest.raises(NotImplementedError, match="compiled for the layers none"):
        runner.verify([0], [TREE], hidden=[0])
