"""The referee: published rules against theory, and against each other."""

from pathlib import Path

import numpy as np
import pytest

from kvctl.referee import ENTRIES, SHAPES, RandomModel, judge
from kvctl.referee.rules import coupling, hsd, optimal_transport, specinfer, spectr
from kvctl.referee.table import rows_of, to_markdown
from kvctl.testing.distribution import acceptance_of

MODELS = [RandomModel(seed, vocab=3) for seed in range(3)]
CHAIN, STAR, PATHS = SHAPES.values()
BIASED = {"HSD, as in its code", "SpecInfer on top-k siblings", "typical (`typical`)"}


def mean(rule, shape, how="independent"):
    return judge(rule, how, shape, MODELS).mean_emitted


def test_who_is_lossless():
    pytest.importorskip("scipy")
    rows = rows_of(MODELS)
    assert {row.entry.name for row in rows if not row.lossless} == BIASED
    text = to_markdown(rows, MODELS)
    for row in rows:
        assert f"| {row.entry.name} | {row.entry.source} |" in text
        if not row.lossless:
            assert f"- **{row.entry.name}.**" in text
    assert text.count("Counterexample") == len(BIASED)


def test_one_draft_of_one_token_is_the_maximal_coupling():
    """Every rule that is no worse than rejection accepts 1 - TV of a single draft."""
    pytest.importorskip("scipy")
    expected = 1 + np.mean([acceptance_of(m.target(()), m.draft(())) for m in MODELS])
    rules = (
        *("token_wise", "block", "best_of_k", "traversal", spectr.k_sequential),
        *(specinfer.multi_step, hsd.last_ratio_capped, optimal_transport.optimal_transport),
    )
    for rule in rules:
        assert mean(rule, (-1, 0)) == pytest.approx(expected, abs=1e-9)


def test_hsd_with_the_capped_ratio_emits_as_block_verification():
    for length in (2, 3):
        shape = tuple(range(-1, length))
        assert mean(hsd.last_ratio_capped, shape) == pytest.approx(mean("block", shape), abs=1e-12)


def test_coupled_sides_have_their_own_distributions():
    """The two sides together: each has its distribution, and they agree as often as promised."""
    rng = np.random.default_rng(0)
    for shares in (coupling._gumbel_shares, coupling._min_hash_shares):
        for n in (2, 3, 6):
            p, q = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n))
            p[0] = 0 if n > 2 else p[0]
            p /= p.sum()
            both = np.array([shares(p, q, token) for token in range(n)])
            np.testing.assert_allclose(both.sum(axis=1), q, atol=1e-12)
            np.testing.assert_allclose(both.sum(axis=0), p, atol=1e-12)
            promised = np.minimum(p, q).sum() / np.maximum(p, q).sum()
            assert np.trace(both) >= promised - 1e-12


def test_gumbel_shares_are_those_of_noise():
    rng = np.random.default_rng(1)
    p, q = np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.6, 0.3])
    noise = rng.exponential(size=(200_000, 3))
    found = np.zeros((3, 3))
    np.add.at(found, ((noise / q).argmin(axis=1), (noise / p).argmin(axis=1)), 1 / len(noise))
    exact = np.array([coupling._gumbel_shares(p, q, token) for token in range(3)])
    np.testing.assert_allclose(found, exact, atol=0.005)


def test_drafter_invariance_costs_acceptance():
    for shape in ((-1, 0), CHAIN):
        means = [mean(rule, shape) for rule in ("target_only", coupling.min_hash, coupling.gumbel)]
        assert means == sorted(means) and means[-1] < mean("token_wise", shape)


def test_specinfer_is_recursive_rejection_for_independent_siblings():
    for shape in (STAR, PATHS):
        assert mean(specinfer.multi_step, shape) == pytest.approx(mean("recursive", shape))


def test_the_linear_program_bounds_rules_of_one_level():
    pytest.importorskip("scipy")
    best = mean(optimal_transport.optimal_transport, STAR)
    for rule in ("target_only", "recursive", "traversal", "best_of_k", spectr.k_sequential):
        assert mean(rule, STAR) <= best + 1e-9


def test_the_linear_program_reaches_the_known_optimum():
    """Its acceptance is the least of p(A) + 1 - q(A)^k over sets of tokens A."""
    pytest.importorskip("scipy")
    for model in MODELS:
        p, q = model.target(()), model.draft(())
        sets = [[t for t in range(3) if bits >> t & 1] for bits in range(8)]
        optimum = min(p[s].sum() + 1 - q[s].sum() ** 3 for s in sets)
        found = judge(optimal_transport.optimal_transport, "independent", STAR, [model])
        assert found.mean_emitted == pytest.approx(1 + optimum, abs=1e-7)


def test_k_sequential_is_worth_its_promise():
    """Its acceptance is at least (1 - 1/e) of the optimum."""
    pytest.importorskip("scipy")
    for model in MODELS:
        accepted = [
            judge(rule, "independent", STAR, [model]).mean_emitted - 1
            for rule in (spectr.k_sequential, optimal_transport.optimal_transport)
        ]
        assert (1 - 1 / np.e) * accepted[1] <= accepted[0] <= accepted[1] + 1e-9


def test_counterexamples_are_what_they_say():
    verdict = judge(hsd.last_ratio_whole, "independent", CHAIN, MODELS)
    example = verdict.counterexample
    chance = np.prod(
        [example.model.target(example.tokens[:i])[t] for i, t in enumerate(example.tokens)]
    )
    assert example.target == pytest.approx(chance)
    assert abs(example.emitted - example.target) > 1e-3
    assert f"tokens {list(example.tokens)}" in str(example)


def test_models_are_distributions():
    same = RandomModel(5, agreement=1.0)
    for prefix in ((), (1,), (2, 0)):
        assert same.target(prefix) == pytest.approx(same.draft(prefix))
        assert same.target(prefix).sum() == pytest.approx(1)
    assert judge("token_wise", "independent", CHAIN, [same]).mean_emitted == pytest.approx(4)
    with pytest.raises(ValueError, match="at least one model"):
        judge("block", "independent", CHAIN, [])


def test_entries_have_sources():
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    assert all(entry.source for entry in ENTRIES)


def test_the_page_of_the_documentation_has_every_rule():
    page = (Path(__file__).resolve().parents[3] / "docs" / "referee.md").read_text()
    for entry in ENTRIES:
        assert f"| {entry.name} | {entry.source} |" in page
