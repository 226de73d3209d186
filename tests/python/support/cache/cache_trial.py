"""One cache and the model beside it: every operation goes to both, every answer is compared.

An operation is a plain tuple, so that a log of them can be replayed, cut down and printed. Every
operation may be applied in every state: where it makes no sense, both must refuse it alike and stay
as they were, which keeps any part of a log meaningful.

One file, since each operation is one method of the trial.
"""

from __future__ import annotations

import atexit
import itertools
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

import kvctl
from kvctl.testing.cache_model import CacheModel, Window
from library_rotation import frequencies, library_cache, rotation_in_python, turned

REFUSALS = (KeyError, IndexError, ValueError, RuntimeError)


class Mismatch(AssertionError):
    """The cache answered otherwise than the model."""


@dataclass(frozen=True)
class Setup:
    """A small cache: few pages, so that they run out often."""

    page_size: int = 4
    num_pages: int = 24
    dtype: str = "float32"
    num_layers: int = 2
    num_qo_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    prefill_chunk_size: int = 24
    rope: bool = False
    rope_inline: bool = False
    rope_library: bool = False  # a function of the model library rotates
    layer_windows: tuple[int, ...] = ()

    def shapes(self) -> dict[str, Any]:
        return {
            "num_layers": self.num_layers,
            "num_qo_heads": self.num_qo_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "prefill_chunk_size": self.prefill_chunk_size,
            "layer_windows": self.layer_windows,
        }


