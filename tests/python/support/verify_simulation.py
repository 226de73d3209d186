"""Many requests at once through the shipped code, without a Python object for each tree."""

import numpy as np

from kvctl.draft import sample as draft_sample
from kvctl.verification.flatten import DRAWN, RULES
from kvctl.verification.run import run
from kvctl.verification.sampling import Sampling


def draw_siblings(q, *, how, siblings, trials, seed):
    """Draw siblings from q for each of `trials` requests."""
    return draft_sample(
        np.log(np.tile(q.astype(np.float32), (trials, 1))),
        how=how,
        n=siblings,
        request_ids=np.arange(trials),
        root_positions=np.full(trials, 7),
        seed=seed,
        depths=1,
    )


def verify_stars(p, q, *, rule, how, siblings, trials, seed=0, drawn=None, told=None):
    """Draw `siblings` from q for each of `trials` requests, verify them, return what was emitted.

    `drawn` is how they are really drawn, where `how` is a lie. `told` changes what else the
    verifier is told: (tokens (trials, n), distribution) -> the same.
    Returns the first emitted token of each request, and how many drafts were accepted.
    """
    n = siblings
    ids, roots = np.arange(trials), np.full(trials, 7)
    draw = draw_siblings(q, how=drawn or how, siblings=n, trials=trials, seed=seed)
    tokens, distribution = (
        (draw.tokens, draw.probs) if told is None else told(draw.tokens, draw.probs)
    )
    n = tokens.shape[1]
    nodes = np.zeros((4, trials, n + 1), np.int32)
    nodes[0, :, 1:] = tokens
    nodes[1, :, 0] = -1
    nodes[3] = DRAWN.index(how)
    ptrs = np.empty((2, trials + 1), np.int64)
    ptrs[0] = np.arange(trials + 1) * (n + 1)
    # All nodes share the root's row: nothing but the first token is judged, and p has no memory.
    ptrs[1] = np.arange(trials + 1)
    logits = np.log(np.tile(p.astype(np.float32), (trials, 1)))
    result = run(
        logits,
        nodes.reshape(4, -1),
        ptrs,
        RULES.index(rule),
        [Sampling()],
        np.stack([ids, roots]),
        draft=distribution,
        seed=seed,
    )
    return result._out_tokens.reshape(trials, n + 1)[:, 0], result.num_accepted
