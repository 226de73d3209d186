"""Models of transformers on the cache on every device: 16-bit models against eager float32 ones.

The CUDA cases need a GPU and a torch that sees it (``pytest -m cuda``).
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl
import kvctl.hf
from devices import DEVICES, require
from hf_models import eager, logits_of, make_model, random_tokens
from runner_conformance import PARENTS, PATHS

pytestmark = [pytest.mark.hf, pytest.mark.parametrize("device", DEVICES)]
# No mixture of experts: with 16 bits its router may choose others.
FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "gpt2"]
#: Relative to the largest logit, about four times what eager 16-bit models miss float32 by.
BOUND = {torch.float16: 0.02, torch.bfloat16: 0.12}
TEXTS = {3: random_tokens(41, 3), 0: random_tokens(1, 4), 7: random_tokens(29, 5)}
DRAFTS = random_tokens(6, 6)


@pytest.fixture(params=BOUND, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def pair(request, device, dtype):
    """A model of heads of 64 on the device, and the same weights in float32."""
    require(device)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a torch that sees the GPU")
    sizes = {"n_embd": 256} if request.param == "gpt2" else {"head_dim": 64, "hidden_size": 256}
    model = make_model(request.param, **sizes).to(dtype)
    reference = eager(model).float()
    return kvctl.hf.ModelRunner(model.to(device), prefill_chunk_size=23), reference


def close(row, reference, text, dtype):
    expected = torch.as_tensor(logits_of(reference, text)[-1])
    assert row.dtype == torch.float32
    assert (row.cpu() - expected).abs().max() <= BOUND[dtype] * expected.abs().max()


def test_prefill_trees_commit_rollback_decode(pair, device, dtype):
    runner, reference = pair
    cache = runner.cache
    assert runner.cache.dtype == str(dtype).removeprefix("torch.")
    for seq_id in TEXTS:
        cache.add_sequence(seq_id)
    rows = runner.prefill(list(TEXTS), list(TEXTS.values()))
    assert rows.device.type == device
    for row, text in zip(rows, TEXTS.values(), strict=True):
        close(row, reference, text, dtype)
    points = {seq_id: cache.checkpoint(seq_id) for seq_id in TEXTS}
    trees = [kvctl.TokenTree(DRAFTS, PARENTS)] * 3
    runner.verify(list(TEXTS), trees)
    cache.commit(list(TEXTS), [[0, 1], [0], []])
    for seq_id, point in points.items():
        cache.rollback(seq_id, point)
    rows = iter(runner.verify(list(TEXTS), trees))
    for text in TEXTS.values():
        for path in PATHS:
            close(next(rows), reference, text + [DRAFTS[node] for node in path], dtype)
    cache.commit(list(TEXTS), [[0, 2, 4]] * 3)
    rows = runner.decode(list(TEXTS), [9, 8, 7])
    kept = [DRAFTS[node] for node in (0, 2, 4)]
    for row, text, token in zip(rows, TEXTS.values(), (9, 8, 7), strict=True):
        close(row, reference, [*text, *kept, token], dtype)


def test_exits_and_hidden_states(pair, dtype):
    runner, reference = pair
    runner.cache.add_sequence(0)
    runner.prefill([0], [TEXTS[7]])
    runner.verify([0], [kvctl.TokenTree(DRAFTS, PARENTS)], layers=range(1))
    rows, states = runner.complete([0], hidden=[2])
    assert states.shape[:2] == (6, 1) and states.dtype == dtype
    for row, path in zip(rows, PATHS, strict=True):
        close(row, reference, TEXTS[7] + [DRAFTS[node] for node in path], dtype)
    runner.cache.commit([0], [[0, 2, 5]])


def test_generation_with_drafts_is_plain_generation(pair):
    """By the target's own logits: they are the same bits on the CPU, and nearly so on a GPU."""
    runner, _ = pair
    prompt = TEXTS[7][:6] * 3
    plain = kvctl.generate(runner, prompt, max_new_tokens=12)
    fast = kvctl.generate(runner, prompt, max_new_tokens=12, drafter=kvctl.draft.LookupDrafter())
    same = sum(a == b for a, b in zip(plain.tokens, fast.tokens, strict=True))
    assert len(plain.tokens) == 12 and same >= 1


def test_work_goes_to_torchs_stream(pair, device, dtype):
    runner, reference = pair
    if device == "cpu":
        pytest.skip("has no streams")
    runner.cache.add_sequence(0)
    with torch.cuda.stream(torch.cuda.Stream()):
        row = runner.prefill([0], [TEXTS[3]])[0]
        torch.cuda.current_stream().synchronize()
    close(row, reference, TEXTS[3], dtype)
