"""Speculation does not change the text: plain and speculative generation of the real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kvctl
from kvctl.bench.difference import first_difference
from kvctl.draft import LookupDrafter
from kvctl.text import ModelText

PROMPTS = sorted((Path(__file__).parents[4] / "examples" / "prompts").glob("*.txt"))
TOKENS = int(os.environ.get("KVCTL_TEST_TOKENS", "24"))  # per prompt
# Fixed lengths, because an adaptive one depends on this machine's timings.
DRAFTERS = {
    "tree": lambda: LookupDrafter(length=5),
    "chain": lambda: LookupDrafter(length=8, branches=False),
}
# Trees on every prompt, chains where drafts are long.
CASES = [(path, "tree") for path in PROMPTS]
CASES += [(path, "chain") for path in PROMPTS if path.stem.startswith("copy")]


@pytest.fixture(scope="session")
def runner(smollm2):
    return kvctl.ModelRunner.load(smollm2)


@pytest.fixture(scope="session")
def text(smollm2):
    return ModelText.load(smollm2)


@pytest.fixture(scope="session")
def plain(runner, text):
    """Prompt tokens and plain greedy tokens by prompt, made once."""
    known = {}

    def of(path):
        if path not in known:
            prompt = text.encode_chat(path.read_text().strip())
            known[path] = prompt, kvctl.generate(runner, prompt, max_new_tokens=TOKENS).tokens
        return known[path]

    return of


def test_prompts_are_of_different_kinds():
    kinds = [path.stem.split("_")[0] for path in PROMPTS]
    assert len(PROMPTS) >= 20
    assert min(kinds.count(kind) for kind in ("chat", "code", "copy")) >= 6


@pytest.fixture(scope="session")
def accepted():
    """Accepted drafts by prompt and drafter: a run that accepts none would pass everything."""
    return {}


@pytest.mark.parametrize(("path", "how"), CASES, ids=lambda case: getattr(case, "stem", case))
def test_greedy(runner, plain, accepted, path, how):
    prompt, expected = plain(path)
    assert len(expected) == TOKENS
    generation = kvctl.generate(runner, prompt, max_new_tokens=TOKENS, drafter=DRAFTERS[how]())
    accepted[path, how] = sum(generation.statistics.accepted)
    difference = first_difference(runner, prompt, expected, generation.tokens)
    assert difference is None or difference.is_tie, difference
    if difference is not None:
        print(f"{path.stem}: a tie at token {difference.index}: {difference}")


def test_drafts_were_accepted(accepted):
    if not accepted:
        pytest.skip("test_greedy has not run")
    assert sum(count for (_, how), count in accepted.items() if how == "chain") > 30


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampled(runner, plain, seed):
    path = next(path for path in PROMPTS if path.stem == "copy_edit")
    prompt, _ = plain(path)
    options = {
        "max_new_tokens": TOKENS,
        "sampling": kvctl.Sampling(temperature=0.7, top_p=0.95),
        "seed": seed,
    }
    expected = kvctl.generate(runner, prompt, **options)
    drafter = DRAFTERS["tree"]()
    assert kvctl.generate(runner, prompt, drafter=drafter, **options).tokens == expected.tokens


def test_adaptive_length(runner, plain):
    """Whatever lengths this machine's timings lead to."""
    drafter = LookupDrafter()
    for name in ("copy_edit", "open"):
        prompt, expected = plain(next(path for path in PROMPTS if path.stem == name))
        generation = kvctl.generate(runner, prompt, max_new_tokens=TOKENS, drafter=drafter)
        difference = first_difference(runner, prompt, expected, generation.tokens)
        assert difference is None or difference.is_tie, difference
