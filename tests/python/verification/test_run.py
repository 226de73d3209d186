"""kvctl.verify and kvctl.sample: the interface."""

import numpy as np
import pytest

import kvctl
from kvctl.draft import sample as draft_sample

VOCAB = 50


def make_logits(rows, seed=0, scale=2.0):
    return (np.random.default_rng(seed).normal(size=(rows, VOCAB)) * scale).astype(np.float32)


def greedy_chain(logits, length):
    """A chain whose first `length` drafts are what greedy decoding says, and whose last is not."""
    tokens = [7]
    for i in range(len(logits) - 1):
        best = int(logits[i].argmax())
        tokens.append(best if i < length else (best + 1) % VOCAB)
    return kvctl.TokenTree.chain(tokens)


@pytest.mark.parametrize("accepted", [0, 2, 4])
def test_greedy_on_a_chain(accepted):
    logits = make_logits(5)
    tree = greedy_chain(logits, accepted)
    result = kvctl.verify(logits, [tree], rule="greedy", drawn="deterministic")
    assert result.tokens == [logits.argmax(axis=1)[: accepted + 1].tolist()]
    assert result.kept == [list(range(accepted + 1))]
    assert result.accepted_nodes == [list(range(1, accepted + 1))]
    assert result.bonus.tolist() == [logits[accepted].argmax()]
    assert result.next_tokens is result.bonus
    assert result.rows.dtype == np.int32 and result.rows.tolist() == list(range(accepted + 1))
    assert result.lossless and not result.finished.any() and not result.draft_mismatch.any()
    reached, hits = result.acceptance
    assert hits.tolist() == [1] * accepted + [0] * (len(reached) - accepted)
    assert len(reached) == min(accepted + 1, 4)


def test_greedy_takes_the_first_of_equal_logits():
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [3, 9]] = 1
    tree = kvctl.TokenTree.chain([0])
    assert kvctl.verify(logits, tree, rule="greedy", drawn="deterministic").tokens == [[3]]


def test_tree_with_shared_and_spare_rows():
    # Row 1 belongs to no node, and nodes 1 and 2 are the same token in one row.
    tree = kvctl.TokenTree([5, 8, 8, 9], [-1, 0, 0, 2], rows=[0, 2, 2, 3])
    logits = np.full((4, VOCAB), -1, np.float32)
    logits[0, 8] = logits[2, 9] = logits[3, 1] = 1
    other = kvctl.TokenTree.chain([1])
    both = np.concatenate([logits, logits[:1]])
    result = kvctl.verify(
        both,
        [tree, other],
        rule="recursive",
        drawn="deterministic",
        sampling=kvctl.Sampling(temperature=0),
    )
    # Node 1 comes first and has no children; target_only and recursion stop there.
    assert result.tokens == [[8, 9], [8]]
    assert result.kept == [[0, 2], [0]]
    assert result.rows.tolist() == [0, 2, 4]


def test_stop_tokens_cut_the_output():
    logits = make_logits(5)
    tree = greedy_chain(logits, 4)
    best = logits.argmax(axis=1)
    for stop, emitted, kept in [(best[1], 2, 3), (best[4], 5, 5)]:
        sampling = kvctl.Sampling(temperature=0, stop_tokens=[int(stop)])
        result = kvctl.verify(
            logits, [tree], rule="greedy", drawn="deterministic", sampling=sampling, log_probs=True
        )
        assert result.tokens == [best[:emitted].tolist()]
        assert result.kept == [list(range(kept))]
        assert result.bonus.tolist() == [-1] and result.finished.tolist() == [True]
        assert len(result.log_probs[0]) == emitted


def test_log_probs_are_those_of_the_processed_distribution():
    logits = make_logits(4)
    tree = greedy_chain(logits, 3)
    result = kvctl.verify(
        logits,
        [tree],
        rule="target_only",
        drawn="deterministic",
        log_probs=True,
        sampling=kvctl.Sampling(temperature=0.7),
        root_positions=[3],
        seed=1,
    )
    scaled = logits.astype(np.float64) / 0.7
    expected = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    emitted = result.tokens[0]
    np.testing.assert_allclose(
        result.log_probs[0], [expected[i, t] for i, t in enumerate(emitted)], rtol=1e-5
    )


@pytest.mark.parametrize("rule", ["token_wise", "block", "recursive", "traversal"])
def test_a_perfect_drafter_is_always_accepted(rule):
    logits = make_logits(8)
    draw = draft_sample(
        logits,
        how="independent",
        root_positions=4,
        request_ids=[3] * 8,
        first_nodes=np.arange(1, 9),
    )
    tree = kvctl.TokenTree.chain([0, *draw.tokens[:7, 0]])
    result = kvctl.verify(
        logits,
        [tree],
        rule=rule,
        drawn="independent",
        draft_probs=draw.probs,
        root_positions=[4],
        request_ids=[3],
    )
    assert result.num_accepted.tolist() == [7]


