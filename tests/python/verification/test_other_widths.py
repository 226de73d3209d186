"""Inputs of another width, layout or vocabulary than the logits."""

import numpy as np
import pytest

import kvctl

VOCAB = 70
CHAIN = kvctl.TokenTree.chain([1, 2])
GREEDY = dict(rule="greedy", drawn="deterministic")


def logits_with(tokens):
    logits = np.zeros((len(tokens), VOCAB), np.float32)
    logits[np.arange(len(tokens)), tokens] = 9
    return logits


def test_a_bitmask_as_wide_as_the_tokenizer():
    logits = logits_with([2, 66])
    logits[1, 40] = 8
    bitmask = np.full((2, 2), -1, np.int32)  # 64 tokens
    assert kvctl.verify(logits, CHAIN, bitmask=bitmask, **GREEDY).tokens == [[2, 40]]
    assert kvctl.sample(
        logits[1:], sampling=kvctl.Sampling(temperature=0), bitmask=bitmask[1:]
    ) == [40]


def test_a_bitmask_wider_than_the_logits():
    logits = logits_with([2, 66])
    bitmask = np.zeros((2, 5), np.int32)
    bitmask[:, :3] = -1
    assert kvctl.verify(logits, CHAIN, bitmask=bitmask, **GREEDY).tokens == [[2, 66]]
    bitmask[1, 4] = 1
    with pytest.raises(ValueError, match="bitmask row 1 allows tokens in word 4, but the 70"):
        kvctl.verify(logits, CHAIN, bitmask=bitmask, **GREEDY)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_torch_slice_of_logits(dtype):
    torch = pytest.importorskip("torch")
    wide = torch.zeros((2, VOCAB + 10), dtype=getattr(torch, dtype))
    wide[0, 2] = wide[1, 66] = 9
    wide[:, VOCAB:] = 20
    part = wide[:, :VOCAB]
    assert not part.is_contiguous()
    assert kvctl.verify(part, CHAIN, **GREEDY).tokens == [[2, 66]]
    assert kvctl.sample(part, sampling=kvctl.Sampling(temperature=0)).tolist() == [2, 66]
    drawn = kvctl.draft.sample(part, how="deterministic")
    assert drawn.tokens.tolist() == [[2], [66]]


class Sliced:
    """A slice of columns as PyTorch shows one: a copy is contiguous, the slice is not."""

    def __init__(self, array):
        self.array = array

    def is_contiguous(self):
        return self.array.flags.c_contiguous

    def contiguous(self):
        return Sliced(np.ascontiguousarray(self.array))

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_slice_of_another_library():
    wide = np.full((2, VOCAB + 10), 20, np.float32)
    wide[:, :VOCAB] = logits_with([2, 66])
    assert kvctl.verify(Sliced(wide[:, :VOCAB]), CHAIN, **GREEDY).tokens == [[2, 66]]


def test_history_is_read_for_penalties_alone():
    logits = logits_with([2, 66])
    history = [[-1, VOCAB, 10**6]]
    assert kvctl.verify(logits, CHAIN, history=history, **GREEDY).tokens == [[2, 66]]
    sampling = kvctl.Sampling(temperature=0.0, presence_penalty=1.0)
    with pytest.raises(ValueError, match="sequence 0: history holds token -1, but the vocabulary"):
        kvctl.verify(logits, CHAIN, history=history, sampling=sampling, **GREEDY)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_drafts_outside_the_vocabulary_are_refused(token):
    with pytest.raises(ValueError, match=f"{token}"):
        chain = kvctl.TokenTree([1, token], [-1, 0])
        kvctl.verify(logits_with([2, 66]), chain, **GREEDY)


@pytest.mark.parametrize("how", ["independent", "without_replacement", "coupled", "deterministic"])
def test_drafts_under_a_bitmask(how):
    bitmask = np.array([[0, 2, 0], [0, 0, 5]], np.int32)  # token 33; tokens 64 and 66
    drawn = kvctl.draft.sample(
        logits_with([1, 2]), how=how, n=2, bitmask=bitmask, request_ids=[0, 1], root_positions=0
    )
    assert set(drawn.tokens[0]) <= {33, -1} and set(drawn.tokens[1]) <= {64, 66}
    np.testing.assert_allclose(drawn.probs[:, [33, 64, 66]], [[1, 0, 0], [0, 0.5, 0.5]])
