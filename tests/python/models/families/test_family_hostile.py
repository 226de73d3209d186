"""Values of any type anywhere in config.json: the model, or a sentence that names the file."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from family_files import CASES, Family
from kvctl.models import DecoderConfig

ODD = [None, True, 0, -1, 1 << 70, 1.5, float("nan"), float("inf"), "x", "", [], [1], [1.5, "x"]]
ODD += [{}, {"a": 1}, {"rope_type": "yarn"}, {"full_attention": 3}, "\ud800"]


@pytest.mark.parametrize("case", CASES)
def test_odd_values(case):
    config = Family(case).config
    rng = np.random.default_rng([*case.encode()])
    for _ in range(300):
        changed = copy.deepcopy(config)
        for _ in range(rng.integers(1, 3)):
            target = changed
            rope = target.get("rope_parameters")
            while isinstance(rope, dict) and rope and rng.random() < 0.4:
                target, rope = rope, next(iter(rope.values()))
            target[str(rng.choice(list(target)))] = ODD[rng.integers(0, len(ODD))]
        try:
            DecoderConfig.from_huggingface(changed, where="x/config.json")
        except ValueError as error:
            assert str(error).startswith("x/config.json"), error
            assert "Error" not in str(error), error
