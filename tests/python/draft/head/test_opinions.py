"""What a head thinks of tokens that it does not draft."""

from __future__ import annotations

import pytest

from fake_heads import TableHead
from kvctl import generate
from kvctl.draft import DraftVocabulary, HeadDrafter
from simulated_time import let_drafting_pay
from table_world import DRAFT, TARGET, TableRunner


class Asked(HeadDrafter):
    """Compares each opinion with the head's table; the root is a token of the text."""

    compared = silent = 0

    def propose(self, requests, budget):
        [draft] = super().propose(requests, budget)
        tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
        for node in range(len(tokens) if len(tokens) > 1 else 0):
            self.compare(draft.opinion, node, tokens[node], node in parents)
        return [draft]

    def compare(self, opinion, node, token, has_children):
        vocabulary = self._heads._head.vocabulary
        known = range(3) if vocabulary is None else vocabulary.token_ids.tolist()
        total = sum(DRAFT[token][one] for one in known)
        for other in range(3):
            probability = opinion.probability(node, other)
            if probability is None:
                assert other not in known or not has_children
                self.silent += 1
            else:
                assert other in known
                assert probability == pytest.approx(DRAFT[token][other] / total, rel=1e-5)
                self.compared += 1


@pytest.mark.parametrize("vocabulary", [None, DraftVocabulary([2, 0], 3)])
@pytest.mark.parametrize("nodes", [None, 3])
def test_opinions_are_the_heads_distribution(monkeypatch, vocabulary, nodes):
    let_drafting_pay(monkeypatch)
    drafter = Asked(TableHead(DRAFT, vocabulary), branching=2, beam=2, max_length=3, nodes=nodes)
    generate(TableRunner(TARGET), [1, 2], drafter=drafter, max_new_tokens=20)
    assert drafter.compared > 30 and drafter.silent > 10


def test_a_token_outside_the_models_vocabulary_is_not_known():
    assert DraftVocabulary([2, 0], 3).own(0) == 1
    assert DraftVocabulary([2, 0], 3).own(1) is None
