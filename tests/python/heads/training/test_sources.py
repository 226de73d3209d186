"""Prompts of all kinds are in the model's chat template, the same ones for the same seed."""

from __future__ import annotations

import pytest

import kvctl
from kvctl.heads.training.sources import make_prompts


def test_prompts_of_all_kinds(smollm2, tmp_path):
    runner = kvctl.ModelRunner.load(smollm2)
    (tmp_path / "a.md").write_text("\n\n".join("word " * 50 for _ in range(9)))
    prompts = make_prompts(runner, 20, texts=[tmp_path / "a.md"], free=0.2, seed=4)
    texts = [runner.text.decode(prompt.tokens) for prompt in prompts if prompt.turns == 1]
    assert len(prompts) == 20 and len(texts) == 16 and len(set(texts)) == len(texts)
    assert all(text.count("<|im_end|>") == 2 for text in texts)  # the template's
    assert all("<|im_start|>user\n" in text for text in texts)
    assert all(text.endswith("<|im_start|>assistant\n") for text in texts)
    assert sum("word word" in text for text in texts) == 2
    free = [runner.text.decode(prompt.tokens) for prompt in prompts if prompt.turns == 2]
    assert len(free) == 4 and all(text.endswith("<|im_start|>user\n") for text in free)
    assert prompts == make_prompts(runner, 20, texts=[tmp_path / "a.md"], free=0.2, seed=4)
    with pytest.raises(ValueError, match="must be from 0 to 1, not 2"):
        make_prompts(runner, 3, free=2)


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_prompts_of_one_kind(smollm2, free):
    prompts = make_prompts(kvctl.ModelRunner.load(smollm2), 5, free=free)
    assert [prompt.turns for prompt in prompts] == [2 if free else 1] * 5