def test_sparse_and_dense_draft_distributions_agree():
    logits = make_logits(8, seed=3)
    draw = draft_sample(
        logits,
        how="independent",
        root_positions=4,
        request_ids=[3] * 8,
        first_nodes=np.arange(1, 9),
        sampling=kvctl.Sampling(top_k=6),
        dtype=np.float64,
    )
    tree = kvctl.TokenTree.chain([0, *draw.tokens[:7, 0]])
    ids = np.full((8, 9), -1, np.int32)
    ids[:, :6] = np.argsort(-draw.probs, axis=1)[:, :6]
    probs = np.take_along_axis(draw.probs, np.maximum(ids, 0), axis=1)
    for seed in range(20):
        for rule in ("token_wise", "block", "traversal"):
            call = dict(rule=rule, drawn="independent", root_positions=[4], seed=seed)
            dense = kvctl.verify(logits, [tree], draft_probs=draw.probs, **call)
            sparse = kvctl.verify(logits, [tree], draft_probs=(ids, probs), **call)
            own = np.concatenate([draw.probs[:1], draw.probs[:7]])
            per_node = kvctl.verify(logits, [tree], draft_probs_per_node=own, **call)
            assert dense.tokens == sparse.tokens == per_node.tokens


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_logits_of_half_precision(dtype):
    logits = make_logits(6).astype(dtype)
    tree = greedy_chain(logits, 3)
    result = kvctl.verify(logits, [tree], rule="greedy", drawn="deterministic")
    assert result.num_accepted.tolist() == [3]


@pytest.mark.torch
def test_bfloat16_through_dlpack():
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(make_logits(6)).to(torch.bfloat16)
    tree = greedy_chain(logits.float().numpy(), 3)
    result = kvctl.verify(logits, [tree], rule="greedy", drawn="deterministic")
    assert result.num_accepted.tolist() == [3]


CHAIN = kvctl.TokenTree.chain([1, 2])
BRANCH = kvctl.TokenTree([1, 2, 3], [-1, 0, 0])
UNIFORM = np.full((2, VOCAB), 1 / VOCAB)


@pytest.mark.parametrize(
    ("tree", "call", "message"),
    [
        (CHAIN, dict(rule="greedy", sampling=kvctl.Sampling()), "only at temperature 0"),
        (BRANCH, dict(rule="token_wise"), "node 0 has several children: use 'recursive'"),
        (BRANCH, dict(rule="block"), "is for chains"),
        (CHAIN, dict(rule="token_wise", drawn="coupled"), "use 'coupled' or 'target_only'"),
        (
            CHAIN,
            dict(rule="best_of_k", drawn="without_replacement"),
            "only for drawn='independent'",
        ),
        (CHAIN, dict(rule="token_wise", drawn="independent"), "draft_probs is needed"),
        (CHAIN, dict(rule="no_rule"), "rule must be one of greedy, target_only"),
        (CHAIN, dict(rule="block", drawn="by_hand"), "drawn must be one of deterministic"),
        (CHAIN, dict(rule="block", drawn=["deterministic"] * 2), "one entry for each of 1 trees"),
        (CHAIN, dict(rule="block", drawn=[["independent"]]), "needs 2 entries"),
        (CHAIN, dict(rule="block", root_positions=None), "root_positions must be given"),
        (CHAIN, dict(rule="block", root_positions=[2**31]), "position must be in"),
        (CHAIN, dict(rule="block", sampling=kvctl.Sampling(top_p=0)), "top_p must be in"),
        (CHAIN, dict(rule="block", sampling=kvctl.Sampling(temperature=-1)), "temperature"),
        (CHAIN, dict(rule="block", sampling=[kvctl.Sampling()] * 3), "one for each of 1 seq"),
        (
            CHAIN,
            dict(rule="token_wise", drawn="independent", draft_probs=UNIFORM * 2),
            "not a distribution",
        ),
        (CHAIN, dict(rule="token_wise", drawn="independent", draft_probs=UNIFORM[:1]), "shape"),
        (CHAIN, dict(rule="block", bitmask=np.zeros((2, 2), np.int32)), "no token is left"),
        (CHAIN, dict(rule="block", bitmask=np.zeros((1, 2), np.int32)), "bitmask must have shape"),
        (
            CHAIN,
            dict(rule="block", history=[[VOCAB]], sampling=kvctl.Sampling(repetition_penalty=1.1)),
            "history holds token 50",
        ),
        (CHAIN, dict(rule="block", probabilities=True), "not a distribution"),
        (kvctl.TokenTree.chain([1, VOCAB]), dict(rule="block"), "holds token 50"),
        (kvctl.TokenTree.chain([1]), dict(rule="block"), "the trees have 1 rows"),
    ],
)
def test_what_is_refused(tree, call, message):
    call = {"drawn": "deterministic", "root_positions": [0], **call}
    logits = make_logits(len(tree) if len(tree) > 1 else 2)
    with pytest.raises((ValueError, IndexError), match=message):
        kvctl.verify(logits, [tree], **call)


