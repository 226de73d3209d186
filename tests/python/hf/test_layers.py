"""Hidden states and parts of the layers, against transformers' own hidden states."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl
import kvctl.hf
from hf_models import BOUND, FAMILIES, eager, logits_of, make_model, random_tokens
from runner_conformance import PARENTS, PATHS

pytestmark = pytest.mark.hf
TEXT = random_tokens(30, 5)
DRAFTS = random_tokens(6, 6)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    model = make_model(request.param)
    return model, eager(model)


def shortened(model, layers):
    """A copy of the model that has the first layers only."""
    short = eager(model)
    parts = {n: m for n, m in short.named_modules() if isinstance(m, torch.nn.ModuleList)}
    name = next(n for n, m in parts.items() if len(m) == short.config.num_hidden_layers)
    parent, _, child = name.rpartition(".")
    setattr(short.get_submodule(parent), child, parts[name][:layers])
    short.config.num_hidden_layers = layers
    return short


def start(model, **options):
    runner = kvctl.hf.ModelRunner(model, **options)
    runner.cache.add_sequence(0)
    runner.prefill([0], [TEXT])
    return runner


def close(got, expected):
    expected = torch.as_tensor(expected)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(torch.as_tensor(got), expected, rtol=0, atol=scale * BOUND)


def text_of(path):
    return TEXT + [DRAFTS[node] for node in path]


def test_hidden_states_of_a_tree(pair):
    model, reference = pair
    runner = start(model)
    assert runner.abilities == {"embed", "hidden", "layers"}
    last = model.config.num_hidden_layers - 1
    logits, states = runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)], hidden=[last - 1, 0])
    assert states.shape == (6, 2, 64) and logits.shape == (6, 256)
    runner.cache.abort([0])
    again, final = runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)], hidden=True)
    assert torch.equal(again, logits) and final.shape == (6, 1, 64)
    for row, path in enumerate(PATHS):
        with torch.no_grad():
            out = reference(torch.tensor([text_of(path)]), output_hidden_states=True)
        close(logits[row], logits_of(reference, text_of(path))[-1])
        for i, layer in enumerate((last - 1, 0)):
            close(states[row, i], out.hidden_states[layer + 1][0, -1])
        close(final[row, 0], out.hidden_states[-1][0, -1])


def test_an_exit_is_the_shorter_model(pair):
    model, _ = pair
    reference = shortened(model, 2)
    runner = start(model)
    rows = runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)], layers=range(2))
    for row, path in enumerate(PATHS):
        close(rows[row], logits_of(reference, text_of(path))[-1])
    assert runner.cache.pending_length(0) == 6
    with pytest.raises(ValueError):
        runner.cache.commit([0], [[0, 1]])
    runner.cache.abort([0])
    rows = runner.decode([0], [7])
    close(rows[0], logits_of(eager(model), [*TEXT, 7])[-1])


def test_rows_completed_are_the_whole_models(pair):
    """Drafted token by token at an exit, then completed, committed and gone on from."""
    model, reference = pair
    runner = start(model)
    for node, parent in enumerate(PARENTS):
        mask = kvctl.Mask.tree([*PARENTS[:node], parent])
        runner.forward([0], [[DRAFTS[node]]], mask=mask, layers=range(1))
    with pytest.raises(ValueError, match="ran 1 layers"):
        runner.forward([0], [[1]], mask=kvctl.Mask.tree([*PARENTS, 0]))
    rows, states = runner.complete([0], hidden=[1])
    for row, path in enumerate(PATHS):
        close(rows[row], logits_of(reference, text_of(path))[-1])
    assert states.shape == (6, 1, 64)
    runner.cache.commit([0], [[0, 2, 5]])
    rows = runner.decode([0], [9])
    close(rows[0], logits_of(reference, [*text_of([0, 2, 5]), 9])[-1])
    with pytest.raises(ValueError, match="no pending rows"):
        runner.complete([0])


def test_two_sequences_are_completed_together():
    model = make_model("llama")
    reference = eager(model)
    runner = start(model, prefill_chunk_size=8)
    runner.cache.add_sequence(1)
    runner.prefill([1], [TEXT[:9]])
    trees = [kvctl.TokenTree(DRAFTS, PARENTS), kvctl.TokenTree.chain(DRAFTS[:4])]
    runner.verify([0, 1], trees, layers=range(2))
    runner.cache.popn(0, 1)  # the last node of the first tree
    rows = runner.complete([1, 0])
    assert len(rows) == 9
    for n in range(4):
        close(rows[n], logits_of(reference, TEXT[:9] + DRAFTS[: n + 1])[-1])
    for row, path in enumerate(PATHS[:5]):
        close(rows[4 + row], logits_of(reference, text_of(path))[-1])
    runner.cache.commit([0, 1], [[0, 2, 4], [0]])
    rows = runner.decode([0, 1], [8, 9])
    close(rows[0], logits_of(reference, [*text_of([0, 2, 4]), 8])[-1])
    close(rows[1], logits_of(reference, [*TEXT[:9], DRAFTS[0], 9])[-1])


def test_rows_under_other_masks_and_positions_are_completed():
    model = make_model("llama")
    runner = start(model)
    seen = np.ones((4, 34), bool)
    seen[:, 3:9] = False
    seen[:, 30:] = np.tril(np.ones((4, 4), bool))
    options = {"mask": kvctl.Mask.full(seen), "positions": [[40, 41, 42, 43]], "pending": True}
    expected = runner.forward([0], [DRAFTS[:4]], **options)
    runner.cache.abort([0])
    runner.forward([0], [DRAFTS[:4]], layers=range(1), **options)
    close(runner.complete([0]), expected)
    assert runner.cache.pending_length(0) == 4


def test_a_failure_while_completing_changes_nothing():
    model = make_model("llama")
    runner = start(model)
    tree = kvctl.TokenTree(DRAFTS, PARENTS)
    runner.verify([0], [tree], layers=range(1))

    def fail(module, inputs):
        raise FloatingPointError("the model broke")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(fail)
    with pytest.raises(FloatingPointError):
        runner.complete([0])
    handle.remove()
    assert runner.cache.pending_length(0) == 6
    rows = runner.complete([0])
    close(rows[3], logits_of(eager(model), text_of(PATHS[3]))[-1])


def test_what_is_refused():
    runner = start(make_model("llama"))
    tree = kvctl.TokenTree(DRAFTS, PARENTS)
    for layers in (range(1, 3), range(0), range(9), range(0, 3, 2), [0, 1]):
        with pytest.raises(ValueError, match="layers must"):
            runner.verify([0], [tree], layers=layers)
    for hidden in ([3], [], [-4]):
        with pytest.raises(ValueError, match="hidden must be layers of"):
            runner.verify([0], [tree], hidden=hidden)
    with pytest.raises(ValueError, match="hidden must be layers of"):
        runner.verify([0], [tree], hidden=[2], layers=range(2))
    assert runner.cache.pending_length(0) == 0
    runner.verify([0], [tree])
    with pytest.raises(ValueError, match="ran all layers"):
        runner.forward([0], [[1]], mask=kvctl.Mask.tree([*PARENTS, 0]), layers=range(1))
    with pytest.raises(ValueError, match="no pending rows"):
        runner.complete([0])


def test_rows_that_would_be_no_tree_are_refused_before_they_run():
    runner = start(make_model("llama"))
    mask = kvctl.Mask.full(np.ones((2, 32), bool))
    runner.forward([0], [DRAFTS[:2]], mask=mask, layers=range(1), pending=True)
    with pytest.raises(ValueError, match="only a tree of such rows grows"):
        runner.forward([0], [DRAFTS[2:3]], mask=kvctl.Mask.causal(), layers=range(1))
    assert runner.cache.pending_length(0) == 2
    assert runner.complete([0]).shape == (2, 256)


def test_stale_rows_are_not_completed():
    """Rows were aborted, and others of as many tokens came that ran all layers."""
    runner = start(make_model("llama"))
    runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)], layers=range(1))
    runner.cache.abort([0])
    runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)])
    with pytest.raises(ValueError, match="no pending rows"):
        runner.complete([0])
