"""Whether logits are the same bits however many rows, sequences and threads a forward has.

Where they are, speculative text is plain decoding's: greedily, and sampled seed by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree
from .differences import difference
from .operations import Event, can_record, first_difference, recorded
from .sequences import sequences

if TYPE_CHECKING:
    from ..engine.protocol import Runner

Float32 = npt.NDArray[np.float32]
_PROMPT = 37
"""Tokens before the rows that are compared: more than two pages, and no multiple of one."""


@dataclass(frozen=True)
class Finding:
    """One comparison with decoding token by token.

    Attributes
    ----------
    what : str
        What was varied.
    same : bool
        Whether all logits were the same bits.
    difference : float
        The largest difference of a logit.
    flips : int
        Rows whose most probable token is another one.
    where : str
        The first row that differs, and the first layer and the operation if the runner can say; ""
        where none does.
    """

    what: str
    same: bool
    difference: float = 0.0
    flips: int = 0
    where: str = ""


def check_bitwise(
    runner: Runner, *, rows: int = 16, batch: int = 4, seed: int = 0
) -> Iterator[Finding]:
    """Compare the logits of forwards of many rows and sequences with decoding one by one.

    Parameters
    ----------
    runner
        The model; its cache must be empty, and have room for `batch` sequences.
    rows
        The most rows of one forward.
    batch
        The most sequences of one forward.
    seed
        Of the random tokens.

    Yields
    ------
    Finding
        For chains of 1 to `rows` rows, for a tree, and for batches of 2 to `batch` sequences.
    """
    chain, reference = decode_alone(runner, rows, seed)
    for n in range(1, rows + 1):
        found = np.concatenate(list(decode_in_chunks(runner, chain, n)))
        yield _compare(f"{n} rows", reference, found, partial(_where_in_chain, runner, chain, n))
    yield _tree(runner, chain, reference)
    for size in range(2, batch + 1):
        yield _batch(runner, chain, reference, size, seed)


def _tokens(runner: Runner, n: int, seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, runner.vocab_size, n).tolist()
    return drawn


def _rows(logits: Any) -> Float32:
    rows: Float32 = np.array(np.from_dlpack(logits.to("cpu") if hasattr(logits, "to") else logits))
    return rows


def decode_alone(runner: Runner, rows: int, seed: int) -> tuple[list[int], Float32]:
    """Return tokens behind the prompt, and the logits of decoding them one by one."""
    chain = _tokens(runner, _PROMPT + rows, seed)
    with sequences(runner, {0: chain[:_PROMPT]}):
        parts = [_rows(runner.decode([0], [token])) for token in chain[_PROMPT:]]
    return chain, np.concatenate(parts)


def decode_in_chunks(runner: Runner, chain: Sequence[int], n: int) -> Iterator[Float32]:
    """Yield the logits of forwards of n rows until the chain ends; the last one may have fewer."""
    with sequences(runner, {0: list(chain[:_PROMPT])}):
        for begin in range(_PROMPT, len(chain), n):
            part = chain[begin : begin + n]
            yield _rows(runner.verify([0], [TokenTree.chain(part)]))
            runner.cache.commit([0], [range(len(part))])


def _tree(runner: Runner, chain: Sequence[int], reference: Float32) -> Finding:
    """Compare a tree whose other branches hold anything."""
    tokens, parents, own = [chain[_PROMPT]], [-1], [0]
    for token in chain[_PROMPT + 1 :]:
        for child in ((token + 1) % runner.vocab_size, token):
            tokens.append(child)
            parents.append(own[-1])
        own.append(len(tokens) - 1)
    tree = TokenTree(tokens, parents)
    with sequences(runner, {0: list(chain[:_PROMPT])}):
        found = _rows(runner.verify([0], [tree]))[own]
        runner.cache.abort([0])

    def where(row: int) -> str:
        return _operation(runner, chain, 0, tree, own)

    return _compare(f"a tree of {len(tokens)} rows", reference, found, where)


def _batch(
    runner: Runner, chain: Sequence[int], reference: Float32, size: int, seed: int
) -> Finding:
    """Compare a sequence among others of other lengths."""
    others = {i: _tokens(runner, 5 + 9 * i, seed + i) for i in range(1, size)}
    prompts, ids = {**others, 0: list(chain[:_PROMPT])}, [*others, 0]

    def step(token: int) -> Float32:
        rows = _rows(runner.decode(ids, [(token + i) % runner.vocab_size for i in ids]))
        return rows[-1:]

    with sequences(runner, prompts):
        found = [step(token) for token in chain[_PROMPT:]]

    def where(row: int) -> str:
        if not can_record(runner):
            return ""
        before, token = chain[_PROMPT : _PROMPT + row], chain[_PROMPT + row]
        with sequences(runner, prompts):
            for earlier in before:
                step(earlier)
            with recorded(runner) as many:
                step(token)
        with sequences(runner, {0: list(chain[:_PROMPT])}):
            for earlier in before:
                runner.decode([0], [earlier])
            with recorded(runner) as alone:
                runner.decode([0], [token])
        return _named(first_difference(many, size, [(size - 1, alone)]))

    return _compare(f"{size} sequences", reference, np.concatenate(found), where)


def _compare(what: str, reference: Float32, found: Float32, where: Callable[[int], str]) -> Finding:
    """Compare logits; `where` says more about the first row that differs."""
    bits = reference.view(np.int32) != found.view(np.int32)
    if not bits.any():
        return Finding(what, True)
    row = int(np.flatnonzero(bits.any(axis=1))[0])
    flips = int((reference.argmax(axis=1) != found.argmax(axis=1)).sum())
    place = f"row {row}{where(row)}"
    return Finding(what, False, float(difference(reference, found).max()), flips, place)


def _where_in_chain(runner: Runner, chain: Sequence[int], n: int, row: int) -> str:
    """Return the operation, or else the layer, that makes a row of forwards of n rows differ."""
    if can_record(runner):
        begin = row // n * n
        part = chain[_PROMPT + begin : _PROMPT + begin + n]
        return _operation(runner, chain, begin, TokenTree.chain(part), range(len(part)))
    layer = _first_layer(runner, chain, n) if n > 1 else None
    return f", layer {layer}" if layer is not None else ""


def _operation(
    runner: Runner, chain: Sequence[int], begin: int, tree: TokenTree, own: Sequence[int]
) -> str:
    """Return the first operation that gives the rows `own` of a tree other bits than a chain's.

    `begin` tokens of the chain are behind the prompt already.
    """
    if not can_record(runner):
        return ""

    def alone(token: int) -> None:
        runner.verify([0], [TokenTree.chain([token])])
        runner.cache.commit([0], [[0]])

    rows = []
    with sequences(runner, {0: list(chain[:_PROMPT])}):
        for token in chain[_PROMPT : _PROMPT + begin]:
            alone(token)
        with recorded(runner) as many:
            runner.verify([0], [tree])
        runner.cache.abort([0])
        for row, token in zip(own, chain[_PROMPT + begin :], strict=False):
            with recorded(runner) as events:
                alone(token)
            rows.append((row, events))
    return _named(first_difference(many, len(tree), rows))


def _named(event: Event | None) -> str:
    if event is None:
        return ""
    shape = ", ".join(map(str, event.value.shape))
    return f", operation {event.name}, which gives ({shape})"


def _first_layer(runner: Runner, chain: Sequence[int], n: int) -> int | None:
    """Return the first layer whose output differs between one row and n; None if unknown.

    A library that was compiled to give the outputs of some layers is asked for these alone.
    """
    if "hidden" not in runner.abilities:
        return None
    hidden: list[Float32] = []
    forward: Any = runner.forward
    layers = _given_layers(runner, chain)
    if not layers:
        return None
    for size in (1, n):
        with sequences(runner, {0: list(chain[:_PROMPT])}):
            parts = []
            for begin in range(_PROMPT, _PROMPT + n, size):
                tokens = chain[begin : begin + size]
                parts.append(_rows(forward([0], [tokens], hidden=layers)[1]))
            hidden.append(np.concatenate(parts))
    differs = (hidden[0] != hidden[1]).any(axis=(0, 2))
    return layers[int(np.flatnonzero(differs)[0])] if differs.any() else None


def _given_layers(runner: Any, chain: Sequence[int]) -> list[int]:
    """Return the layers whose outputs the runner gives."""
    found = []
    for layer in range(int(runner.cache.num_layers)):
        with sequences(runner, {0: list(chain[:1])}):
            try:
                runner.forward([0], [chain[1:2]], hidden=[layer])
            except (ValueError, NotImplementedError):
                continue
            found.append(layer)
    return found
