"""kvctl.torch.ModelRunner: a runner as every other, of a decoder in plain torch."""

import importlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[torch]'")

import kvctl
import kvctl.torch
from runner_conformance import RunnerConformance

pytestmark = pytest.mark.torch


@pytest.fixture
def decoder(monkeypatch):
    """The example's decoder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples" / "torch"))
    yield importlib.import_module("decoder")
    sys.modules.pop("decoder", None)


@pytest.fixture
def runner(decoder):
    torch.manual_seed(0)
    cache = decoder.make_cache(prefill_chunk_size=16)
    return kvctl.torch.ModelRunner(
        decoder.Decoder(), cache, vocab_size=decoder.VOCAB, context_window_size=1000
    )


class TestConformance(RunnerConformance):
    pass


@pytest.mark.parametrize("name", ["lookup", "suffix", "recycling"])
def test_every_drafter_gives_the_greedy_text(runner, name):
    prompt = [5, 17, 200, 31, 5, 17, 8, 99, 120, 31, 5, 17, 200]
    plain = kvctl.generate(runner, prompt, max_new_tokens=40).tokens
    drafter = {
        "lookup": kvctl.draft.LookupDrafter,
        "suffix": kvctl.draft.SuffixDrafter,
        "recycling": kvctl.draft.TokenRecyclingDrafter,
    }[name]()
    assert kvctl.generate(runner, prompt, max_new_tokens=40, drafter=drafter).tokens == plain
    assert runner.cache.empty


def test_a_batch_in_chunks_is_as_each_alone(runner):
    prompts = {3: list(range(40)), 1: [7], 2: list(range(90, 107))}
    for seq_id in prompts:
        runner.cache.add_sequence(seq_id)
    together = runner.prefill([*prompts], [*prompts.values()])
    for row, prompt in zip(together, prompts.values(), strict=True):
        runner.cache.add_sequence(0)
        assert (runner.prefill([0], [prompt])[0] - row).abs().max() < 2e-5
        runner.cache.remove_sequence(0)


def test_a_compiled_model(runner):
    torch.compiler.reset()
    compiled = torch.compile(runner.model, fullgraph=True, backend="aot_eager")
    other = kvctl.torch.ModelRunner(compiled, runner.cache, vocab_size=runner.vocab_size)
    prompt = list(range(30))
    drafter = kvctl.draft.LookupDrafter(length=3)
    fast = kvctl.generate(other, prompt, max_new_tokens=20, drafter=drafter)
    assert fast.tokens == kvctl.generate(runner, prompt, max_new_tokens=20).tokens
    torch.compiler.reset()


def test_dropout_never_changes_logits(runner):
    """The runner takes a module out of training mode, and notices when it is put back."""
    prompt = list(range(12))
    assert not runner.model.training  # which a module is in when it is made
    tokens = kvctl.generate(runner, prompt, max_new_tokens=4).tokens
    runner.model.train()
    with pytest.raises(RuntimeError, match="Decoder has been put into training mode"):
        kvctl.generate(runner, prompt, max_new_tokens=4)
    assert runner.cache.empty
    runner.model.eval()
    assert kvctl.generate(runner, prompt, max_new_tokens=4).tokens == tokens


def test_what_it_was_told(decoder):
    options = {"vocab_size": decoder.VOCAB, "context_window_size": 20, "stop_tokens": [7, 9]}
    runner = kvctl.torch.ModelRunner(decoder.Decoder(), decoder.make_cache(), **options)
    assert runner.stop_tokens == {7, 9}
    assert runner.context_window_size == 20
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        _ = runner.text
    runner.cache.add_sequence(0)
    with pytest.raises(ValueError, match="context window of 20 tokens"):
        runner.prefill([0], [range(21)])


def test_a_prompt_beyond_the_pages_changes_nothing(decoder):
    cache = decoder.make_cache(prefill_chunk_size=64)
    runner = kvctl.torch.ModelRunner(decoder.Decoder(), cache, vocab_size=decoder.VOCAB)
    cache.add_sequence(0)
    with pytest.raises(kvctl.OutOfPagesError, match="65 more pages of 16 tokens"):
        runner.prefill([0], [[1] * 1025])
    assert cache.sequence_length(0) == 0


def test_a_model_that_returns_something_else(decoder):
    runner = kvctl.torch.ModelRunner(decoder.Decoder(), decoder.make_cache(), vocab_size=300)
    runner.cache.add_sequence(0)
    with pytest.raises(ValueError, match=r"must return logits \(2, 300\) .* got \(2, 256\)"):
        runner.prefill([0], [[1, 2]])
    assert runner.cache.sequence_length(0) == 0
