"""Answers and hidden states are the target's, however the collection was interrupted."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import kvctl
from kvctl.heads.training.collect import Prompt, collect
from kvctl.heads.training.dataset import Collection
from kvctl.heads.training.prompts import PromptGrammar, passages
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model
from kvctl.models.checkpoints.safetensors_file import SafetensorsFile

LAYERS = [1, 3, 4, 7]
ROOT = Path(__file__).parents[4]


@pytest.fixture
def asked(prompts):
    return [Prompt(prompt) for prompt in prompts]


def test_hidden_states_are_those_of_a_forward(runner, collection, prompts):
    texts = Collection(collection)
    batch = texts.batch([0, 7, 50])
    answer = kvctl.generate(
        runner,
        prompts[7],
        max_new_tokens=30,
        sampling=kvctl.Sampling(temperature=0.3),
        seed=0,
        request_id=7,
    )
    row = [*prompts[7], *answer.tokens]
    assert batch.tokens[1, : len(row)].tolist() == row
    assert batch.answers[1].nonzero()[0].tolist() == list(range(len(prompts[7]), len(row)))
    runner.cache.add_sequence(0)
    _, hidden = runner.forward([0], [row[:-1]], hidden=LAYERS)
    runner.cache.remove_sequence(0)
    found = batch.hidden[1, : len(row) - 1]
    np.testing.assert_allclose(found, np.from_dlpack(hidden), rtol=2**-8)


def test_a_text_of_two_turns(runner, prompts, tmp_path, monkeypatch):
    """It goes on behind the first stop token, and what follows is the model's own too."""
    options = {"max_new_tokens": 30, "sampling": kvctl.Sampling(temperature=0.3), "request_id": 0}
    whole = kvctl.generate(runner, prompts[0], **options).tokens
    stop = next(token for token in whole[3:] if token not in whole[:3] and whole.count(token) > 1)
    ends = [at for at, token in enumerate(whole) if token == stop]
    monkeypatch.setitem(vars(runner), "stop_tokens", frozenset([stop]))
    for turns in (1, 2):
        folder = tmp_path / str(turns)
        collect(
            runner,
            [Prompt(prompts[0], turns), Prompt(prompts[1], 30)],
            folder,
            layers=LAYERS,
            max_new_tokens=30,
            temperature=0.3,
        )
        texts = Collection(folder)
        batch = texts.batch([0])
        expected = [*prompts[0], *whole[: ends[turns - 1] + 1]]
        assert batch.tokens[0].tolist() == expected
        assert batch.answers[0].sum() == ends[turns - 1] + 1
    with pytest.raises(
        ValueError, match=r"a collection with another max_new_tokens, .*prompts: give"
    ):
        collect(runner, [Prompt(prompts[0]), Prompt(prompts[1])], folder, layers=LAYERS)


def test_an_interrupted_collection_goes_on(runner, collection, asked, tmp_path):
    class Interrupted(Exception):
        pass

    def stop(done, of, tokens):
        raise Interrupted

    options = {"layers": LAYERS, "max_new_tokens": 30, "temperature": 0.3, "shard_size": 48}
    with pytest.raises(Interrupted):
        collect(runner, asked, tmp_path, progress=stop, **options)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == ["answers_00000.safetensors"]
    before = (tmp_path / shards[0]).stat().st_mtime_ns
    collect(runner, asked, tmp_path, **options)
    assert (tmp_path / shards[0]).stat().st_mtime_ns == before
    for path in sorted(collection.glob("*.safetensors")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match=r"a collection with another temperature: give it the"):
        collect(runner, asked, tmp_path, **{**options, "temperature": 0.4})


def test_other_prompts_are_refused(runner, asked, tmp_path):
    """Only the first four were compared once: answers to others came into the same collection."""
    options = {"layers": LAYERS, "max_new_tokens": 4}
    collect(runner, asked[:6], tmp_path, **options)
    collect(runner, asked[:6], tmp_path, **options)
    with pytest.raises(ValueError, match="a collection with another prompts: give it the same"):
        collect(runner, [*asked[:5], asked[6]], tmp_path, **options)


