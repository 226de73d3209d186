"""What a careless caller hands to kvctl.verify: refused by name, nothing cut to integers."""

import pickle

import numpy as np
import pytest

import kvctl
from kvctl import Sampling
from kvctl._ffi import functions as ffi
from kvctl.verification import RULES

VOCAB = 8
CHAIN = kvctl.TokenTree.chain([1, 2])
LOGITS = np.random.default_rng(0).standard_normal((2, VOCAB), np.float32)
UNIFORM = np.full((2, VOCAB), 1 / VOCAB, np.float32)


def call(logits=LOGITS, trees=CHAIN, **options):
    defaults = dict(rule="target_only", drawn="deterministic", root_positions=[5])
    return kvctl.verify(logits, trees, **(defaults | options))


def sparse(ids):
    return dict(rule="traversal", drawn="independent", draft_probs=(ids, UNIFORM[:, :4] * 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(seed=1.5), r"seeds and request ids must be integers, got 1\.5"),
        (dict(request_ids=["a"]), "seeds and request ids must be integers, got 'a'"),
        (dict(root_positions=[10.7]), "root_positions must be integers, got float64"),
        (dict(root_positions=["x"]), "root_positions must be integers"),
        (dict(history=[[1.5]]), "history must be integers"),
        (dict(sampling=Sampling(stop_tokens=[1.5])), "stop_tokens must be integers"),
        (dict(sampling=Sampling(logit_bias={1.5: 1.0})), "tokens of logit_bias must be integers"),
        (dict(sampling={"temperature": 1}), r"sampling must be kvctl\.Sampling, got dict"),
        (dict(sampling=3), r"sampling must be kvctl\.Sampling, got int"),
        (dict(sampling=[3]), r"sampling must be kvctl\.Sampling, got int"),
        (dict(sampling=Sampling(stop_tokens=7)), "stop_tokens must be a sequence of integers"),
        (dict(history=[7]), "history must be a sequence of integers, got 7"),
        (dict(drawn=None), "drawn must be a name, or one for each tree, got None"),
        (sparse(np.tile([2.5, 1, 3, 4], (2, 1))), "ids of draft_probs must be integers"),
        (dict(trees=[[1, 2]]), r"trees must be kvctl\.TokenTree, got list"),
        (dict(logits=None), "logits must be real numbers, got object"),
        (dict(logits=LOGITS.astype(np.float64)), "float32, float16 or bfloat16, got float64"),
        (dict(bitmask=np.ones((2, 1), np.int64)), "bitmask must be int32, got int64"),
    ],
)
def test_other_types(options, message):
    with pytest.raises(TypeError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(root_positions=[1, 2]), "root_positions needs one entry for each of 1, got 2"),
        (dict(request_ids=[1, 2]), "request_ids needs one entry for each of 1 sequences, got 2"),
        (dict(sampling=[]), "sampling parameters must be one for all .* got none"),
        (dict(root_positions=[2**70]), "root_positions must fit 64 bits"),
        (dict(history=[[2**40]]), "history must fit 32 bits, got 1099511627776"),
        (dict(sampling=Sampling(stop_tokens=[2**40])), "stop_tokens must fit 32 bits"),
        (dict(sampling=Sampling(logit_bias={2**40: 1.0})), "logit_bias must fit 32 bits"),
        (dict(sampling=Sampling(top_k=2**40)), r"top_k must be in \[0, 2\^31\)"),
        (sparse(np.tile([2**32 + 2, 1, 3, 4], (2, 1))), "ids of draft_probs must fit 32 bits"),
        (dict(draft_probs=(UNIFORM,)), r"a pair \(ids, probs\), got 1 arrays"),
        (dict(rule="typical", epsilon=-1.0), "epsilon must be at least 0 and finite, got -1"),
        (dict(rule="typical", delta=float("nan")), "delta must be at least 0 and finite, got nan"),
    ],
)
def test_other_values(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature="1"), "temperature must be a number, got '1'"),
        (dict(min_p=None), "min_p must be a number, got None"),
        (dict(presence_penalty=[1.0]), r"presence_penalty must be a number, got \[1\.0\]"),
        (dict(top_k=1.5), r"top_k must be an integer, got 1\.5"),
        (dict(top_k=None), "top_k must be an integer, got None"),
        (
            dict(logit_bias=[(1, 2.0)]),
            r"logit_bias must map tokens to numbers, got \[\(1, 2\.0\)\]",
        ),
    ],
)
def test_sampling_of_other_types(options, message):
    with pytest.raises(TypeError, match=message):
        Sampling(**options)
    assert Sampling(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3


def test_a_number_of_drafts_is_an_integer():
    for wrong in (1.5, None):
        with pytest.raises(TypeError, match=f"n must be an integer, got {wrong}"):
            kvctl.draft.sample(LOGITS, how="deterministic", n=wrong)
    with pytest.raises(ValueError, match="n must fit 32 bits, got 1099511627776"):
        kvctl.draft.sample(LOGITS, how="deterministic", n=2**40)


def test_logits_that_are_no_matrix():
    with pytest.raises(ValueError, match=r"must have shape \(rows, vocabulary\), got \(8,\)"):
        kvctl.sample(LOGITS[0], positions=[1])
    with pytest.raises(ValueError, match=r"must have shape \(rows, vocabulary\), got \(8,\)"):
        kvctl.draft.sample(LOGITS[0], how="deterministic")


def test_root_positions_of_every_kind():
    want = call().tokens
    for positions in (5, (5,), np.array([5]), np.int32(5), np.array(5)):
        assert call(root_positions=positions).tokens == want


def test_sampling_parameters_may_be_pickled_and_their_lists_changed():
    bias = {}
    sampling = Sampling(temperature=0, logit_bias=bias)
    first = call(sampling=sampling).tokens[0][0]
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    other = (first + 1) % VOCAB
    bias[other] = 1e6
    assert call(sampling=sampling).tokens[0][0] == other


def test_requests_hold_what_they_say():
    request = ffi.verify.new_request()
    out = np.empty(3 * 2 + 4, np.int32)
    with pytest.raises(TypeError, match="logits must be given"):
        ffi.verify.run(request, out, None)
    request.logits = LOGITS
    request.sampling = [Sampling(temperature=0).params()]
    request.rule = RULES.index("target_only")
    request.trees = CHAIN.encode()
    ffi.verify.run(request, out, None)
    request.trees = CHAIN.encode()[:-1].copy()
    with pytest.raises(ValueError, match="does not hold encoded token trees: tree 0"):
        ffi.verify.run(request, out, None)
    request.trees = np.array([2, 2, 1, 2, -1, 0, 0, 5], np.int32)
    with pytest.raises(IndexError, match="sequence 0: node 1 is in row 5 of 2"):
        ffi.verify.run(request, out, None)
    request.trees = np.array([2, 2, 1, 2, -1, 1, 0, 1], np.int32)
    with pytest.raises(ValueError, match="sequence 0: node 1 cannot have parent 1"):
        ffi.verify.run(request, out, None)
    request.trees = CHAIN.encode().astype(np.int64)
    with pytest.raises(TypeError, match="trees must be int32, got int64"):
        ffi.verify.run(request, out, None)
    request.trees = CHAIN.encode()
    request.drawn = 4
    with pytest.raises(ValueError, match=r"drawn must be in \[0, 3\], got 4"):
        ffi.verify.run(request, out, None)
    request.drawn = 0
    with pytest.raises(ValueError, match=r"out must have shape \(10\), got \(9\)"):
        ffi.verify.run(request, np.empty(9, np.int32), None)


def test_greedy_of_logits_alone_is_the_greedy_of_a_filled_request():
    logits = np.random.default_rng(3).normal(size=(7, 90)).astype(np.float32)
    best = logits.argmax(axis=1)
    trees = [
        kvctl.TokenTree.chain([0, best[0], best[1], 5]),
        kvctl.TokenTree([1, best[4] - 1, best[4]], [-1, 0, 0]),
    ]
    names = {"request_ids": [3, 2**40], "root_positions": [9, 0]}
    common = {"rule": "greedy", "drawn": "deterministic"}
    filled = kvctl.verify(
        logits, trees, sampling=kvctl.Sampling(temperature=0.0), **names, **common
    )
    for given in ({}, names, {**names, "request_ids": [3, 4]}, {"root_positions": 7}):
        result = kvctl.verify(logits, trees, **given, **common)
        assert result.tokens == filled.tokens and result.kept == filled.kept
        assert result.accepted_nodes == filled.accepted_nodes
        assert result.bonus.tolist() == filled.bonus.tolist()
        assert result.num_accepted.tolist() == filled.num_accepted.tolist()
        assert result.num_emitted.tolist() == filled.num_emitted.tolist()
        assert result.finished.tolist() == [False, False] and result.lossless


@pytest.mark.parametrize(
    "given",
    [
        {"request_ids": [1]},
        {"request_ids": [1, 2**64]},
        {"root_positions": [1]},
        {"root_positions": [0, -1]},
        {"seed": 2**64},
        {"drawn": "guessed"},
        {"epsilon": -1.0},
    ],
)
def test_greedy_of_logits_alone_checks_its_arguments(given):
    trees = [kvctl.TokenTree.chain([0])] * 2
    call = {"rule": "greedy", "drawn": "deterministic", **given}
    with pytest.raises(ValueError, match=r"\S"):
        kvctl.verify(np.zeros((2, 4), np.float32), trees, **call)
    for seed in (None, 0.5, "1"):
        with pytest.raises(TypeError):
            kvctl.verify(
                np.zeros((2, 4), np.float32),
                trees,
                rule="greedy",
                drawn="deterministic",
                seed=seed,
            )
