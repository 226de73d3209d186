"""A loaded runner with sequences, and what its cache holds."""

from __future__ import annotations

import numpy as np

import kvctl

TOKENS = np.random.default_rng(11).integers(0, 256, 90).tolist()
TOLERANCE = {"atol": 3e-5, "rtol": 0}

#   0 ─┬─ 1 ── 3 ── 6
#      └─ 2 ─┬─ 4
#            └─ 5
PARENTS = [-1, 0, 0, 1, 2, 2, 3]
TREE_TOKENS = [40, 41, 42, 43, 44, 45, 46]
PATHS = {0: [0], 1: [0, 1], 2: [0, 2], 3: [0, 1, 3], 4: [0, 2, 4], 5: [0, 2, 5], 6: [0, 1, 3, 6]}


def load(directory, *sequences, **options):
    runner = kvctl.ModelRunner.load(directory, **options)
    for seq_id in sequences:
        runner.cache.add_sequence(seq_id)
    return runner


def array(tensor):
    return np.from_dlpack(tensor).copy()


def state(runner):
    """What must not change when a call fails."""
    cache = runner.cache
    ids = [seq_id for seq_id in range(10) if seq_id in cache]
    lengths = [(i, cache.sequence_length(i), cache.pending_length(i)) for i in ids]
    kv = [np.from_dlpack(part).copy() for i in ids for part in cache.get_kv(i)]
    return cache.num_available_pages, lengths, kv


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    for one, other in zip(before[2], after[2], strict=True):
        np.testing.assert_array_equal(one, other)
