"""Drafters on runners of transformers: every text is the plain one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl
import kvctl.hf
from hf_models import make_model, random_tokens
from kvctl import draft

pytestmark = pytest.mark.hf
PROMPTS = [random_tokens(6, 1) * 4, random_tokens(9, 2), random_tokens(3, 3)]
MAKE = {
    "lookup": lambda runner: draft.LookupDrafter(length=4),
    "suffix": lambda runner: draft.SuffixDrafter(),
    "lookahead": lambda runner: draft.LookaheadDrafter(),
    "jacobi": lambda runner: draft.JacobiDrafter(),
    "recycling": lambda runner: draft.TokenRecyclingDrafter(),
    "model": lambda runner: draft.ModelDrafter(runner, length=3),
    "tree": lambda runner: draft.ModelDrafter(runner, length=3, branching=(3, 2, 1)),
    "mixed": lambda runner: draft.LookupDrafter() | draft.ModelDrafter(runner, length=2),
}


@pytest.fixture(scope="module")
def target():
    return kvctl.hf.ModelRunner(make_model("gemma3"), max_sequences=6)


@pytest.fixture
def small():
    """Another family, of fewer layers, of the same vocabulary."""
    return kvctl.hf.ModelRunner(make_model("qwen3", num_hidden_layers=1), max_sequences=6)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("sampling", [None, kvctl.Sampling(temperature=0.8, top_k=20)])
def test_texts_are_the_plain_ones(target, small, name, sampling):
    options = {"max_new_tokens": 16, "sampling": sampling, "seed": 5}
    for prompt in PROMPTS:
        plain = kvctl.generate(target, prompt, **options)
        fast = kvctl.generate(target, prompt, drafter=MAKE[name](small), **options)
        assert fast.tokens == plain.tokens
    together = kvctl.generate(target, PROMPTS, drafter=MAKE[name](small), **options)
    assert len(together) == 3
    assert target.cache.empty


def test_a_drafter_that_reads_hidden_states(target):
    class Reader(draft.Drafter):
        hidden_layers = (0, 2)

        def __init__(self):
            self.shapes = []

        def start(self, request):
            self.shapes.append(tuple(request.prompt_hidden.shape))

        def propose(self, requests, budget):
            return [
                draft.Draft(kvctl.TokenTree.chain([one.root, 7, 8][: 1 + one.limit]))
                for one in requests
            ]

        def observe(self, results):
            self.shapes += [tuple(one.hidden.shape) for one in results]

    plain = kvctl.generate(target, PROMPTS[0], max_new_tokens=6)
    reader = Reader()
    fast = kvctl.generate(target, PROMPTS[0], max_new_tokens=6, drafter=reader)
    assert fast.tokens == plain.tokens
    assert reader.shapes[0] == (24, 2, 64)
    assert all(shape[1:] == (2, 64) for shape in reader.shapes)


def test_a_draft_through_an_exit_of_the_model_itself(target):
    """Layers [0, 1) draft, and complete verifies: the same rows, with the other layers."""
    cache, prompt = target.cache, PROMPTS[1]
    plain = kvctl.generate(target, prompt, max_new_tokens=12).tokens
    cache.add_sequence(0)
    root = int(target.prefill([0], [prompt])[0].argmax())
    tokens = [root]
    while len(tokens) < 12:
        rows = [tokens[-1]]
        for depth in range(3):
            mask = kvctl.Mask.tree(list(range(-1, depth)))
            logits = target.forward([0], [rows[-1:]], mask=mask, layers=range(1))
            rows.append(int(logits[0].argmax()))
        tree = kvctl.TokenTree.chain(rows[:3])
        result = kvctl.verify(target.complete([0]), [tree], rule="greedy", drawn="deterministic",
                              sampling=kvctl.Sampling(temperature=0.0))  # fmt: skip
        cache.commit([0], result.kept)
        tokens += result.tokens[0]
    cache.remove_sequence(0)
    assert tokens[:12] == plain
