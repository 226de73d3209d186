"""Compiled heads draft for a compiled target: texts stay plain, and the cache is in step."""

from __future__ import annotations

import numpy as np
import pytest

import head_files
import kvctl
from drafters import Verified
from head_checkpoint import write_head
from kvctl.draft import Draft, HeadDrafter, LookupDrafter
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model

LAYERS = {"eagle": [7], "eagle3": [1, 3, 4], "eagle3_speculators": [1, 4, 6], "medusa": [7]}
LAYERS |= {"mtp_mimo": [7], "mtp_deepseek": [7]}
OPTIONS = [
    {"length": 3},
    {"branching": 4, "beam": 3, "length": 3, "nodes": 8},
    {"branching": (2, 1), "length": 2, "how": "without_replacement"},
]
SAMPLING = kvctl.Sampling(temperature=0.7, top_k=12)


class InStep(Verified, HeadDrafter):
    """Before each draft: the head's cache is that of a fresh prefill, bit for bit."""

    def __init__(self, head, target, **options):
        super().__init__(head, **options)
        self.head, self.target, self.checks = head, target, 0

    def propose(self, requests, budget):
        drafts = super().propose(requests, budget)
        self._heads.drop_pending(requests)
        for request in requests:
            if request in self._heads and not self._heads._texts[request.id].tokens:
                self.check(self._heads.id_of(request), list(request.tokens))
        return drafts

    def check(self, id, tokens):
        target, head = self.target, self.head
        target.cache.add_sequence(77)
        _, hidden = target.forward([77], [tokens[:-1]], hidden=self.hidden_layers)
        target.cache.remove_sequence(77)
        head.cache.fork_sequence(id, 97)
        head.cache.add_sequence(98)
        features = head.features(np.from_dlpack(hidden))
        after = head.forward([98], [tokens[1:]], features)
        mine, fresh = (head.forward([one], [[5]], after[-1:]) for one in (97, 98))
        np.testing.assert_array_equal(mine, fresh)
        head.cache.remove_sequence(97)
        head.cache.remove_sequence(98)
        self.checks += 1


@pytest.fixture(scope="module")
def checkpoint(target):
    return RandomCheckpoint(LlamaConfig(**vars(target.config)), seed=3)


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    layers = sorted({layer for some in LAYERS.values() for layer in some})
    return compile_model(checkpoint, tmp_path_factory.mktemp("target"), hidden_layers=layers)


@pytest.fixture(scope="module")
def runner(model):
    return kvctl.ModelRunner.load(model, max_sequences=4)


@pytest.fixture(scope="module")
def checker(model):
    return kvctl.ModelRunner.load(model)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, head_files.VOCAB, n).tolist() for n in (5, 40, 17, 2, 9)]


@pytest.fixture(scope="module", params=list(LAYERS))
def head(request, checkpoint, tmp_path_factory):
    from kvctl.heads import load
    from kvctl.heads.compile import compile_head

    folder = tmp_path_factory.mktemp(request.param)
    source = write_head(folder / "head", request.param)
    return load(compile_head(source, folder / "compiled", target_model=checkpoint))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sampling", [None, SAMPLING], ids=["greedy", "sampled"])
def test_texts_are_plain_and_the_cache_is_in_step(
    runner, checker, head, prompts, options, sampling
):
    settings = {"sampling": sampling, "seed": [4, 5, 6, 7, 8], "max_new_tokens": [20, 9, 30, 25, 2]}
    expected = [text.tokens for text in kvctl.generate(runner, prompts, **settings)]
    medusa = not hasattr(head, "cache")
    drafter = head.drafter() if medusa else InStep(head, checker, **options)
    got = kvctl.generate(runner, prompts, drafter=drafter, **settings)
    assert [text.tokens for text in got] == expected
    assert medusa or drafter.checks > 5
    assert medusa or not any(id in head.cache for id in range(16))


class Leaving(InStep):
    """Leaves out two rounds of three, as where others promise more."""

    rounds = 0

    def propose(self, requests, budget):
        self.rounds += 1
        if self.rounds % 3:
            self._trees = {}
            return [Draft.nothing(request.root) for request in requests]
        return super().propose(requests, budget)


def test_beside_another_drafter_a_head_catches_up(runner, checker, head, prompts):
    if not hasattr(head, "cache"):
        pytest.skip("Medusa's heads have no cache")
    settings = {"sampling": SAMPLING, "seed": [4, 5, 6, 7, 8], "max_new_tokens": 30}
    expected = [text.tokens for text in kvctl.generate(runner, prompts, **settings)]
    drafter = Leaving(head, checker, length=3)
    mixed = drafter | LookupDrafter(length=4)
    got = kvctl.generate(runner, prompts, drafter=mixed, **settings)
    assert [text.tokens for text in got] == expected
    assert drafter.checks > 5


def test_a_head_says_which_targets_it_fits(runner, head, tiny_model):
    head.check_target(runner)
    with pytest.raises(ValueError, match="a vocabulary of 96 tokens, and the model has 256"):
        head.check_target(kvctl.ModelRunner.load(tiny_model))


def test_a_target_without_hidden_states(checkpoint, head, tmp_path):
    plain = kvctl.ModelRunner.load(compile_model(checkpoint, tmp_path / "plain"))
    with pytest.raises(ValueError, match="compile it with --hidden-layers"):
        head.check_target(plain)
