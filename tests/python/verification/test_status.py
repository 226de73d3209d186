"""One request that cannot be decided does not stop the others, where the caller says so."""

import numpy as np
import pytest

import kvctl

CHAIN = kvctl.TokenTree.chain([1, 2])


@pytest.mark.parametrize("rule", ["greedy", "target_only", "block", "traversal"])
def test_one_of_three_has_no_token(rule):
    logits = np.zeros((6, 8), np.float32)
    logits[[0, 4], 2] = logits[[1, 5], 6] = 90
    logits[2:4] = -np.inf
    sampling = kvctl.Sampling(temperature=0.0 if rule == "greedy" else 1.0)
    named = dict(seed=1, request_ids=[0, 1, 2], root_positions=[0, 0, 0])
    call = dict(rule=rule, drawn="deterministic", sampling=sampling, log_probs=True, **named)
    with pytest.raises(ValueError, match=r"sequence 1: .*no token is left"):
        kvctl.verify(logits, [CHAIN] * 3, **call)
    result = kvctl.verify(logits, [CHAIN] * 3, errors="status", **call)
    assert result.tokens == [[2, 6], [], [2, 6]]
    assert result.errors[0] == result.errors[2] == "" and "no token is left" in result.errors[1]
    assert result.bonus.tolist() == [6, -1, 6] and result.kept == [[0, 1], [0], [0, 1]]
    assert not result.finished.any() and len(result.log_probs[1]) == 0


def test_a_rule_that_does_not_fit_one_tree():
    tree = kvctl.TokenTree([1, 2, 3], [-1, 0, 0])
    result = kvctl.verify(
        np.zeros((5, 8), np.float32),
        [CHAIN, tree],
        rule="block",
        drawn="deterministic",
        errors="status",
        request_ids=[0, 1],
        root_positions=[0, 0],
    )
    assert result.errors[0] == "" and "is for chains" in result.errors[1]
    with pytest.raises(ValueError, match="errors must be one of raise, status"):
        kvctl.verify(
            np.zeros((2, 8), np.float32), CHAIN, rule="greedy", drawn="deterministic", errors="no"
        )