def test_a_token_that_could_not_have_been_drawn():
    q = UNIFORM.copy()
    q[0] = 0
    q[0, 5] = 1
    call = dict(rule="token_wise", drawn="independent", draft_probs=q, root_positions=[0])
    with pytest.raises(
        ValueError, match="sequence 0: node 1 holds token 2, which has probability 0"
    ):
        kvctl.verify(make_logits(2), [CHAIN], **call)
    twins = kvctl.TokenTree([1, 2, 2], [-1, 0, 0])
    logits = np.zeros((3, VOCAB), np.float32)
    logits[0, 2] = -60  # so that the first twin is rejected
    call |= dict(
        rule="recursive", drawn="without_replacement", draft_probs=np.full((3, VOCAB), 0.02)
    )
    with pytest.raises(ValueError, match="an earlier sibling holds"):
        kvctl.verify(logits, [twins], **call)


def test_request_ids_are_needed_for_batches_that_sample():
    call = dict(rule="target_only", drawn="deterministic", root_positions=[0, 0])
    with pytest.raises(ValueError, match="request_ids must be given"):
        kvctl.verify(make_logits(4), [CHAIN, CHAIN], **call)


def test_the_first_failing_sequence_is_named():
    logits = make_logits(6)
    logits[2:] = np.nan
    with pytest.raises(ValueError, match="sequence 1: after node 0: no token is left"):
        kvctl.verify(logits, [CHAIN] * 3, rule="greedy", drawn="deterministic")


def test_an_empty_batch():
    result = kvctl.verify(
        np.empty((0, VOCAB), np.float32), [], rule="greedy", drawn="deterministic"
    )
    assert len(result) == 0 and result.tokens == [] and result.rows.dtype == np.int32


def test_typical_accepts_what_is_plausible_and_takes_the_longest_path():
    p = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.1, 0.7], [1, 0, 0], [1, 0, 0]])
    #        0
    #     1     2      node 1 holds token 0, node 2 token 1
    #           3      node 3 holds token 2
    tree = kvctl.TokenTree([0, 0, 1, 2], [-1, 0, 0, 2])
    call = dict(rule="typical", drawn="deterministic", root_positions=[0], probabilities=True)
    entropy = -(p[0] * np.log(p[0])).sum()
    edge = 0.3 / np.exp(-entropy)  # delta at which node 2 is on the threshold
    longest = kvctl.verify(p[:4], tree, epsilon=1.0, delta=edge * 0.99, **call)
    assert longest.accepted_nodes == [[2, 3]] and not longest.lossless
    strict = kvctl.verify(p[:4], tree, epsilon=1.0, delta=edge * 1.01, **call)
    assert strict.accepted_nodes == [[1]]
    # epsilon caps the threshold: then both first tokens pass, and the longer path wins again.
    capped = kvctl.verify(p[:4], tree, epsilon=0.09, delta=edge * 1.01, **call)
    assert capped.accepted_nodes == [[2, 3]]
    # Of equally long paths the likelier.
    bush = kvctl.TokenTree([0, 1, 0], [-1, 0, 0])
    assert kvctl.verify(p[:3], bush, **call).accepted_nodes == [[2]]


@pytest.mark.parametrize("rule", ["target_only", "token_wise", "block", "recursive", "traversal"])
def test_a_very_deep_chain(rule):
    depth = 100_000  # one call of a function per node would overflow the stack
    logits = np.zeros((depth + 1, 2), np.float32)
    logits[:, 1] = -40
    draft = np.tile(np.array([[1, 0]], np.float32), (depth + 1, 1))
    result = kvctl.verify(
        logits,
        kvctl.TokenTree.chain([0] * (depth + 1)),
        rule=rule,
        drawn="independent",
        draft_probs=draft,
        root_positions=0,
    )
    assert result.num_accepted.tolist() == [depth]
