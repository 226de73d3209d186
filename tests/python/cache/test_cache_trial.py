"""The oracle's own tests: the comparison passes a right cache and catches every broken one."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest

from cache_trial import Mismatch, Setup, Trial
from kvctl.testing.cache_model import CacheModel
from random_operations import random_operations


class PlainCache(CacheModel):
    """The model itself, dressed as a cache; the broken ones below differ from it by one defect."""

    num_available_pages = 24
    files: ClassVar[dict[Any, Any]] = {}

    def attention(self, layer: int, qkv: Any, **kw: Any) -> Any:
        return super().attention(layer, qkv, **kw).astype(np.float32)

    def save_sequence(self, seq_id: int, path: Any = None) -> Any:
        saved = super().save_sequence(seq_id)
        PlainCache.files[path] = saved
        return saved

    def load_sequence(self, seq_id: int, path: Any) -> None:
        super().load_sequence(seq_id, PlainCache.files[path])


class CommitsForgetToCompact(PlainCache):
    def commit(self, seq_ids: Any, kept: Any, **kw: Any) -> None:
        super().commit(seq_ids, [list(range(len(nodes))) if nodes else [] for nodes in kept], **kw)


class CommitsByPlaceInTheBatch(PlainCache):
    def commit(self, seq_ids: Any, kept: Any, **kw: Any) -> None:
        super().commit(sorted(seq_ids), kept, **kw)


class ForksShareTheirLastPage(PlainCache):
    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        super().fork_sequence(parent, child, position)
        self.shared = (parent, child, len(self.sequences[child].committed))

    def end_forward(self) -> None:
        super().end_forward()
        parent, child, place = getattr(self, "shared", (None, None, 0))
        if parent in self.sequences and child in self.sequences and place % 4:
            mine, theirs = self.sequences[parent].committed, self.sequences[child].committed
            if place < min(len(mine), len(theirs)):
                mine[place] = theirs[place]


class TreesSeeTheirSiblings(PlainCache):
    def visible(self, seq_id: int, length: int, layer_window: int = 0) -> Any:
        see = super().visible(seq_id, length, layer_window)
        past = len(self.sequences[seq_id].committed)
        for row in range(length):
            see[row, past : see.shape[1] - length + row + 1] = True
        return see


class RollbackForgetsWhatWasPopped(PlainCache):
    def rollback(self, seq_id: int, checkpoint: Any) -> None:
        now = len(self._find(seq_id).committed)
        super().rollback(seq_id, checkpoint)
        del self.sequences[seq_id].committed[now:]


class AbortKeepsTheStep(PlainCache):
    def abort(self, seq_ids: Any = None) -> None:
        if self._step is not None:
            self.end_forward()
        else:
            super().abort(seq_ids)


class EvictsTheWrongTokens(PlainCache):
    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        super().evict(seq_id, keep, rerotate=rerotate)
        tokens = self.sequences[seq_id]
        if len(keep) > 1 and list(keep) != list(range(len(keep))):
            tokens.committed[-1] = tokens.committed[0]


class EvictedPositionsMoveUp(PlainCache):
    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        super().evict(seq_id, keep, rerotate=rerotate)
        tokens = self.sequences[seq_id]
        tokens.positions = list(range(len(keep)))


class NextPositionFollowsTheKeptOnes(PlainCache):
    def evict(self, seq_id: int, keep: Any, *, rerotate: bool = False) -> None:
        super().evict(seq_id, keep, rerotate=rerotate)
        tokens = self.sequences[seq_id]
        tokens.next_position = tokens.positions[-1] + 1 if tokens.positions else 0


class SinksStayFarAway(PlainCache):
    def enable_sliding_window(self, seq_id: int, size: int, **options: Any) -> None:
        super().enable_sliding_window(seq_id, size, **{**options, "renumber_sinks": False})


class LoadsForgetPositions(PlainCache):
    def load_sequence(self, seq_id: int, path: Any) -> None:
        super().load_sequence(seq_id, path)
        tokens = self.sequences[seq_id]
        tokens.next_position = len(tokens.committed)


class ReadsUnusedMemory(PlainCache):
    def _attend(self, q: Any, layer: int, tokens: Any, see: Any, scale: float) -> Any:
        out = super()._attend(q, layer, tokens, see, scale)
        return out + (np.nan if len(tokens.committed) % 7 == 6 else 0.0)


class FakeTrial(Trial):
    kind: type[PlainCache] = PlainCache

    def create(self) -> Any:
        return self.kind(**self.setup.shapes(), max_sequences=16, rope_theta=10000.0)

    def masks(self, parts: Any) -> Any:
        return [
            None
            if isinstance(spec, int)
            else self.full(seq_id, spec)
            if spec[0] == "full"
            else list(spec)
            for seq_id, spec in parts
        ]

    def _move(self, page_size: int) -> None:
        self._both("abort", (None,))

    def poison(self) -> None:
        pass


def run(kind: type[PlainCache], operations: int) -> None:
    setup = Setup(rope=True, layer_windows=(0, 7))
    trial = type("TrialOf" + kind.__name__, (FakeTrial,), {"kind": kind})(setup)
    stream = random_operations(trial.model, Random(2), windows=True)
    for _ in range(operations):
        trial.apply(next(stream))
    trial.drain()


def test_a_right_cache_passes() -> None:
    run(PlainCache, 2000)


@pytest.mark.parametrize("kind", PlainCache.__subclasses__(), ids=lambda kind: kind.__name__)
def test_a_broken_cache_is_caught(kind: type[PlainCache]) -> None:
    with pytest.raises(Mismatch):
        run(kind, 2000)


def test_tokens_that_share_a_position_are_sinks_together() -> None:
    # Found by the fuzzer: the window evicted the second one, as if sinks were counted in tokens.
    trial = Trial(Setup(page_size=1, rope=True))
    for operation in [
        ("add", 1),
        ("step", ((1, 1),), None, 1, "end", 0),
        ("step", ((1, 2),), None, 2, "end", -2),  # at positions 0 and 1
        ("window", 1, 6, 1, 0, False),
        ("step", ((1, 1),), None, 3, "end", 7),  # at position 9: position 1 is evicted
        ("step", ((1, 2),), None, 4, "end", 0),
    ]:
        assert trial.apply(operation) == "done"
