"""Verifying drafted trees, and sampling from logits without any."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ffi import functions as ffi
from ..tree import TokenTree, as_trees
from .enumeration import Rule
from .flatten import RULES, Drawn, drawn_kinds, kind, matrix_shape, signed, streams, tensor
from .greedy import are_plain_names, verify_greedily
from .in_shards import is_sharded, sample_in_shards, verify_in_shards
from .own_rule import verify_by
from .request import set_draft, set_history, set_streams, set_target, set_trees
from .result import Verification
from .sampling import Sampling, per_request

Int32 = npt.NDArray[np.int32]

_GREEDY = Sampling(temperature=0.0)
_SOFTMAX = Sampling()


def verify(
    logits: Any,
    trees: TokenTree | Sequence[TokenTree],
    *,
    rule: str | Rule,
    drawn: Drawn,
    draft_probs: Any = None,
    draft_probs_per_node: Any = None,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int = 0,
    request_ids: Sequence[int] | None = None,
    root_positions: Sequence[int] | int | None = None,
    history: Sequence[Sequence[int]] | None = None,
    bitmask: Any = None,
    probabilities: bool = False,
    log_probs: bool = False,
    epsilon: float = 0.09,
    delta: float = 0.3,
    errors: str = "raise",
) -> Verification:
    """Decide which drafted tokens of a batch stay, and what comes after them.

    Parameters
    ----------
    logits
        (R, V) float32, float16 or bfloat16, anything with DLPack: the target's logits, the rows of
        one tree after another. Row i of a tree says what follows its node i. They may lie on a CUDA
        device, and dense ``draft_probs`` with them: then only the tokens come to the host. Or
        `kvctl.verification.ShardedLogits`, whose columns lie on several workers.
    trees
        The drafted tree of each of B sequences; a chain is a tree.
    rule
        ``greedy``, ``target_only``, ``token_wise`` (chains), ``block`` (chains), ``recursive``,
        ``traversal``, ``best_of_k`` (K paths of one length), ``coupled`` or ``typical`` (lossy).
        Or a function of (`DraftedTree`, `RoundRng`) that returns (last accepted node, bonus): the
        one whose outcomes `enumerate_outcomes` proves. The result then does not claim to be
        lossless.
    drawn
        How the tokens were drawn: ``deterministic``, ``independent``, ``without_replacement`` or
        ``coupled``; one for all, or a sequence with one for each tree, or one for each node (the
        root's is not read). Siblings that were sorted, pruned or re-ranked by value after drawing
        are deterministic.
    draft_probs
        The distributions the tokens were drawn from, used exactly as given: (R, V) float32 or
        float64 aligned with the logits, row i the distribution of node i's *children*; rows of
        leaves are ignored. Or a pair (ids, probs) of (R, k) arrays for sparse rows, id -1 meaning
        no entry. Not needed for deterministic and coupled nodes.
    draft_probs_per_node
        Instead, a distribution for each node, (N, V): the distribution that node itself was drawn
        from given its earlier siblings, for trees of several drafters.
    sampling
        One for all or one for each sequence. By default greedy for rule ``greedy``, else the
        model's softmax. What follows a stop token is dropped, so the row of a drafted stop token
        is never read, and what was drafted below it is never reached.
    seed, request_ids, root_positions
        Name the random numbers: request_ids (B,) integers that identify each request for as long
        as it lives, and root_positions (B,) the absolute position of each tree's node 0. Both are
        needed where tokens are sampled (request_ids for more than one sequence). Sequences of one
        id and position draw the same numbers: forks of a request need ids of their own.
    history
        The tokens of each sequence before its root, for penalties; where `sampling` sets none it
        is not read.
    bitmask
        (N, W) int32, one row for each node of the batch: bit i of word j allows token 32 j + i
        after it. W is usually ceil(V / 32). A tokenizer may have fewer tokens than there are
        logits: a narrower mask forbids the tokens that it does not reach. Words beyond the logits
        must be 0.
    probabilities
        The rows of `logits` are distributions already, float32 or float64; they are used as they
        are.
    log_probs
        Also return the log-probability of every emitted token.
    epsilon, delta
        Thresholds of rule ``typical``: it accepts p > min(epsilon, delta * exp(-entropy)).
    errors
        ``raise``: a sequence that cannot be decided (a row leaves no token, a draft could not have
        been drawn, the rule would be biased for its tree) is an error. ``status``: the others are
        decided, and the result's `errors` say what was wrong. Arrays and trees that do not fit
        each other are an error in either case.

    Returns
    -------
    Verification

    Raises
    ------
    ValueError
        If the combination of rule and drawn would be biased (the message names a rule that is not),
        shapes do not fit, a drafted token is outside the vocabulary (the drafter's is larger: drop
        such drafts), a token could not have been drawn from its distribution, or a row leaves no
        token to choose.

    Examples
    --------
    >>> chain = kvctl.TokenTree.chain([1, 2])
    >>> logits = np.array([[0.0, 1.0, 3.0, 0.0], [2.0, 0.0, 0.0, 0.0]], np.float32)
    >>> kvctl.verify(logits, [chain], rule="greedy", drawn="deterministic").tokens
    [[2, 0]]
    """
    trees = as_trees(trees)
    if is_sharded(logits):
        if bitmask is None and not (probabilities or log_probs):
            many = per_request(sampling, _GREEDY if rule == "greedy" else _SOFTMAX)
            random = any(one.temperature > 0 for one in many)
            ids, positions = streams(
                len(trees), request_ids, root_positions, "root_positions", random=random
            )
            drawn_kinds(trees, drawn)
            told = verify_in_shards(logits, trees, rule, many, signed(seed), ids, positions)
            if told is not None:
                return told
        logits = logits.gather()
    if not (0 <= epsilon < math.inf and 0 <= delta < math.inf):
        name, threshold = ("delta", delta) if 0 <= epsilon < math.inf else ("epsilon", epsilon)
        raise ValueError(f"{name} must be at least 0 and finite, got {threshold}")
    if draft_probs is not None and draft_probs_per_node is not None:
        raise ValueError("give either draft_probs or draft_probs_per_node")
    each = kind(errors, ("raise", "status"), "errors") == 1
    if (
        rule == "greedy"
        and isinstance(drawn, str)
        and sampling is draft_probs is draft_probs_per_node is history is bitmask is None
        and not (each or probabilities or log_probs)
        and are_plain_names(len(trees), seed, request_ids, root_positions)
    ):
        with contextlib.suppress(ValueError):  # the request below says with positions what is wrong
            return verify_greedily(logits, trees, drawn)
    if callable(rule):
        if draft_probs_per_node is not None or log_probs or each:
            raise ValueError(
                "a rule of your own takes no draft_probs_per_node, no errors='status' and no "
                "log_probs (kvctl.target_probs has them)"
            )
        samplings = per_request(sampling, _SOFTMAX)
        random = any(s.temperature > 0 for s in samplings)
        ids, positions = streams(
            len(trees), request_ids, root_positions, "root_positions", random=random
        )
        return verify_by(
            rule,
            logits,
            trees,
            drawn=drawn,
            draft_probs=draft_probs,
            samplings=samplings,
            seed=seed,
            ids=ids,
            positions=positions,
            history=history,
            bitmask=bitmask,
            probabilities=probabilities,
        )
    request = ffi.verify.new_request()
    request.rule = kind(rule, RULES, "rule")
    if rule == "typical":
        request.epsilon, request.delta = epsilon, delta
    samplings = per_request(sampling, _GREEDY if rule == "greedy" else _SOFTMAX)
    begins = set_trees(request, trees, drawn)
    random = rule == "typical" or any(s.temperature > 0 for s in samplings)
    size = len(trees)
    ids, positions = streams(size, request_ids, root_positions, "root_positions", random=random)
    set_streams(request, seed, ids, positions)
    if draft_probs is not None:
        set_draft(request, draft_probs, per_node=False)
    elif draft_probs_per_node is not None:
        set_draft(request, draft_probs_per_node, per_node=True)
    set_history(request, history, size)
    set_target(request, logits, samplings, bitmask=bitmask, probabilities=probabilities)

    num_nodes = int(begins[0, -1])
    out: Any = np.empty(3 * num_nodes + 4 * size, np.int32)
    out_log_probs: Any = np.full(num_nodes, np.nan) if log_probs else None
    lossless = rule != "typical"
    if each:
        found = ffi.verify.run_each(request, out, out_log_probs)
        return Verification(trees, begins, out, out_log_probs, lossless=lossless, errors=found)
    ffi.verify.run(request, out, out_log_probs)
    return Verification(trees, begins, out, out_log_probs, lossless=lossless)


def sample(
    logits: Any,
    *,
    sampling: Sampling | Sequence[Sampling] | None = None,
    seed: int = 0,
    request_ids: Sequence[int] | None = None,
    positions: Sequence[int] | int | None = None,
    history: Sequence[Sequence[int]] | None = None,
    bitmask: Any = None,
    noise: str = "uniform",
    probabilities: bool = False,
) -> Int32:
    """Sample one token from each row of logits, as verifying with ``target_only`` would.

    With the same seed, request ids and bit-equal logits, tokens sampled one by one here are the
    tokens that ``kvctl.verify(..., rule="target_only")`` emits, whatever was drafted; with
    ``noise="gumbel"``, those that ``rule="coupled"`` emits.

    Parameters
    ----------
    logits
        (B, V) float32, float16 or bfloat16.
    sampling
        One for all or one for each row; by default the model's softmax.
    seed, request_ids, positions
        Name the random numbers; positions (B,) are the absolute positions of the tokens sampled.
    history
        All tokens of each sequence before the sampled one, for penalties.
    bitmask
        (B, W) int32, as in ``kvctl.verify``.
    noise
        ``uniform``: one random number per token. ``gumbel``: one per entry of the vocabulary, the
        noise that coupled drafting shares.
    probabilities
        The rows are distributions already, float32 or float64.

    Returns
    -------
    numpy.ndarray
        (B,) int32 tokens.

    Raises
    ------
    ValueError
        As ``kvctl.verify``.
    """
    if is_sharded(logits):
        many = per_request(sampling, _SOFTMAX)
        if bitmask is None and noise == "uniform" and not probabilities:
            random = any(one.temperature > 0 for one in many)
            names = streams(logits.shape[0], request_ids, positions, "positions", random=random)
            found = sample_in_shards(logits, many, signed(seed), *names)
            if found is not None:
                return found
        logits = logits.gather()
    logits = tensor(logits, "logits")
    size, _ = matrix_shape(logits, "logits")
    samplings = per_request(sampling, _SOFTMAX)
    random = any(s.temperature > 0 for s in samplings)
    ids, where = streams(size, request_ids, positions, "positions", random=random)
    request = ffi.verify.new_request()
    request.rule = RULES.index("target_only")
    request.gumbel = kind(noise, ("uniform", "gumbel"), "noise") == 1
    # Without trees, each row follows a root whose token is not known, just before the position.
    set_streams(request, seed, ids, None if where is None else where - 1)
    set_history(request, history, size)
    set_target(request, logits, samplings, bitmask=bitmask, probabilities=probabilities)
    out: Any = np.empty(7 * size, np.int32)
    ffi.verify.run(request, out, None)
    tokens: Int32 = out[size : 2 * size]
    return tokens
