"""Many requests at once through the shipped code, without a Python object for each tree."""

import numpy as np

from kvctl._ffi import functions as ffi
from kvctl.draft import sample as draft_sample
from kvctl.verification.flatten import DRAWN, RULES
from kvctl.verification.request import set_draft, set_streams, set_target
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
    size = n + 1
    # Encoded trees. All nodes share the root's row: nothing but the first token is judged, and p
    # has no memory.
    code = np.zeros((trials, 2 + 3 * size), np.int32)
    code[:, :2] = size, 1
    code[:, 3 : 2 + size] = tokens
    code[:, 2 + size] = -1
    request = ffi.verify.new_request()
    request.rule = RULES.index(rule)
    request.trees = code.reshape(-1)
    request.drawn = DRAWN.index(how)
    set_target(request, np.log(np.tile(p.astype(np.float32), (trials, 1))), [Sampling()])
    set_draft(request, distribution, per_node=False)
    set_streams(request, seed, ids, roots)
    out = np.empty(3 * trials * size + 4 * trials, np.int32)
    ffi.verify.run(request, out, None)
    emitted = out[trials * size : 2 * trials * size].reshape(trials, size)
    num_accepted = out[3 * trials * size :][:trials]
    return emitted[:, 0], num_accepted
