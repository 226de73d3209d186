"""The acceptance rules for chains as one would write them in torch and in NumPy.

Each takes logits (B, n + 1, V), draft distributions q (B, n, V) and drafts (B, n), and returns the
number of accepted drafts (B,) and the next token (B,). All rows go through one vectorised softmax,
as usual.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def numpy_softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def numpy_draw(w: Array, rng: np.random.Generator) -> Array:
    c = w.cumsum(axis=-1)
    u = rng.random(c.shape[:-1]) * c[..., -1]
    return (c > u[..., None]).argmax(axis=-1)


def numpy_rule(rule: str, logits: Array, q: Array, drafts: Array, rng: Any) -> tuple[Array, Array]:
    batch, n = drafts.shape
    rows = np.arange(batch)
    if rule in ("greedy", "target_only", "coupled"):
        if rule == "greedy":
            y = logits.argmax(axis=-1)
        elif rule == "coupled":
            y = (numpy_softmax(logits) / rng.exponential(size=logits.shape)).argmax(axis=-1)
        else:
            y = numpy_draw(numpy_softmax(logits), rng)
        accepted = (y[:, :n] == drafts).cumprod(axis=1).sum(axis=1)
        return accepted, y[rows, accepted]
    p = numpy_softmax(logits)
    at = np.take_along_axis
    ratio = at(p[:, :n], drafts[..., None], -1)[..., 0] / at(q, drafts[..., None], -1)[..., 0]
    if rule == "token_wise":
        accepted = (rng.random((batch, n)) < ratio).cumprod(axis=1).sum(axis=1)
        before = p[rows, accepted]
        q_there = np.where((accepted < n)[:, None], q[rows, np.minimum(accepted, n - 1)], 0)
        return accepted, numpy_draw(np.maximum(before - q_there, 0), rng)
    a = np.ones((batch, n + 1), np.float32)
    for i in range(n):
        a[:, i + 1] = np.minimum(1, a[:, i] * ratio[:, i])
    w = np.maximum(a[:, :n, None] * p[:, :n] - q, 0)
    s = w.sum(axis=-1)
    h = np.concatenate([s / (s + 1 - a[:, :n]), a[:, n:]], axis=1)
    h[:, 0] = 1
    hit = rng.random((batch, n + 1)) < h
    accepted = n - hit[:, ::-1].argmax(axis=1)
    residual = np.where((accepted < n)[:, None], w[rows, np.minimum(accepted, n - 1)], p[:, n])
    return accepted, numpy_draw(residual, rng)


def torch_draw(w: Array) -> Array:
    """Draw from rows of weights, in the fastest way of torch (`multinomial` is far slower)."""
    import torch

    c = w.cumsum(dim=-1)
    u = torch.rand(c.shape[:-1])[..., None] * c[..., -1:]
    return torch.searchsorted(c, u, right=True)[..., 0].clamp_(max=w.shape[-1] - 1)


def torch_rule(rule: str, logits: Array, q: Array, drafts: Array) -> tuple[Array, Array]:
    """Run a rule on all rows at once."""
    import torch

    batch, n = drafts.shape
    rows = torch.arange(batch)
    if rule in ("greedy", "target_only", "coupled"):
        if rule == "coupled":  # noise for every token of the vocabulary, which the draft shares
            p = logits.softmax(dim=-1)
            y = (p / torch.empty_like(p).exponential_()).argmax(dim=-1)
        else:
            y = logits.argmax(dim=-1) if rule == "greedy" else torch_draw(logits.softmax(dim=-1))
        accepted = (y[:, :n] == drafts).long().cumprod(dim=1).sum(dim=1)
        return accepted, y[rows, accepted]
    p = logits.softmax(dim=-1)
    ratio = (p[:, :n].gather(-1, drafts[..., None]) / q.gather(-1, drafts[..., None]))[..., 0]
    if rule == "token_wise":
        accepted = (torch.rand(batch, n) < ratio).long().cumprod(dim=1).sum(dim=1)
        q_there = q[rows, accepted.clamp(max=n - 1)] * (accepted < n)[:, None]
        residual = (p[rows, accepted] - q_there).clamp_(min=0)
    else:
        a = torch.ones(batch, n + 1)
        for i in range(n):
            a[:, i + 1] = (a[:, i] * ratio[:, i]).clamp(max=1)
        w = (a[:, :n, None] * p[:, :n]).sub_(q).clamp_(min=0)
        s = w.sum(dim=-1)
        h = torch.cat([s / (s + 1 - a[:, :n]), a[:, n:]], dim=1)
        h[:, 0] = 1
        hit = torch.rand(batch, n + 1) < h
        accepted = n - hit.flip(1).int().argmax(dim=1)
        all_accepted = (accepted == n)[:, None]
        residual = torch.where(all_accepted, p[:, n], w[rows, accepted.clamp(max=n - 1)])
    return accepted, torch_draw(residual)


def torch_walk(
    rule: str, logits: Array, q: Array, drafts: Array, continues: Array
) -> tuple[Array, Array]:
    """Run a rule position by position, without rows that are never reached.

    The number of accepted drafts decides how much work a call is. To give peers equal work,
    acceptance is computed here too, but then ``continues`` (B, n + 1) says which sequences accept
    the draft at each position.
    """
    import torch

    batch, n = drafts.shape
    alive = torch.arange(batch)
    accepted = torch.zeros(batch, dtype=torch.long)
    token = torch.empty(batch, dtype=torch.long)
    for i in range(n + 1):
        rows = logits[:, i] if len(alive) == batch else logits[alive, i]
        x = drafts[alive, i] if i < n else None
        if rule == "token_wise" and x is not None:
            at = x[:, None]
            p_x = (rows.gather(1, at) - rows.logsumexp(dim=-1, keepdim=True)).exp_()[:, 0]
            accept = torch.rand(len(alive)) < p_x / q[alive, i].gather(1, at)[:, 0]
            go_on = accept.copy_(continues[alive, i])
            stop = ~go_on
            if bool(stop.any()):
                residual = rows[stop].softmax(dim=-1).sub_(q[alive[stop], i]).clamp_(min=0)
                token[alive[stop]] = torch_draw(residual)
        else:
            if rule == "coupled":
                p = rows.softmax(dim=-1)
                y = (p / torch.empty_like(p).exponential_()).argmax(dim=-1)
            else:
                y = rows.argmax(dim=-1) if rule == "greedy" else torch_draw(rows.softmax(dim=-1))
            token[alive] = y
            accept = y != y if x is None else y == x
            go_on = accept.copy_(continues[alive, i])
        alive = alive[go_on]
        if not len(alive):
            break
        accepted[alive] += 1
    return accepted, token