class Trial:
    """Applies operations to a kvctl cache and to the model.

    ``("add", s)``, ``("remove", s)``, ``("fork", parent, child, position)``, ``("popn", s, n)``,
    ``("step", ((s, chain length | parents | mask), ...), pending, data, finish, shift)`` where a
    mask is ``("full", length, seed)``, any relation over past and new, where data says
    which random numbers are appended, finish is "end", "abort" (at once) or "late" (after a layer)
    and shift, unless 0, moves the positions of the new tokens,
    ``("commit", ((s, kept), ...), any nodes)``, ``("abort", None | (s, ...))``,
    ``("checkpoint", s, name)``, ``("rollback", s, name)``,
    ``("window", s, size, sinks, horizon, renumber)``, ``("check", s)``,
    ``("evict", s, kept, rerotate)``, ``("save", s, name)``, ``("load", s, name)``,
    ``("move", page_size)``: every sequence goes through a file to a new cache.
    """

    POOL = 1 << 12

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cache = self.create()
        self.model = CacheModel(
            **setup.shapes(),
            max_sequences=16,
            rope_theta=10000.0 if setup.rope else None,
            rope_inline=setup.rope_inline,
        )
        self.num_pages = self.cache.num_available_pages
        self.checkpoints: dict[int, tuple[int, Any, Any]] = {}
        self.number = next(_numbers)
        self.files: dict[int, Any] = {}
        heads = setup.num_qo_heads + 2 * setup.num_kv_heads
        self.pool = _pool((setup.num_layers, self.POOL, heads, setup.head_dim), setup.dtype)
        self.tolerance = 4e-3 if setup.dtype == "float16" else 1e-5
        if setup.dtype == "int8" and setup.rope:
            self.tolerance = 5e-2  # rotated keys are rounded
        self.poison()

    def path(self, name: int) -> Path:
        return _directory() / f"{self.number}-{name}"

    def create(self) -> Any:
        if self.setup.rope and self.setup.rope_library:
            return self.create_as_a_library()
        return kvctl.PagedKVCache.create(
            **self.setup.shapes(),
            max_total_tokens=self.setup.num_pages * self.setup.page_size,
            page_size=self.setup.page_size,
            max_sequences=16,
            dtype=self.setup.dtype,
            rope=kvctl.cache.Rope(inline=self.setup.rope_inline) if self.setup.rope else None,
        )

    def create_as_a_library(self) -> Any:
        shapes = self.setup.shapes()
        assert not any(shapes.pop("layer_windows"))  # which such a call does not say
        frequency = frequencies(self.setup.head_dim)
        return library_cache(
            rotation_in_python(lambda x, at: turned(x, at * frequency), self.setup.num_kv_heads),
            **shapes,
            max_total_tokens=(self.setup.num_pages - 1) * self.setup.page_size,
            page_size=self.setup.page_size,
            dtype=self.setup.dtype,
            rope="inline" if self.setup.rope_inline else "normal",
        )

    def masks(self, parts: Any) -> Any:
        """Return kvctl's masks; a tree's names the parents of the whole pending region."""
        masks = []
        for seq_id, spec in parts:
            if isinstance(spec, int):
                masks.append(None)
            elif _is_full(spec):
                masks.append(kvctl.Mask.full(self.full(seq_id, spec)))
            else:
                tokens = self.model.sequences.get(seq_id)
                # Either form: the parents of the whole pending region, or of the new nodes alone.
                earlier = tokens.parents if tokens and len(spec) % 2 else []
                masks.append(kvctl.Mask.tree([*earlier, *spec]))
        return masks

    def full(self, seq_id: int, spec: tuple[str, int, int]) -> Any:
        """Make a random relation; some rows of it see nothing at all."""
        _, length, seed = spec
        tokens = self.model.sequences.get(seq_id)
        columns = length + (len(tokens) if tokens else 0)
        rng = np.random.default_rng(seed)
        return rng.random((length, columns)) < rng.choice([0.05, 0.5, 0.95])

    def poison(self) -> None:
        """Fill what no sequence uses with NaN: reading it shows."""
        self.cache.debug_poison()

    def apply(self, operation: tuple[Any, ...]) -> str:
        """Apply one operation; return "done" or the name of the exception that both raised.

        Raises
        ------
        Mismatch
            If the cache and the model disagree.
        """
        free, lengths = self.cache.num_available_pages, self._lengths()
        try:
            result = getattr(self, "_" + operation[0])(*operation[1:])
        except _Refused as refused:
            if self.cache.num_available_pages != free:
                now = self.cache.num_available_pages
                raise Mismatch(f"{refused} changed the free pages from {free} to {now}") from None
            if self._lengths() != lengths:
                raise Mismatch(
                    f"{refused} changed the lengths: {lengths}, {self._lengths()}"
                ) from None
            return str(refused)
        self.poison()
        return "done" if result is None else str(result)

    def check_all(self) -> None:
        """Compare everything that can be seen of every sequence."""
        for seq_id in self.model.sequences:
            self._check(seq_id)

    def drain(self) -> None:
        """Remove everything; every page must come back."""
        self.check_all()
        self.checkpoints.clear()
        for name in [-1, *self.files]:
            self.path(name).unlink(missing_ok=True)
        for seq_id in list(self.model.sequences):
            self.apply(("remove", seq_id))
        if self.cache.num_available_pages != self.num_pages:
            free = self.cache.num_available_pages
            raise Mismatch(f"an empty cache has {free} free pages of {self.num_pages}")

    # One method per operation

    def _both(
        self,
        method: str,
        cache_args: tuple[Any, ...],
        model_args: tuple[Any, ...] | None = None,
        *,
        cache_kw: dict[str, Any] | None = None,
        model_kw: dict[str, Any] | None = None,
    ) -> Any:
        """Call a method of both; they must both return or raise exceptions of the same type."""
        free = self.cache.num_available_pages
        got, mine = _attempt(
            self._begin if method == "begin_forward" else getattr(self.cache, method),
            cache_args,
            cache_kw or {},
        )
        if isinstance(mine, kvctl.OutOfPagesError):
            self._check_out_of_pages(str(mine), free)
            raise _Refused("OutOfPagesError")
        model_args = cache_args if model_args is None else model_args
        if isinstance(mine, ValueError) and self._shows_evicted(method, model_args, model_kw or {}):
            raise _Refused("gone from the window")
        expected, theirs = _attempt(getattr(self.model, method), model_args, model_kw or {})
        # A batch may hold several mistakes; which of them is named is not the model's business.
        several = (
            method in ("begin_forward", "commit", "evict")
            and mine is not None
            and theirs is not None
        )
        if type(mine) is not type(theirs) and not several:
            raise Mismatch(f"{method}{model_args}: {mine!r} where the model says {theirs!r}")
        if mine is not None:
            raise _Refused(type(mine).__name__)
        return got, expected

    def _add(self, seq_id: int) -> None:
        self._both("add_sequence", (seq_id,))

    def _remove(self, seq_id: int) -> None:
        self._both("remove_sequence", (seq_id,))

    def _fork(self, parent: int, child: int, position: int) -> None:
        self._both("fork_sequence", (parent, child, position))

    def _popn(self, seq_id: int, n: int) -> None:
        self._both("popn", (seq_id, n))

    def _step(
        self,
        parts: tuple[tuple[int, int | tuple[int, ...]], ...],
        pending: bool | None,
        data: int,
        finish: str,
        shift: int = 0,
    ) -> None:
        seq_ids = [seq_id for seq_id, _ in parts]
        lengths = [_length(spec) for _, spec in parts]
        trees = [
            None
            if isinstance(spec, int)
            else self.full(seq_id, spec)
            if _is_full(spec)
            else list(spec)
            for seq_id, spec in parts
        ]
        is_tree = any(tree is not None for tree in trees)
        common = {"pending": pending, "positions": self._positions(parts, shift)}
        self._both(
            "begin_forward",
            (seq_ids, lengths),
            cache_kw={"parts": parts if is_tree else None, **common},
            model_kw={"mask": trees if is_tree else None, **common},
        )
        total = sum(lengths)
        data %= self.POOL - total
        for layer in range(self.setup.num_layers if finish != "abort" else 0):
            qkv = self.pool[layer, data : data + total]
            got = np.from_dlpack(self.cache.attention(layer, qkv))
            expected = self.model.attention(layer, qkv)
            if not _close(got, expected, self.tolerance):
                raise Mismatch(_difference(f"attention of layer {layer}", got, expected))
            if finish == "late":
                break
        self._both("end_forward" if finish == "end" else "abort", ())

    def _begin(self, seq_ids: Any, lengths: Any, *, parts: Any, **common: Any) -> None:
        mask = None if parts is None else self.masks(parts)
        self.cache.begin_forward(seq_ids, lengths, mask=mask, **common)

    def _positions(self, parts: Any, shift: int) -> list[int] | None:
        """Positions by depth, all of them moved; nodes hang on their place in the step alone."""
        if not shift:
            return None
        positions: list[int] = []
        for seq_id, spec in parts:
            tokens = self.model.sequences.get(seq_id)
            start = max(shift + (tokens.next_position if tokens else 0), 0)
            positions += range(start, start + _length(spec))
        return positions

    def _commit(
        self, parts: tuple[tuple[int, tuple[int, ...]], ...], any_nodes: bool = False
    ) -> None:
        self._both(
            "commit",
            ([seq_id for seq_id, _ in parts], [list(kept) for _, kept in parts]),
            cache_kw={"any_nodes": any_nodes},
            model_kw={"any_nodes": any_nodes},
        )

    def _abort(self, seq_ids: tuple[int, ...] | None) -> None:
        self._both("abort", (None if seq_ids is None else list(seq_ids),))

    def _checkpoint(self, seq_id: int, name: int) -> None:
        mine, theirs = self._both("checkpoint", (seq_id,))
        self.checkpoints[name] = (seq_id, mine, theirs)

    def _rollback(self, seq_id: int, name: int) -> str | None:
        if name not in self.checkpoints:
            return "no such checkpoint"
        _, mine, theirs = self.checkpoints[name]
        self._both("rollback", (seq_id, mine), (seq_id, theirs))
        return None

    def _window(
        self, seq_id: int, size: int, sinks: int, horizon: int, renumber: bool = False
    ) -> None:
        sizes = {"sinks": sinks, "horizon": horizon, "renumber_sinks": renumber}
        self._both("enable_sliding_window", (seq_id, size), cache_kw=sizes, model_kw=sizes)

    def _evict(self, seq_id: int, kept: tuple[int, ...], rerotate: bool) -> None:
        self._both(
            "evict",
            (seq_id, list(kept)),
            cache_kw={"rerotate": rerotate},
            model_kw={"rerotate": rerotate},
        )

    def _save(self, seq_id: int, name: int) -> None:
        _, saved = self._both("save_sequence", (seq_id, self.path(name)), (seq_id,))
        self.files[name] = saved

    def _load(self, seq_id: int, name: int) -> str | None:
        if name not in self.files:
            return "no such file"
        self._both("load_sequence", (seq_id, self.path(name)), (seq_id, self.files[name]))
        return None

    def _move(self, page_size: int) -> str | None:
        """Go on with a new cache of other pages; where not all fits, with the old one."""
        self._both("abort", (None,))
        room = self.setup.num_pages * self.setup.page_size
        before = self.setup, self.cache, self.num_pages
        self.setup = replace(self.setup, page_size=page_size, num_pages=max(room // page_size, 1))
        self.cache = self.create()
        self.num_pages = self.cache.num_available_pages
        self.poison()
        try:
            for seq_id in self.model.sequences:
                before[1].save_sequence(seq_id, self.path(-1))
                self.cache.load_sequence(seq_id, self.path(-1))
        except kvctl.OutOfPagesError:
            self.setup, self.cache, self.num_pages = before
            return "no room"
        self.checkpoints.clear()
        return None

    def _shows_evicted(self, method: str, args: tuple[Any, ...], kw: dict[str, Any]) -> bool:
        """Whether an operation would show tokens that the window may have evicted."""
        tokens = self.model.sequences.get(args[0]) if isinstance(args[0], int) else None
        if tokens is None or tokens.window is None:
            return False
        if method == "enable_sliding_window":
            window = Window(args[1], **kw)
            grown = window.sinks > tokens.window.sinks and not tokens.evicted.isdisjoint(
                tokens.committed
            )
            return grown or tokens.shows_evicted(window, tokens.next_position)
        if method == "rollback":
            # A cache decides by pages: by those of the checkpoint, after an eviction.
            then = args[1].copy()
            then.evicted |= tokens.evicted
            first = then.next_position - self.setup.page_size
            return then.shows_evicted(tokens.window, first) or tokens.shows_evicted(
                tokens.window, first
            )
        if method == "evict":
            return not tokens.evicted.isdisjoint(
                tokens.committed[column] for column in args[1] if column < len(tokens.committed)
            )
        if method in ("popn", "fork_sequence"):
            length = len(tokens) - args[1] if method == "popn" else args[2]
            if 0 <= length < len(tokens.committed):
                return tokens.shows_evicted(tokens.window, tokens.positions[length])
        return False

    def _check(self, seq_id: int) -> None:
        length, expected = self._both("sequence_length", (seq_id,))
        if length != expected:
            raise Mismatch(f"sequence {seq_id} has {length} tokens, not {expected}")
        # What lies behind a window may be gone; what a row may still see must be there.
        tokens = self.model.sequences[seq_id]
        begin = 1 + max(
            (i for i, token in enumerate(tokens.committed) if token in tokens.evicted), default=-1
        )
        if begin < length:
            for name, got, want in zip(
                "KV",
                self.cache.get_kv(seq_id, begin),
                self.model.get_kv(seq_id, begin),
                strict=True,
            ):
                # What went in comes out: nothing is rounded but what the cache rotates.
                rotated = self.setup.rope and not self.setup.rope_inline
                bound = self.tolerance if rotated else 0.0
                if not _close(np.from_dlpack(got), want, bound):
                    what = f"{name} of sequence {seq_id}"
                    raise Mismatch(_difference(what, np.from_dlpack(got), want))

    # Bookkeeping

    def _lengths(self) -> dict[int, int]:
        return {seq_id: self.cache.sequence_length(seq_id) for seq_id in self.model.sequences}

    def _check_out_of_pages(self, message: str, free: int) -> None:
        """Pages cannot run out while every sequence could have had all its pages to itself."""
        said = [int(number) for number in re.findall(r"\d+", message)]
        if len(said) != 3 or said[0] <= free or said[1:] != [free, self.num_pages]:
            raise Mismatch(f"{message!r} where {free} of {self.num_pages} are free")
        size = self.setup.page_size
        held = sum(-(-len(tokens) // size) for tokens in self.model.sequences.values())
        held += sum(-(-len(theirs) // size) for _, _, theirs in self.checkpoints.values())
        if free < self.num_pages - held:
            raise Mismatch(f"{free} pages are free where at most {held} are in use")


def _is_full(spec: Any) -> bool:
    return isinstance(spec, tuple) and spec[:1] == ("full",)


def _length(spec: Any) -> int:
    return spec if isinstance(spec, int) else spec[1] if _is_full(spec) else len(spec)


class _Refused(Exception):
    """Both refused: not an error, but the state must be what it was."""


def _attempt(call: Any, args: tuple[Any, ...], kw: dict[str, Any]) -> tuple[Any, Exception | None]:
    try:
        return call(*args, **kw), None
    except REFUSALS as error:
        # Its frames hold the arguments, a checkpoint among them, and so that checkpoint's pages.
        return None, error.with_traceback(None)


def _close(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether all is within the tolerance; a NaN never is."""
    if got.shape != expected.shape:
        return False
    difference = np.abs(got - expected)
    return not difference.size or bool(difference.max() <= tolerance * (1 + np.abs(expected).max()))


def _difference(what: str, got: Any, expected: Any) -> str:
    if got.shape != expected.shape:
        return f"{what} has shape {got.shape}, not {expected.shape}"
    wrong = np.abs(got.astype(np.float64) - expected)
    place = np.unravel_index(np.argmax(np.where(np.isnan(wrong), np.inf, wrong)), wrong.shape)
    where = tuple(int(i) for i in place)
    return f"{what} at {where} is {got[where]}, not {expected[where]}"


_numbers = itertools.count()


@cache
def _directory() -> Path:
    path = mkdtemp(prefix="kvctl-trial-")
    atexit.register(rmtree, path, ignore_errors=True)
    return Path(path)


_pools: dict[Any, Any] = {}


def _pool(shape: tuple[int, ...], dtype: str) -> Any:
    """Return random numbers that pages of the type hold exactly."""
    key = shape, dtype
    if key not in _pools:
        values = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
        if dtype == "int8":  # the largest of a head is 127 times a power of two
            scale = np.float32(2.0**-5)
            values = np.rint(np.clip(values / scale, -127, 127)) * scale
            values[..., 3] = np.copysign(127 * scale, values[..., 3])
            dtype = "float32"
        _pools[key] = values.astype(dtype)
    return _pools[key]
