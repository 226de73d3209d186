"""Views of PyTorch tensors in every argument: as their contiguous copies, whatever the strides."""

import numpy as np
import pytest

import kvctl

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch

VOCAB = 64
CHAIN = kvctl.TokenTree.chain([1, 2, 3])
NAMED = dict(seed=1, request_ids=[0], root_positions=[0])


def views(rows, columns, make):
    """Views of (rows, columns) whose strides differ; `make` returns values of a shape."""
    return {
        "slice": make((rows, columns + 10))[:, :columns],
        "from the middle": make((rows, columns + 10))[:, 5 : 5 + columns],
        "every other row": make((2 * rows, columns))[::2],
        "every other column": make((rows, 2 * columns))[:, ::2],
        "transposed": make((columns, rows)).T,
        "one row, expanded": make((1, columns)).expand(rows, columns),
        "of three axes": make((rows, 2, columns))[:, 1],
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits(dtype):
    torch.manual_seed(0)
    for name, view in views(3, VOCAB, torch.randn).items():
        view = view.to(getattr(torch, dtype)) if dtype != "float32" else view
        copy = view.contiguous().clone()
        options = dict(rule="target_only", drawn="deterministic", log_probs=True, **NAMED)
        got, want = (kvctl.verify(x, CHAIN, **options) for x in (view, copy))
        assert got.tokens == want.tokens, name
        np.testing.assert_array_equal(got.log_probs[0], want.log_probs[0])
        named = dict(seed=3, request_ids=[0, 1, 2], positions=[0, 0, 0])
        np.testing.assert_array_equal(kvctl.sample(view, **named), kvctl.sample(copy, **named))
        np.testing.assert_array_equal(kvctl.target_probs(view), kvctl.target_probs(copy))
        drawn = [
            kvctl.draft.sample(
                x,
                how="independent",
                n=2,
                **{"seed": 3, "request_ids": [0, 1, 2], "root_positions": [0, 0, 0]},
            )
            for x in (view, copy)
        ]
        np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)


def test_draft_probs_and_masks():
    torch.manual_seed(0)
    logits = torch.randn(3, VOCAB)
    probs = views(3, VOCAB, lambda shape: torch.rand(shape) + 0.1)
    masks = views(3, 2, lambda shape: torch.randint(-(2**31), 2**31, shape, dtype=torch.int32))
    for (name, p), mask in zip(probs.items(), masks.values(), strict=True):
        if "expanded" in name:
            p, mask = (p[:1] / p[:1].sum()).expand(p.shape), (mask[:1] | 14).expand(mask.shape)
        else:
            p /= p.sum(-1, keepdim=True)
            mask |= 14  # the drafted tokens are allowed
        results = [
            kvctl.verify(
                logits,
                CHAIN,
                rule="token_wise",
                drawn="independent",
                draft_probs=q,
                bitmask=m,
                **NAMED,
            )
            for q, m in ((p, mask), (p.contiguous().clone(), mask.contiguous().clone()))
        ]
        assert results[0].tokens == results[1].tokens, name


def test_gradients_do_not_matter():
    logits = torch.randn(3, VOCAB, requires_grad=True)
    options = dict(rule="greedy", drawn="deterministic")
    got = kvctl.verify(logits, CHAIN, **options)
    assert got.tokens == kvctl.verify(logits.detach(), CHAIN, **options).tokens


def test_tokens_and_matrices():
    tree = kvctl.TokenTree(torch.tensor([1, 9, 2, 9, 3])[::2], torch.tensor([-1, 0, 0]))
    assert tree == kvctl.TokenTree([1, 2, 3], [-1, 0, 0])
    seen = torch.zeros(4, 4, dtype=torch.bool)
    seen[0, 2] = True
    dense = kvctl.Mask.dense(seen[::2, ::2])
    assert dense == kvctl.Mask.dense(np.array([[False, True], [False, False]]))
    assert kvctl.Mask.full(seen.T).to_numpy(4, 4)[2, 0]
