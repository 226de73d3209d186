"""kvctl.verification.Trace: replays agree with enumeration and with theory."""

import numpy as np
import pytest

import kvctl
from kvctl.testing.distribution import expected_emitted

VOCAB = 6


def make_round(rng, parents, drawn="independent"):
    target = rng.dirichlet(np.ones(VOCAB), size=len(parents))
    draft = rng.dirichlet(np.ones(VOCAB), size=len(parents))
    tokens = [0]
    for parent in parents[1:]:
        tokens.append(int(rng.choice(VOCAB, p=draft[parent])))
    return kvctl.TokenTree(tokens, parents), target, draft, drawn


@pytest.mark.parametrize("rule", ["target_only", "recursive", "traversal"])
def test_replay_is_enumeration(rule):
    rng = np.random.default_rng(0)
    trace = kvctl.verification.Trace()
    expected = []
    for _ in range(5):
        tree, target, draft, drawn = make_round(rng, [-1, 0, 0, 1, 2, 2])
        target, draft = target.astype(np.float32), draft.astype(np.float32)
        trace.add(tree, target_probs=target, draft_probs=draft, drawn=drawn)
        outcomes = kvctl.verification.enumerate_outcomes(
            target, tree, rule=rule, drawn=drawn, draft_probs=draft
        )[0]
        expected.append(sum(o.probability * (tree.depths[o.node] + 1) for o in outcomes))
    replay = trace.replay(rule)
    np.testing.assert_allclose(replay.emitted, expected, rtol=1e-9)
    assert replay.mean_emitted == pytest.approx(1 + replay.depth_rates.sum())
    assert replay.nodes.tolist() == [5] * 5
    assert replay.speedup(lambda n: 1 + n / 10) == pytest.approx(replay.mean_emitted / 1.5)


def test_limits_cut_by_order_and_depth():
    rng = np.random.default_rng(1)
    tree, target, draft, drawn = make_round(rng, [-1, 0, 0, 1, 1, 3, 2])
    trace = kvctl.verification.Trace()
    trace.add(tree, target_probs=target, draft_probs=draft, drawn=drawn)
    sizes = [
        (dict(depth=1), 2),
        (dict(width=1), 3),
        (dict(nodes=2), 2),
        (dict(depth=2, width=2), 5),
        (dict(), 6),
    ]
    for limits, nodes in sizes:
        assert trace.replay("traversal", **limits).nodes.tolist() == [nodes]
    chain = trace.replay("block", width=1)
    assert chain.mean_emitted >= trace.replay("token_wise", width=1).mean_emitted - 1e-12
    with pytest.raises(ValueError, match="is for chains"):
        trace.replay("block")


def test_chain_meets_theory():
    """Token-wise acceptance of distributions without memory is Leviathan's formula."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    rng = np.random.default_rng(2)
    trace = kvctl.verification.Trace()
    for _ in range(4000):
        tree = kvctl.TokenTree.chain([0, *rng.choice(3, size=3, p=q)])
        trace.add(tree, target_probs=[p] * 4, draft_probs=[q] * 4, drawn="independent")
    replay = trace.replay("token_wise")
    error = replay.emitted.std() / np.sqrt(len(trace))
    assert abs(replay.mean_emitted - expected_emitted(1 - 0.4, 3)) < 5 * error


def test_archive_round_trip(tmp_path):
    rng = np.random.default_rng(3)
    trace = kvctl.verification.Trace()
    for parents in ([-1, 0, 1], [-1, 0, 0, 0]):
        tree, target, draft, drawn = make_round(rng, parents)
        trace.add(tree, target_probs=target, draft_probs=draft, drawn=drawn)
    trace.save(tmp_path / "trace.npz")
    again = kvctl.verification.Trace.load(tmp_path / "trace.npz")
    assert again.trees == trace.trees and again.drawn == trace.drawn
    np.testing.assert_array_equal(
        again.replay("traversal").emitted, trace.replay("traversal").emitted
    )
    np.savez(tmp_path / "other.npz", nodes=np.zeros(3))
    with pytest.raises(ValueError, match="is not a trace: it lacks"):
        kvctl.verification.Trace.load(tmp_path / "other.npz")


def test_refusals():
    trace = kvctl.verification.Trace()
    with pytest.raises(ValueError, match="empty"):
        trace.replay("greedy")
    tree = kvctl.TokenTree.chain([0, 1])
    with pytest.raises(ValueError, match="target_probs must be"):
        trace.add(tree, target_probs=np.ones((3, 4)) / 4, drawn="deterministic")
    with pytest.raises(ValueError, match="draft_probs must be"):
        trace.add(tree, target_probs=np.ones((2, 4)) / 4, draft_probs=np.ones(3), drawn="coupled")
    with pytest.raises(ValueError, match="drawn must be one of"):
        trace.add(tree, target_probs=np.ones((2, 4)) / 4, drawn="somehow")
    trace.add(tree, target_probs=np.ones((2, 4)) / 4, drawn="deterministic")
    with pytest.raises(TypeError, match=r"trees must be kvctl\.TokenTree, got list"):
        trace.add([0, 1], target_probs=np.ones((2, 4)) / 4, drawn="deterministic")
    for limit, error in ((-1, ValueError), ("a", TypeError), (1.5, TypeError)):
        for name in ("depth", "width", "nodes"):
            with pytest.raises(error, match=f"{name} must be"):
                trace.replay("target_only", **{name: limit})
    for cost in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="cost of a round must be positive"):
            trace.replay("target_only").speedup(lambda _, cost=cost: cost)
    with pytest.raises(ValueError, match="vocabulary of 4, not 5"):
        trace.add(tree, target_probs=np.ones((2, 5)) / 5, drawn="deterministic")


def test_coupled_drafts_are_not_replayed():
    rng = np.random.default_rng(3)
    tree, target, draft, _ = make_round(rng, [-1, 0])
    trace = kvctl.verification.Trace()
    trace.add(tree, target_probs=target, draft_probs=draft, drawn="coupled")
    for rule in ("coupled", "target_only"):
        with pytest.raises(ValueError, match=r"node 1 was drawn='coupled'.*AcceptanceStats"):
            trace.replay(rule)
        with pytest.raises(ValueError, match="nothing to enumerate"):
            kvctl.verification.enumerate_outcomes(target, tree, rule=rule, drawn="coupled")