def test_another_models_answers_are_refused(runner, checkpoint, asked, tmp_path):
    """The command alone compared weights once, so a call in Python mixed two models' answers."""
    options = {"layers": LAYERS, "max_new_tokens": 4}
    collect(runner, asked[:2], tmp_path / "answers", **options)
    other = RandomCheckpoint(LlamaConfig(**vars(checkpoint.config)), seed=4)
    other = compile_model(other, tmp_path / "other", hidden_layers=LAYERS)
    with pytest.raises(ValueError, match="a collection with another model: give it the same"):
        collect(kvctl.ModelRunner.load(other), asked[:2], tmp_path / "answers", **options)


def test_answers_that_all_end_at_once(runner, asked, tmp_path, monkeypatch):
    options = {"layers": LAYERS, "max_new_tokens": 9, "temperature": 0.3}
    with monkeypatch.context() as patch:
        patch.setitem(vars(runner), "stop_tokens", frozenset(range(96)))
        assert collect(runner, asked[:3], tmp_path / "none", **options) == 0
        with pytest.raises(ValueError, match="has 0 answers of more than two tokens: collect more"):
            Collection(tmp_path / "none")
        first = next(iter(SafetensorsFile(path) for path in (tmp_path / "none").glob("*.sa*")))
    assert first.shape("hidden") == (0, 4, 64)


def test_enough_is_enough(runner, asked, tmp_path):
    assert collect(runner, asked, tmp_path, layers=LAYERS, enough=lambda: True) == 0
    with pytest.raises(FileNotFoundError, match="has no shards yet"):
        Collection(tmp_path)


@pytest.mark.parametrize("manifest", ["[", "[]", "{}", '{"layers": [1, 3]}'])
def test_a_damaged_manifest_is_named(tmp_path, manifest):
    (tmp_path / "collection.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"collection\.json"):
        Collection(tmp_path)


def test_a_target_without_hidden_states(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="--hidden-layers 1,3,4,7"):
        collect(kvctl.ModelRunner.load(tiny_model), [Prompt([1])], tmp_path, layers=LAYERS)


def test_batches_have_every_text_once(collection):
    texts = Collection(collection)
    assert len(texts.training) + len(texts.held_out) == 60
    assert not set(texts.training) & set(texts.held_out)
    batches = list(texts.batches(texts.training, most=200, seed=1))
    assert sorted(index for batch in batches for index in batch) == texts.training
    assert all(texts.batch(batch).tokens.size <= 200 for batch in batches)
    assert batches == list(texts.batches(texts.training, most=200, seed=1))
    assert batches != list(texts.batches(texts.training, most=200, seed=2))


def test_few_answers(runner, asked, tmp_path):
    options = {"layers": LAYERS, "max_new_tokens": 6}
    collect(runner, asked[:4], tmp_path / "four", **options)
    texts = Collection(tmp_path / "four")
    assert (texts.training, texts.held_out) == ([0, 1, 2], [3])
    collect(runner, asked[:1], tmp_path / "one", **options)
    with pytest.raises(ValueError, match="has 1 answers of more than two tokens: collect more"):
        Collection(tmp_path / "one")


def test_the_most_frequent_tokens(collection):
    texts = Collection(collection)
    seen = np.zeros(96, int)
    for index in texts.training:
        batch = texts.batch([index])
        np.add.at(seen, batch.tokens[batch.answers], 1)
    chosen = texts.frequent_tokens(20)
    assert len(chosen) == 20 and (np.diff(chosen) > 0).all()
    rest = np.setdiff1d(np.arange(96), chosen)
    assert seen[chosen].min() >= seen[rest].max()


def test_the_grammar_makes_no_question_of_the_benchmark():
    made = list(islice(PromptGrammar(0), 6000))
    assert len(set(made)) == 6000
    assert made == list(islice(PromptGrammar(0), 6000))
    lines = (ROOT / "benchmarks/questions/short.jsonl").read_text().splitlines()
    asked = {turn for line in lines for turn in json.loads(line)["turns"]}
    asked |= {path.read_text().strip() for path in (ROOT / "examples/prompts").glob("*.txt")}
    assert len(asked) > 60 and not asked & set(made)


def test_passages_of_texts(tmp_path):
    (tmp_path / "a.md").write_text("\n\n".join(f"paragraph {i} " + "word " * 50 for i in range(9)))
    made = list(passages([tmp_path / "a.md"]))
    assert len(made) == 3
    assert made[0].startswith("Summarize this text:\n\nparagraph 0")
    assert made[1].startswith("Explain this text")
