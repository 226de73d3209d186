"""Whether logits are the same bits however many rows, sequences and threads a forward has.

Where they are, speculative text is plain decoding's: greedily, and sampled seed by seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..tree import TokenTree

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
        The first row that differs, and the first layer if the runner can say; "" where none does.
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
    chain, reference = _reference(runner, rows, seed)
    for n in range(1, rows + 1):
        found = np.concatenate(list(_chunks(runner, chain, n)))
        yield _compare(runner, f"{n} rows", reference, found, chain, n)
    yield _tree(runner, chain, reference)
    for size in range(2, batch + 1):
        yield _batch(runner, chain, reference, size, seed)


def check_threads(model: str, threads: Sequence[int], *, rows: int = 16) -> Iterator[Finding]:
    """Compare digests of the logits of processes with other numbers of threads.

    Parameters
    ----------
    model
        As the commands take it.
    threads
        Numbers of threads, for OpenMP and for TVM.
    rows
        Tokens to decode, one by one and at once.

    Yields
    ------
    Finding
        For each number but the first, which the others are compared with.
    """
    digests = [_digests_with(model, count, rows) for count in threads]
    for count, digest in zip(threads[1:], digests[1:], strict=True):
        places = [i for i, (a, b) in enumerate(zip(digests[0], digest, strict=True)) if a != b]
        where = f"row {places[0]}" if places else ""
        difference = float("nan") if places else 0.0
        what = f"{count} threads beside {threads[0]}"
        yield Finding(what, not places, difference, 0, where)


def digests(runner: Runner, rows: int, seed: int = 0) -> list[str]:
    """Return a digest of each row of logits: decoded one by one, then all at once."""
    chain, reference = _reference(runner, rows, seed)
    [at_once] = _chunks(runner, chain, rows)
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in (*reference, *at_once)]


_CHILD = """
import json, sys
from kvctl.checks.bitwise import digests
from kvctl.cli.open_runner import open_runner
print(json.dumps(digests(open_runner(sys.argv[1], talks=False), int(sys.argv[2]))))
"""


def _digests_with(model: str, threads: int, rows: int) -> list[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TVM_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, model, str(rows)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"the process with {threads} threads failed: {lines[-1]}")
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _tokens(runner: Runner, n: int, seed: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, runner.vocab_size, n).tolist()
    return drawn


def _rows(logits: Any) -> Float32:
    rows: Float32 = np.array(np.from_dlpack(logits.to("cpu") if hasattr(logits, "to") else logits))
    return rows


def _reference(runner: Runner, rows: int, seed: int) -> tuple[list[int], Float32]:
    """Return tokens behind the prompt, and the logits of decoding them one by one."""
    chain = _tokens(runner, _PROMPT + rows, seed)
    with _Sequences(runner, {0: chain[:_PROMPT]}):
        parts = [_rows(runner.decode([0], [token])) for token in chain[_PROMPT:]]
    return chain, np.concatenate(parts)


def _chunks(runner: Runner, chain: Sequence[int], n: int) -> Iterator[Float32]:
    """Yield the logits of forwards of n rows until the chain ends; the last one may have fewer."""
    with _Sequences(runner, {0: list(chain[:_PROMPT])}):
        for begin in range(_PROMPT, len(chain), n):
            part = chain[begin : begin + n]
            yield _rows(runner.verify([0], [TokenTree.chain(part)]))
            runner.cache.commit([0], [range(len(part))])


def _tree(runner: Runner, chain: Sequence[int], reference: Float32) -> Finding:
    """Compare a tree whose other branches hold anything."""
    n = len(chain) - _PROMPT
    tokens, parents, own = [chain[_PROMPT]], [-1], [0]
    for token in chain[_PROMPT + 1 :]:
        for child in ((token + 1) % runner.vocab_size, token):
            tokens.append(child)
            parents.append(own[-1])
        own.append(len(tokens) - 1)
    with _Sequences(runner, {0: list(chain[:_PROMPT])}):
        found = _rows(runner.verify([0], [TokenTree(tokens, parents)]))[own]
        runner.cache.abort([0])
    return _compare(runner, f"a tree of {len(tokens)} rows", reference, found, chain, n)


def _batch(
    runner: Runner, chain: Sequence[int], reference: Float32, size: int, seed: int
) -> Finding:
    """Compare a sequence among others of other lengths."""
    others = {i: _tokens(runner, 5 + 9 * i, seed + i) for i in range(1, size)}
    found = []
    with _Sequences(runner, {**others, 0: list(chain[:_PROMPT])}):
        ids = [*others, 0]
        for token in chain[_PROMPT:]:
            rows = _rows(runner.decode(ids, [(token + i) % runner.vocab_size for i in ids]))
            found.append(rows[-1:])
    return _compare(runner, f"{size} sequences", reference, np.concatenate(found), chain, 1)


class _Sequences:
    """Sequences with prompts, for as long as a block runs."""

    def __init__(self, runner: Runner, prompts: dict[int, list[int]]) -> None:
        self._runner = runner
        self._prompts = prompts

    def __enter__(self) -> None:
        for id, tokens in self._prompts.items():
            self._runner.cache.add_sequence(id)
            self._runner.prefill([id], [tokens])

    def __exit__(self, *_: object) -> None:
        for id in self._prompts:
            self._runner.cache.remove_sequence(id)


def _compare(
    runner: Runner, what: str, reference: Float32, found: Float32, chain: Sequence[int], n: int
) -> Finding:
    bits = reference.view(np.int32) != found.view(np.int32)
    if not bits.any():
        return Finding(what, True)
    row = int(np.flatnonzero(bits.any(axis=1))[0])
    flips = int((reference.argmax(axis=1) != found.argmax(axis=1)).sum())
    layer = _first_layer(runner, chain, n) if n > 1 else None
    where = f"row {row}" + (f", layer {layer}" if layer is not None else "")
    return Finding(what, False, float(np.abs(reference - found).max()), flips, where)


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
        with _Sequences(runner, {0: list(chain[:_PROMPT])}):
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
        with _Sequences(runner, {0: list(chain[:1])}):
            try:
                runner.forward([0], [chain[1:2]], hidden=[layer])
            except (ValueError, NotImplementedError):
                continue
            found.append(layer)
    return found
