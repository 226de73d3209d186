"""Grammars in the loop keep the joint distribution of four tokens under every rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chi2

from drafters import DRAWN
from fake_heads import TableHead
from kvctl import Sampling, TokenTree, generate
from kvctl.draft import Draft, HeadDrafter, sample
from rule_grammar import RuleGrammar
from table_world import CHAIN, DRAFT, PATHS, TARGET, TREE, TRIALS, TableDrafter, TableRunner

RULES = [
    ("token_wise", "independent", CHAIN),
    ("block", "independent", CHAIN),
    ("recursive", "independent", TREE),
    ("traversal", "independent", TREE),
    ("recursive", "without_replacement", TREE),
    ("traversal", "without_replacement", TREE),
    ("traversal", "deterministic", TREE),
    ("recursive", "deterministic", CHAIN),
    ("block", "deterministic", CHAIN),
    ("auto", "independent", TREE),
    ("target_only", "without_replacement", TREE),
    ("best_of_k", "independent", PATHS),
    ("coupled", "coupled", CHAIN),
    ("target_only", "coupled", CHAIN),
]
LENGTH = 4


def allowed(tokens):
    """Everything; then two of three; then one, or two; then all but the last token."""
    place, last = len(tokens) % 4, tokens[-1] if tokens else 0
    return [{0, 1, 2}, {0, 2}, {1} if last == 0 else {0, 1}, {0, 1, 2} - {last}][place]


def expected():
    """Return the probability of each four tokens, by enumeration."""
    cells = {}
    for tokens in itertools.product(range(3), repeat=LENGTH):
        probability, last = 1.0, 0
        for i, token in enumerate(tokens):
            legal = sorted(allowed(tokens[:i]))
            probability *= TARGET[last, token] / TARGET[last, legal].sum() if token in legal else 0
            last = token
        if probability:
            cells[tokens] = probability
    return cells


CELLS = expected()
LIMIT = chi2.isf(1e-7, len(CELLS) - 1)


def statistic(rule, drafter, trials=TRIALS):
    """Return the chi-square statistic of the first four tokens, and how many drafts stayed."""
    texts = generate(
        TableRunner(TARGET),
        [[0]] * trials,
        max_new_tokens=7,
        rule=rule,
        drafter=drafter,
        grammar=lambda: RuleGrammar(allowed),
        sampling=Sampling(temperature=1.0),
        seed=11,
        max_batch=2000,
    )
    counts = dict.fromkeys(CELLS, 0)
    for text in texts:
        counts[tuple(text.tokens[:LENGTH])] += 1  # KeyError: the grammar forbids it
    accepted = sum(sum(text.statistics.accepted) for text in texts)
    total = sum((counts[c] - trials * p) ** 2 / (trials * p) for c, p in CELLS.items())
    return total, accepted


def test_the_cells_are_a_distribution():
    assert abs(sum(CELLS.values()) - 1) < 1e-12 and len(CELLS) < 81


@pytest.mark.parametrize(("rule", "how", "shape"), RULES)
def test_the_joint_distribution_of_four_tokens(rule, how, shape):
    total, accepted = statistic(rule, TableDrafter(how, shape))
    assert accepted > TRIALS / 2
    assert total < LIMIT


@pytest.mark.parametrize(("rule", "options"), DRAWN[::2])
def test_the_joint_distribution_where_a_head_drafts(rule, options):
    drafter = HeadDrafter(TableHead(DRAFT), **{"length": 2, **options})
    total, accepted = statistic(rule, drafter, TRIALS // 2)
    assert accepted > TRIALS / 8
    assert total < LIMIT


class Masking(TableDrafter):
    """Knows the grammar, and draws legal tokens only; or draws any, and leaves illegal ones out."""

    def __init__(self, *, before):
        super().__init__("independent", CHAIN)
        self.before = before

    def propose(self, requests, budget):
        return [
            self.chain(one) if one.limit >= len(CHAIN) else Draft.nothing(one.root)
            for one in requests
        ]

    def chain(self, request):
        new, tokens, probs = list(request.tokens[1:]), [request.root], []
        for depth in range(1, len(CHAIN) + 1):
            legal = allowed(new)
            mask = None
            if self.before:
                mask = np.array([[sum(1 << token for token in legal)]], np.int32)
            drawn = sample(
                self.logits[[tokens[-1]]],
                how="independent",
                seed=request.seed,
                request_ids=[request.request_id],
                root_positions=[request.root_position],
                first_nodes=depth,
                bitmask=mask,
            )
            token = int(drawn.tokens[0, 0])
            if token not in legal:
                break
            tokens.append(token)
            new.append(token)
            probs.append(drawn.probs[0])
        probs.append(np.full(3, 1 / 3))  # the last node's row, which is not read
        return Draft(TokenTree.chain(tokens), "independent", probs=np.array(probs))


@pytest.mark.parametrize("rule", ["token_wise", "block"])
def test_drafts_may_be_masked_before_they_are_drawn(rule):
    total, accepted = statistic(rule, Masking(before=True), TRIALS // 2)
    assert accepted > TRIALS / 2 and total < LIMIT


@pytest.mark.parametrize("rule", ["token_wise", "block"])
def test_illegal_drafts_that_were_left_out_after_drawing_are_seen(rule):
    """The negative control: leaving out a token because of its value biases these rules."""
    total, _ = statistic(rule, Masking(before=False))
    assert total > 3 * LIMIT


def test_the_same_drafts_do_no_harm_to_the_rule_that_trusts_nobody():
    total, _ = statistic("target_only", Masking(before=False), TRIALS // 2)
    assert total < LIMIT
