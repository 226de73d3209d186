"""Models of many families under kvctl's cache, against eager transformers of each path."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl
import kvctl.hf
from hf_models import BOUND, FAMILIES, eager, logits_of, make_model, random_tokens
from runner_conformance import PARENTS, PATHS

pytestmark = pytest.mark.hf
TOKENS = random_tokens(120)
# Behind these many tokens windows of 12 hide much of the text.
LENGTHS = {3: 41, 0: 1, 7: 29}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    model = make_model(request.param)
    return model, eager(model)


def close(got, expected):
    torch.testing.assert_close(
        torch.as_tensor(got).float(), torch.as_tensor(expected), rtol=0, atol=BOUND
    )


def test_a_life_of_three_sequences(pair):
    """Prefill in odd chunks, trees, commits, rollback, fork, decode: each row is its path's."""
    model, reference = pair
    runner = kvctl.hf.ModelRunner(model, prefill_chunk_size=23)
    cache = runner.cache
    texts = {seq_id: TOKENS[seq_id : seq_id + n] for seq_id, n in LENGTHS.items()}
    for seq_id in texts:
        cache.add_sequence(seq_id)
    rows = runner.prefill(list(texts), list(texts.values()))
    for row, text in zip(rows, texts.values(), strict=True):
        close(row, logits_of(reference, text)[-1])

    drafts = {7: TOKENS[50:56], 3: TOKENS[60:66], 0: TOKENS[70:76]}
    points = {seq_id: cache.checkpoint(seq_id) for seq_id in texts}
    for _ in range(2):  # after a rollback once more
        trees = [kvctl.TokenTree(tokens, PARENTS) for tokens in drafts.values()]
        rows = iter(runner.verify(list(drafts), trees))
        for seq_id, tokens in drafts.items():
            for path in PATHS:
                text = texts[seq_id] + [tokens[node] for node in path]
                close(next(rows), logits_of(reference, text)[-1])
        cache.commit([0, 3, 7], [[0, 2, 4], [0], [0, 1, 3]])
        runner.decode([3, 7], [5, 6])
        for seq_id, point in points.items():
            cache.rollback(seq_id, point)

    runner.verify(list(drafts), trees)
    cache.commit([0, 3, 7], [[0, 2, 4], [], [0, 1, 3]])
    kept = {0: [0, 2, 4], 3: [], 7: [0, 1, 3]}
    texts = {i: text + [drafts[i][node] for node in kept[i]] for i, text in texts.items()}
    cache.fork_sequence(3, 9, 17)
    texts[9] = texts[3][:17]
    for token in TOKENS[90:93]:
        rows = runner.decode(list(texts), [token] * 4)
        for row, text in zip(rows, texts.values(), strict=True):
            text.append(token)
            close(row, logits_of(reference, text)[-1])
    cache.popn(7, 5)
    new = TOKENS[80:90]
    rows = runner.forward([7], [new])
    close(rows, logits_of(reference, texts[7][:-5] + new)[-10:])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.0025)])
def test_sixteen_bits(pair, dtype, bound):
    """Within a few roundings of the eager model of the same type, relative to the logits."""
    model = eager(pair[0]).to(dtype)
    reference = eager(model)
    runner = kvctl.hf.ModelRunner(model)
    assert runner.cache.dtype == str(dtype).removeprefix("torch.")
    runner.cache.add_sequence(0)
    text = TOKENS[:33]
    runner.prefill([0], [text])
    drafts = TOKENS[60:66]
    rows = runner.verify([0], [kvctl.TokenTree(drafts, PARENTS)])
    assert rows.dtype == torch.float32
    for row, path in zip(rows, PATHS, strict=True):
        expected = torch.as_tensor(logits_of(reference, text + [drafts[node] for node in path])[-1])
        exact = torch.as_tensor(logits_of(pair[1], text + [drafts[node] for node in path])[-1])
        # As near to float32 as eager's own rounding takes it, and a margin.
        spread = (expected - exact).abs().max() + bound * exact.abs().max()
        assert (row - exact).abs().max() <= 2 * spread
