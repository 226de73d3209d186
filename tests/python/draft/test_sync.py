"""kvctl.draft.sync on a cache of lists: what stays, and what must be forwarded next."""

import numpy as np
import pytest

import kvctl
from kvctl.draft import sync

VOCAB = 20


class ListCache:
    """A cache that holds the tokens themselves."""

    def __init__(self, committed, pending=()):
        self.committed = list(committed)
        self.pending = list(pending)

    def pending_length(self, seq_id):
        return len(self.pending)

    def commit(self, seq_ids, kept):
        self.committed += [self.pending[i] for i in kept[0]]
        self.pending = []

    def popn(self, seq_id, n):
        del self.committed[len(self.committed) - n :]


def verified(tree, accepted, stop=()):
    """A greedy result that accepts a path of nodes and then says token 0."""
    logits = np.zeros((len(tree), VOCAB), np.float32)
    path = [0, *accepted]
    for node, child in zip(path, accepted, strict=False):
        logits[node, tree.tokens[child]] = 1
    sampling = kvctl.Sampling(temperature=0, stop_tokens=stop)
    return kvctl.verify(logits, tree, rule="greedy", drawn="deterministic", sampling=sampling)


@pytest.mark.parametrize("pending", [True, False])
@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_chain(accepted, pending):
    tree = kvctl.TokenTree.chain([9, 5, 6, 7])
    forwarded = [9, 5, 6]  # drafting forwards all but the last
    cache = ListCache([1, 2], forwarded) if pending else ListCache([1, 2, *forwarded])
    lacking = sync(cache, verified(tree, list(range(1, accepted + 1))), seq_ids=[0], trees=[tree])
    truth = [1, 2, 9, *[5, 6, 7][:accepted], 0]
    assert cache.committed == truth[: len(cache.committed)]
    assert lacking == [truth[len(cache.committed) :]]
    assert lacking == ([[7, 0]] if accepted == 3 else [[0]])


def test_tree_whose_leaves_were_never_forwarded():
    tree = kvctl.TokenTree([9, 5, 6, 7, 8], [-1, 0, 0, 2, 2])
    cache = ListCache([1], [9, 6, 5])  # in the order the draft model forwarded them
    lacking = sync(cache, verified(tree, [2, 4]), seq_ids=[0], trees=[tree], forwarded=[[0, 2, 1]])
    assert cache.committed == [1, 9, 6] and lacking == [[8, 0]]


def test_finished_sequences_have_no_bonus():
    tree = kvctl.TokenTree.chain([9, 5, 6])
    cache = ListCache([1], [9, 5])
    assert sync(cache, verified(tree, [1, 2], stop=[5]), seq_ids=[0], trees=[tree]) == [[]]
    assert cache.committed == [1, 9, 5]


def test_refusals_leave_the_cache_alone():
    tree = kvctl.TokenTree([9, 5, 6, 7, 8], [-1, 0, 0, 2, 2])
    result = verified(tree, [2, 4])
    cache = ListCache([1], [9, 6])
    for more, message in [
        (dict(seq_ids=[0, 1]), "2 seq_ids"),
        (dict(forwarded=[[0, 2, 4]]), "has 2 pending"),
        (dict(forwarded=[[0, 4]]), "not its ancestors"),
        (dict(forwarded=[[0, 9]]), "does not have"),
        (dict(forwarded=[]), "one entry"),
    ]:
        with pytest.raises(ValueError, match=message):
            sync(cache, result, **{"seq_ids": [0], "trees": [tree], **more})
    assert cache.committed == [1] and cache.pending == [9, 6]
    with pytest.raises(ValueError, match="only a chain"):
        sync(ListCache([1, 9, 5, 6]), result, seq_ids=[0], trees=[tree], forwarded=[[0, 1, 2]])


def test_a_sequence_named_twice_is_refused():
    tree = kvctl.TokenTree.chain([9, 5, 6])
    logits = np.zeros((6, VOCAB), np.float32)
    result = kvctl.verify(logits, [tree, tree], rule="greedy", drawn="deterministic")
    cache = ListCache([1, 9, 5])
    with pytest.raises(ValueError, match=r"each sequence may be named once, got \[3, 3\]"):
        sync(cache, result, seq_ids=[3, 3], trees=[tree, tree])
    assert cache.committed == [1, 9, 5]
