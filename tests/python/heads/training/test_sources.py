"""Prompts of all kinds are in the model's chat template, the same ones for the same seed."""

from __future__ import annotations

import pytest

import kvctl
from kvctl.heads.training.sources import free_prompts, kept_prompts, make_prompts


def test_prompts_of_all_kinds(smollm2, tmp_path):
    runner = kvctl.ModelRunner.load(smollm2)
    (tmp_path / "a.md").write_text("\n\n".join("word " * 50 for _ in range(9)))
    prompts = make_prompts(runner, 20, texts=[tmp_path / "a.md"], free=0.2, seed=4)
    texts = [runner.text.decode(prompt) for prompt in prompts]
    assert 18 <= len(texts) <= 20 and len(set(texts)) == len(texts)
    assert all(text.count("<|im_end|>") <= 2 for text in texts)  # the template's
    assert all("<|im_start|>user\n" in text for text in texts)
    assert all(text.endswith("<|im_start|>assistant\n") for text in texts)
    assert sum("word word" in text for text in texts) == 2
    assert prompts == make_prompts(runner, 20, texts=[tmp_path / "a.md"], free=0.2, seed=4)
    own = free_prompts(runner, 3, seed=4)
    assert len(set(own)) == len(own) and all(any(one in text for text in texts) for one in own[:1])
    with pytest.raises(ValueError, match="must be from 0 to 1, not 2"):
        make_prompts(runner, 3, free=2)


def test_a_collection_keeps_its_prompts_and_no_others(smollm2, tmp_path):
    """Other settings were ignored once: the prompts of the first call were taken again."""
    runner = kvctl.ModelRunner.load(smollm2)
    folder = tmp_path / "answers"
    options = {"texts": (), "free": 0.0, "seed": 4}
    prompts = kept_prompts(folder, smollm2, runner, 20, **options)
    assert [file.name for file in folder.iterdir()] == ["prompts.json"]
    assert prompts == make_prompts(runner, 20, **options)
    assert prompts == kept_prompts(folder, smollm2, runner, 20, **options)
    with pytest.raises(ValueError, match=r"a collection with another count: give it the same"):
        kept_prompts(folder, smollm2, runner, 21, **options)
    with pytest.raises(ValueError, match=r"a collection with another text, free, seed: give"):
        kept_prompts(folder, smollm2, runner, 20, texts=[tmp_path / "a"], free=0.1, seed=5)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tensor-cache.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a collection with another model: give it the same"):
        kept_prompts(folder, other, runner, 20, **options)
    for damage in ("[", "[]", "{}", '{"asked": {}}'):
        (folder / "prompts.json").write_text(damage)
        with pytest.raises(ValueError, match=r"prompts\.json|another"):
            kept_prompts(folder, smollm2, runner, 20, **options)
