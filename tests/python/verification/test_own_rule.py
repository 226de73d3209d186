"""A rule written in Python, proven by enumeration and then run by kvctl.verify."""

import numpy as np
import pytest

import kvctl
from kvctl.testing.distribution import joint_distribution, tree_drafter
from kvctl.verification import RoundRng, Verification, enumerate_outcomes

VOCAB = 40
P = np.array([0.45, 0.35, 0.2])
Q = np.array([0.1, 0.5, 0.4])


def token_wise(drafted, rng):
    """Token by token, in the words of the paper."""
    node = 0
    while children := drafted.children(node):
        (child,) = children
        p, q = drafted.p(node), drafted.distribution_of(child)
        token = drafted.tree.tokens[child]
        if not rng.bernoulli(min(1.0, p[token] / q[token]), key=child):
            return node, rng.categorical(np.maximum(p - q, 0), key=node)
        node = child
    return node, rng.categorical(drafted.p(node), key=node)


def target_only(drafted, rng):
    node = depth = 0
    while True:
        token = rng.token(drafted.p(node), depth)
        holding = [c for c in drafted.children(node) if drafted.tree.tokens[c] == token]
        if not holding:
            return node, token
        node, depth = holding[0], depth + 1


def round_of(n, seed=0, length=4):
    """n chains drawn from a drafter, with the target's logits after each node."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n * length, VOCAB)).astype(np.float32) * 2
    draft = rng.dirichlet(np.ones(VOCAB) / 2, n * length)
    tokens = [
        [1, *(int(rng.choice(VOCAB, p=q)) for q in d[:-1])] for d in draft.reshape(n, length, -1)
    ]
    trees = [kvctl.TokenTree.chain(one) for one in tokens]
    named = dict(request_ids=list(range(n)), root_positions=[10 + i for i in range(n)], seed=3)
    return logits, trees, dict(drawn="independent", draft_probs=draft, **named)


@pytest.mark.parametrize("rule", [token_wise, target_only])
def test_enumeration_proves_it(rule):
    drafter = tree_drafter((-1, 0, 1), lambda _: Q, "independent")
    result = joint_distribution(drafter, lambda prefix: np.roll(P, sum(prefix)), rule=rule)
    assert result.max_difference < 1e-12
    outcomes = enumerate_outcomes(
        np.tile(P, (2, 1)),
        kvctl.TokenTree.chain([0, 1]),
        rule=rule,
        drawn="independent",
        draft_probs=np.tile(Q, (2, 1)),
    )
    assert sum(o.probability for o in outcomes[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("own", "shipped"), [(token_wise, "token_wise"), (target_only, "target_only")]
)
@pytest.mark.parametrize("sampling", [kvctl.Sampling(), kvctl.Sampling(top_k=7, temperature=0.7)])
def test_it_decides_as_the_shipped_rule(own, shipped, sampling):
    logits, trees, more = round_of(60)
    found = kvctl.verify(logits, trees, rule=own, sampling=sampling, **more)
    expected = kvctl.verify(logits, trees, rule=shipped, sampling=sampling, **more)
    # The same numbers decide; the order of additions may differ in the last place.
    assert sum(a == b for a, b in zip(found.tokens, expected.tokens, strict=True)) >= 59
    assert found.num_accepted.sum() > 0 and not found.lossless and expected.lossless


def test_order_does_not_matter():
    logits, trees, more = round_of(6)
    whole = kvctl.verify(logits, trees, rule=token_wise, **more)
    for b in (5, 0, 3):
        rows = slice(4 * b, 4 * b + 4)
        alone = kvctl.verify(
            logits[rows],
            trees[b],
            rule=token_wise,
            drawn="independent",
            draft_probs=more["draft_probs"][rows],
            request_ids=[b],
            root_positions=[10 + b],
            seed=3,
        )
        assert alone.tokens == [whole.tokens[b]] and alone.kept == [whole.kept[b]]


def test_a_loop_of_rounds_gives_the_text_of_plain_sampling():
    model = np.random.default_rng(1).standard_normal((VOCAB, VOCAB)).astype(np.float32)
    plain, text = [1], [1]
    while len(plain) < 40:
        token = kvctl.sample(model[plain[-1:]], seed=5, request_ids=[9], positions=[len(plain)])
        plain.append(int(token[0]))
    while len(text) < 40:
        chain = [text[-1]]
        for _ in range(3):
            chain.append(int(model[chain[-1]].argmax()))
        result = kvctl.verify(
            model[chain],
            kvctl.TokenTree.chain(chain),
            rule=target_only,
            drawn="deterministic",
            seed=5,
            request_ids=[9],
            root_positions=[len(text) - 1],
        )
        text += result.tokens[0]
    assert text[:40] == plain


def test_a_stop_token_ends_the_tree_of_an_own_rule():
    logits = np.full((3, 8), -np.inf, np.float32)
    logits[0, 2] = 0
    result = kvctl.verify(
        logits,
        kvctl.TokenTree.chain([5, 2, 7]),
        rule=token_wise,
        drawn="deterministic",
        sampling=kvctl.Sampling(stop_tokens=[2]),
        root_positions=[0],
    )
    assert result.tokens == [[2]] and result.finished[0] and result.kept == [[0, 1]]


@pytest.mark.parametrize("answer", [(9, 0), (0, VOCAB), (0, -1)])
def test_what_an_own_rule_must_not_say(answer):
    logits, trees, more = round_of(1)
    with pytest.raises(ValueError, match="sequence 0: the rule"):
        kvctl.verify(logits, trees, rule=lambda drafted, rng: answer, **more)


def test_unnamed_numbers_of_a_round_differ():
    rng = RoundRng(1, 2, 3)
    drawn = [rng.categorical(np.ones(1000)) for _ in range(50)]
    assert len(set(drawn)) > 40
    again = RoundRng(1, 2, 3)
    assert drawn == [again.categorical(np.ones(1000)) for _ in range(50)]
    assert rng.categorical(np.ones(1000), key=4) == again.categorical(np.ones(1000), key=4)
    with pytest.raises(ValueError, match="key must be a node"):
        rng.bernoulli(0.5, key=-1)


def test_from_paths():
    tree = kvctl.TokenTree([0, 3, 4, 5], [-1, 0, 1, 1])
    result = Verification.from_paths(
        [tree, tree, tree], [[1, 3], [], [1, 2]], [6, 7, 8], stop_tokens=[(), (7,), (3,)]
    )
    assert result.tokens == [[3, 5, 6], [7], [3]]
    assert result.kept == [[0, 1, 3], [0], [0, 1]]
    assert result.bonus.tolist() == [6, -1, -1] and result.finished.tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"sequence 0: nodes .* are no path from the root"):
        Verification.from_paths(tree, [[2]], [0])


def test_target_probs_are_what_verification_samples():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32)
    bitmask = np.array([[0x55555555, -1]] * 3, np.int32)
    sampling = kvctl.Sampling(temperature=0.7, top_k=9, top_p=0.9, presence_penalty=0.5)
    more = dict(history=[[1, 2, 3]], bitmask=bitmask)
    chain = kvctl.TokenTree.chain([4, 6, 8])
    probs = kvctl.target_probs(logits, sampling, trees=chain, **more)
    assert probs.shape == (3, VOCAB) and (probs > 0).sum(1).max() <= 9
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-12)
    assert not probs[:, 1:32:2].any()  # forbidden
    # A rule that follows the target takes just these numbers.
    (outcomes,) = enumerate_outcomes(probs, chain, rule="target_only", drawn="deterministic")
    after_root = np.zeros(VOCAB)
    for outcome in outcomes:
        after_root[6 if outcome.node else outcome.bonus] += outcome.probability
    np.testing.assert_allclose(after_root, probs[0], atol=1e-12)
    greedy = kvctl.target_probs(logits, kvctl.Sampling(temperature=0))
    assert (greedy.argmax(1) == logits.argmax(1)).all() and (greedy.max(1) == 1).all()


def test_target_probs_of_rows_without_tokens():
    logits = np.full((2, 8), -np.inf, np.float32)
    logits[0] = 0
    with pytest.raises(ValueError, match=r"sequence 1: .*no token is left"):
        kvctl.target_probs(logits)
    assert kvctl.target_probs(logits, check=False).sum(1).tolist() == [1, 0]
