"""Models with sliding windows in the runner: against a NumPy model, and speculative as plain."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from llama_reference import ReferenceLlama
from plain_model import compile_plain_model
from tiny_model import tiny_config

TOKENS = np.random.default_rng(12).integers(0, 256, 120).tolist()
WINDOW, SINKS = 20, 4
MODELS = {
    "window": {"sliding_window_size": WINDOW},
    "sinks": {"sliding_window_size": WINDOW, "attention_sink_size": SINKS},
    "sinks on TVM's cache": {
        "sliding_window_size": WINDOW,
        "attention_sink_size": SINKS,
        "cache": "tvm",
    },
    "layers": {"layer_windows": (WINDOW, (True, False)), "cache": "tvm"},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A library, and the logits of what it should compute."""
    options = MODELS[request.param]
    directory = compile_plain_model(
        tmp_path_factory.mktemp("windows") / "model", context_window_size=-1, **options
    )
    from kvctl.models import RandomCheckpoint

    llama = ReferenceLlama(RandomCheckpoint(tiny_config()))
    sinks = options.get("attention_sink_size", 0)

    def reference(tokens):
        n = len(tokens)
        causal = np.tri(n, dtype=bool)
        distance = np.arange(n)[:, None] - np.arange(n)
        if "layer_windows" in options:  # such a window counts the token itself
            return llama.logits(tokens, visible=np.stack([causal & (distance < WINDOW), causal]))
        seen = causal & ((distance <= WINDOW - sinks) | (np.arange(n) < sinks))
        return llama.logits(tokens, visible=seen, sinks=(sinks, WINDOW) if sinks else None)

    return directory, reference


def load(directory, *seq_ids, **options):
    runner = kvctl.ModelRunner.load(directory, **options)
    for seq_id in seq_ids:
        runner.cache.add_sequence(seq_id)
    return runner


def array(tensor):
    return np.from_dlpack(tensor).copy()


def test_prefill_in_chunks_and_decode(model):
    directory, reference = model
    expected = reference(TOKENS[:70])
    for chunk in (8, 64):
        runner = load(directory, 0, 1, prefill_chunk_size=chunk)
        rows = [array(runner.prefill([0], [TOKENS[:60]]))]
        rows += [array(runner.decode([0], [token])) for token in TOKENS[60:70]]
        np.testing.assert_allclose(np.concatenate(rows), expected[59:], atol=3e-5)
        assert runner.cache.sequence_length(0) == 70


def test_the_window_is_what_is_seen(model):
    """The negative control: with every token in sight the reference says something else."""
    _, reference = model
    from kvctl.models import RandomCheckpoint

    full = ReferenceLlama(RandomCheckpoint(tiny_config())).logits(TOKENS[:70])
    windowed = reference(TOKENS[:70])
    np.testing.assert_array_equal(full[:WINDOW], windowed[:WINDOW])
    assert np.abs(full - windowed)[40:].max() > 1e-2


def test_verify_popn_fork_and_rollback(model):
    directory, reference = model
    runner = load(directory, 0)
    cache = runner.cache
    tokens = TOKENS[:50]
    runner.prefill([0], [tokens])
    parents = [-1, 0, 0, 1, 2, 2, 3, 6, 7, 8]
    drafted = TOKENS[50:60]
    logits = array(runner.verify([0], [kvctl.TokenTree(drafted, parents)]))
    for node in range(len(parents)):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        expected = reference(tokens + [drafted[i] for i in path])[-1]
        np.testing.assert_allclose(logits[node], expected, atol=3e-5)
    cache.commit([0], [[0, 1, 3, 6]])
    tokens = tokens + [drafted[i] for i in (0, 1, 3, 6)]
    checkpoint = cache.checkpoint(0)

    def step(seq_id, token):
        got = array(runner.decode([seq_id], [token]))
        np.testing.assert_allclose(got[0], reference([*tokens, token])[-1], atol=3e-5)

    step(0, 5)
    cache.fork_sequence(0, 1, len(tokens) - 2)
    cache.rollback(0, checkpoint)
    step(0, 9)
    cache.popn(0, 13)
    tokens = tokens[:-12]
    step(0, 3)
    tokens = [*TOKENS[:50], *(drafted[i] for i in (0, 1))]
    step(1, 77)


def test_speculative_is_plain(model):
    """Greedy, with drafts of which some are right; token for token over four windows."""
    directory, _ = model
    plain = load(directory, 0)
    last = int(array(plain.prefill([0], [TOKENS[:30]]))[0].argmax())
    expected = [last]
    for _ in range(60):
        last = int(array(plain.decode([0], [last]))[0].argmax())
        expected.append(last)

    runner = load(directory, 0)
    emitted = [int(array(runner.prefill([0], [TOKENS[:30]]))[0].argmax())]
    rng = np.random.default_rng(1)
    accepted = []
    while len(emitted) < 55:
        right = expected[len(emitted) : len(emitted) + 4]
        wrong_from = int(rng.integers(0, 5))
        drafts = [t if i < wrong_from else (t + 1) % 256 for i, t in enumerate(right)]
        logits = array(runner.verify([0], [kvctl.TokenTree.chain([emitted[-1], *drafts])]))
        best = logits.argmax(axis=1)
        count = 0
        while count < len(drafts) and best[count] == drafts[count]:
            count += 1
        accepted.append(count)
        runner.cache.commit([0], [range(count + 1)])
        emitted += [*drafts[:count], int(best[count])]
    assert emitted == expected[: len(emitted)]
    assert 0 in accepted and 4 in accepted


def test_a_stream_longer_than_the_cache(model):
    """A sequence with a window frees pages and has no end; one with layer windows does not."""
    directory, reference = model
    runner = load(directory, 0, max_total_tokens=64, max_sequences=1, prefill_chunk_size=16)
    if not _windowed(runner):
        with pytest.raises(kvctl.OutOfPagesError):
            runner.prefill([0], [(TOKENS * 5)[:500]])
        return
    tokens = (TOKENS * 5)[:500]
    got = array(runner.prefill([0], [tokens]))
    np.testing.assert_allclose(got[0], reference(tokens)[-1], atol=5e-5)


def _windowed(runner):
    return runner.metadata["sliding_window_size"] > 0


def test_sinks_that_fill_the_window_are_refused(tmp_path):
    directory = compile_plain_model(
        tmp_path / "model", sliding_window_size=8, attention_sink_size=8
    )
    with pytest.raises(ValueError, match="window of 8 tokens with 8 attention sinks"):
        kvctl.ModelRunner.load(directory)
