"""Verification of processed logits, and drafting, on every device: the decisions of the CPU.

CUDA cases need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the
CPU.
"""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from devices import DEVICES, fetch, put, require
from kvctl import TokenTree

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _device(device):
    require(device)


PROCESSING = {
    "top_k": kvctl.Sampling(top_k=7),
    "top_p": kvctl.Sampling(temperature=0.8, top_p=0.6),
    "min_p": kvctl.Sampling(min_p=0.2),
    "penalties": kvctl.Sampling(
        repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2
    ),
    "bias": kvctl.Sampling(logit_bias={3: 2.0, 250: -1.0}),
    "all": kvctl.Sampling(
        temperature=1.2,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        frequency_penalty=0.1,
        logit_bias={9: 1.0},
    ),
    "greedy": kvctl.Sampling(temperature=0, repetition_penalty=2.0),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("processing", PROCESSING)
def test_verification_of_processed_logits_decides_as_on_the_cpu(device, processing, masked):
    rng = np.random.default_rng(12)
    vocab, parents = 300, [-1, 0, 0, 1, 1, 0]
    trees = [TokenTree([int(t) for t in rng.integers(0, vocab, 6)], parents) for _ in range(4)]
    logits = rng.standard_normal((24, vocab)) * 3
    words = rng.integers(-(2**31), 2**31, (24, 10)).astype(np.int32) | 0x11111111
    words[:, 9] &= 0xFFF
    draft_probs = rng.random((24, vocab)).astype(np.float32)
    draft_probs /= draft_probs.sum(axis=1, keepdims=True)
    for rule in ("target_only", "recursive", "traversal"):
        results = []
        for where in ["cpu", device]:
            results.append(
                kvctl.verify(
                    put(logits, where, "bfloat16"),
                    trees,
                    rule=rule,
                    drawn="independent",
                    draft_probs=put(draft_probs, where),
                    sampling=PROCESSING[processing],
                    history=[[1, 2, 3, 3]] * 4,
                    bitmask=put(words, where) if masked else None,
                    seed=4,
                    request_ids=range(4),
                    root_positions=range(4),
                    log_probs=True,
                )
            )
        want, got = results
        assert [list(x) for x in got.tokens] == [list(x) for x in want.tokens]
        assert [list(x) for x in got.log_probs] == [list(x) for x in want.log_probs]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ["deterministic", "independent", "without_replacement", "coupled"])
def test_drafts_are_drawn_as_on_the_cpu(device, how, dtype):
    rng = np.random.default_rng(13)
    logits = rng.standard_normal((5, 300)) * 3
    samplings = [
        kvctl.Sampling(),
        kvctl.Sampling(top_p=0.5),
        kvctl.Sampling(temperature=0),
        kvctl.Sampling(top_k=2),
        kvctl.Sampling(temperature=0.5, logit_bias={7: 4.0}),
    ]
    want, got = (
        kvctl.draft.sample(
            put(logits, where, "float16"),
            how=how,
            n=3,
            sampling=samplings,
            seed=6,
            request_ids=range(5),
            root_positions=range(5, 10),
            dtype=dtype,
        )
        for where in ["cpu", device]
    )
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(fetch(got.probs), want.probs)


def test_drafts_of_the_device_are_verified_there(device):
    rng = np.random.default_rng(14)
    logits = put(rng.standard_normal((1, 50)) * 2, device, "float32")
    drawn = kvctl.draft.sample(
        logits, how="independent", seed=1, request_ids=[0], root_positions=[9]
    )
    rows = put(np.repeat(fetch(drawn.probs), 2, axis=0), device, "float32")
    result = kvctl.verify(
        put(np.repeat(fetch(logits), 2, axis=0), device, "float32"),
        TokenTree.chain([1, int(drawn.tokens[0, 0])]),
        rule="token_wise",
        drawn=drawn.drawn,
        draft_probs=rows,
        seed=1,
        request_ids=[0],
        root_positions=[9],
    )
    assert len(result.accepted_nodes[0]) == 1  # the same distribution
    logits = put(np.full((1, 50), np.nan), device, "float32")
    with pytest.raises(ValueError, match="no token is left"):
        kvctl.draft.sample(logits, how="deterministic")
