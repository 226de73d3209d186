"""Bits of bfloat16 numbers, against a library that has the type."""

import ml_dtypes
import numpy as np

from kvctl.models.checkpoints.bfloat16 import to_bfloat16


def test_rounding_is_to_the_nearest_ties_to_even():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) | np.uint32(0x8000)
    values = np.concatenate([bits, ties]).view(np.float32)
    numbers = values[~np.isnan(values)]
    assert (to_bfloat16(numbers) == numbers.astype(ml_dtypes.bfloat16).view(np.uint16)).all()


def test_what_is_no_number_stays_so():
    """The bits of those of hidden states were rounded up, to minus zero."""
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000], np.uint32)
    kept = to_bfloat16(bits.view(np.float32))
    assert np.isnan(kept.view(ml_dtypes.bfloat16).astype(np.float32)).all()
    assert (kept >> 15 == bits >> 31).all()
