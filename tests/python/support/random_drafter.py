"""A drafter that draws trees at random, some of them right, for tests of the loop."""

import random

import numpy as np

from fake_runner import VOCABULARY
from kvctl import TokenTree
from kvctl.draft import Draft, Drafter


class RandomDrafter(Drafter):
    """Drafts random trees; knows what plain decoding says if it is told.

    It checks that the loop keeps its side of the contract: texts start before they are drafted for,
    nobody else's results come, tokens and limits are right, and everything is finished.
    """

    def __init__(self, seed=0, *, rates=True, answers=None, hidden_layers=(), forced=False):
        self.rng = random.Random(seed)
        self.rates = rates
        self.answers = answers or {}
        self.hidden_layers = hidden_layers
        self.forced = forced  # whether a grammar may add tokens to its drafts
        self.texts = {}
        self.proposed = {}

    def start(self, request):
        assert request.id not in self.texts
        assert len(request.tokens) > request.prompt_length
        self.texts[request.id] = list(request.tokens)

    def propose(self, requests, budget):
        assert [request.id for request in requests] and not self.proposed
        drafts = [self.draft(request) for request in requests]
        self.proposed = {request.id: draft for request, draft in zip(requests, drafts, strict=True)}
        return drafts

    def draft(self, request):
        assert self.texts[request.id] == list(request.tokens)
        rng, said = self.rng, len(request.tokens) - request.prompt_length
        right = self.answers.get(request.id, [])[said:]
        tokens, parents, path = [request.tokens[-1]], [-1], [0]
        for _ in range(rng.randint(0, min(request.limit, 9))):
            parent = rng.randrange(len(tokens))
            if path[-1] is not None and rng.random() < 0.7 and len(path) <= len(right):
                parent = path[-1]
                tokens.append(right[len(path) - 1])
                path.append(len(tokens) - 1)
            else:
                tokens.append(rng.randrange(VOCABULARY))
            parents.append(parent)
        rates = None
        if self.rates and rng.random() < 0.7:
            rates = [1.0]
            for parent in parents[1:]:
                rates.append(rates[parent] * rng.random())
        return Draft(TokenTree(tokens, parents), rates=rates)

    def observe(self, results):
        for result in results:
            id, text = result.request.id, self.texts[result.request.id]
            draft = self.proposed.pop(id)
            assert result.draft is draft and result.seconds > 0 and result.rows >= len(results)
            tree, nodes, parent = draft.tree, list(result.nodes), 0
            assert nodes[0] == 0 and set(result.accepted) <= set(nodes[1:])
            for node, token in zip(result.accepted, result.emitted, strict=False):
                assert tree.parents[node] == parent and tree.tokens[node] == token
                parent = node
            more = len(result.kept) - 1 - len(result.accepted)
            assert more >= 0 if self.forced else more == 0
            assert len(result.emitted) - len(result.accepted) - more in (
                (0, 1) if result.finished else (1,)
            )
            if self.hidden_layers:
                check_hidden(result.hidden, text, result, self.hidden_layers)
            text += result.emitted
            assert text == list(result.request.tokens)
        # A text that found no room was proposed for, and is finished before the next round.
        self.proposed = {id: draft for id, draft in self.proposed.items() if id in self.texts}

    def finish(self, request):
        del self.texts[request.id]
        self.proposed.pop(request.id, None)


def check_hidden(hidden, text, result, layers):
    """Check hidden states that say which tokens a row has seen, as `FakeRunner` makes them."""
    path = [text[-1], *result.emitted[: len(result.kept) - 1]]
    seen = [sum(text[:-1]) + sum(path[: i + 1]) for i in range(len(path))]
    expected = np.array([[[total, layer] for layer in layers] for total in seen], np.float32)
    np.testing.assert_array_equal(hidden, expected)
