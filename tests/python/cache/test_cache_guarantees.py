"""What the cache promises beyond right answers.

Cheap forks, refusals that change nothing, one caller at a time, and attention that does not depend
on company.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvctl

HEADS, KV_HEADS, DIM = 4, 2, 16


def make(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "num_layers": 1,
        "num_qo_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 64,
        "page_size": 4,
        "max_sequences": 8,
        "prefill_chunk_size": 32,
    }
    return kvctl.PagedKVCache.create(**(sizes | changes))


def rows(count: int, seed: int = 0) -> np.ndarray:
    shape = (count, HEADS + 2 * KV_HEADS, DIM)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def step(cache: Any, lengths: dict[int, int], qkv: np.ndarray | None = None, **kw: Any) -> Any:
    total = sum(lengths.values())
    with cache.forward(list(lengths), list(lengths.values()), **kw):
        return np.from_dlpack(cache.attention(0, rows(total) if qkv is None else qkv)).copy()


def state(cache: Any, seq_ids: tuple[int, ...]) -> Any:
    """Everything that can be seen of a cache."""
    seen = [cache.num_available_pages, cache.total_sequence_length]
    for seq_id in seq_ids:
        seen += [cache.sequence_length(seq_id), cache.pending_length(seq_id)]
        seen += [np.from_dlpack(part).tobytes() for part in cache.get_kv(seq_id)]
    return seen


def test_thousands_of_forks_cost_one_prefix() -> None:
    cache = make(max_total_tokens=4096, max_sequences=4000, prefill_chunk_size=512)
    cache.add_sequence(0)
    step(cache, {0: 400})
    free = cache.num_available_pages
    for child in range(1, 3000):
        cache.fork_sequence(0, child)
    assert cache.num_available_pages == free
    step(cache, {2999: 1, 17: 1})  # position 400 is on a page boundary: one new page each
    assert cache.num_available_pages == free - 2
    cache.fork_sequence(0, 3000, 399)
    step(cache, {3000: 1})  # in the middle of a page: a copy of that page
    assert cache.num_available_pages == free - 3
    for child in range(1, 3001):
        cache.remove_sequence(child)
    assert cache.num_available_pages == free
    cache.remove_sequence(0)
    assert cache.num_available_pages == cache.num_pages


def test_a_checkpoint_takes_pages_only_while_it_needs_them() -> None:
    cache = make()
    cache.add_sequence(0)
    step(cache, {0: 10})
    free = cache.num_available_pages
    checkpoint = cache.checkpoint(0)
    step(cache, {0: 6}, rows(6, 1))
    assert cache.num_available_pages == free - 1
    cache.popn(0, 12)  # 4 left: the checkpoint keeps its second and third page
    assert cache.num_available_pages == free
    cache.rollback(0, checkpoint)
    assert cache.num_available_pages == free
    cache.popn(0, 10)
    assert cache.num_available_pages == free
    del checkpoint
    assert cache.num_available_pages == cache.num_pages


def _busy(cache: Any) -> None:
    """Two sequences, one with a tree pending."""
    cache.add_sequence(0)
    cache.add_sequence(1)
    step(cache, {0: 9, 1: 3})
    step(cache, {0: 4}, mask=[kvctl.Mask.tree([-1, 0, 0, 2])])


REFUSALS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("add twice", lambda c: c.add_sequence(0), ValueError, "sequence 0"),
    ("add negative", lambda c: c.add_sequence(-1), ValueError, "-1"),
    ("remove unknown", lambda c: c.remove_sequence(5), KeyError, "5"),
    ("fork unknown", lambda c: c.fork_sequence(5, 6), KeyError, "5"),
    ("fork onto another", lambda c: c.fork_sequence(0, 1), ValueError, "1"),
    ("fork past the end", lambda c: c.fork_sequence(1, 2, 4), ValueError, "3"),
    ("fork before", lambda c: c.fork_sequence(1, 2, -2), ValueError, "-2"),
    ("pop too much", lambda c: c.popn(1, 4), ValueError, "3"),
    ("pop less than nothing", lambda c: c.popn(1, -1), ValueError, "-1"),
    ("pop beyond int32", lambda c: c.popn(1, 2**32 + 1), ValueError, "4294967297"),
    ("begin unknown", lambda c: c.begin_forward([1, 5], [1, 1]), KeyError, "5"),
    ("begin twice", lambda c: c.begin_forward([1, 1], [1, 1]), ValueError, "twice"),
    ("begin nothing", lambda c: c.begin_forward([], []), ValueError, "at least one"),
    ("append nothing", lambda c: c.begin_forward([1], [0]), ValueError, "0"),
    ("append negative", lambda c: c.begin_forward([1], [-3]), ValueError, "-3"),
    ("append beyond int32", lambda c: c.begin_forward([1], [2**32 + 1]), ValueError, "4294967297"),
    ("lengths missing", lambda c: c.begin_forward([1, 2], [1]), ValueError, "2"),
    ("larger than the chunk", lambda c: c.begin_forward([1], [33]), ValueError, "32"),
    ("append to a tree", lambda c: c.begin_forward([0], [1]), ValueError, "pending"),
    ("chain on a tree", lambda c: c.begin_forward([0], [1], pending=True), ValueError, "tree"),
    (
        "parent ahead",
        lambda c: c.begin_forward([1], [2], mask=[kvctl.Mask.tree([-1, 1])]),
        ValueError,
        "1",
    ),
    (
        "tree of another size",
        lambda c: c.begin_forward([1], [3], mask=[kvctl.Mask.tree([-1, 0])]),
        ValueError,
        "3",
    ),
    (
        "a mask too few",
        lambda c: c.begin_forward([1, 0], [1, 1], mask=[None]),
        ValueError,
        "mask",
    ),
    (
        "positions too few",
        lambda c: c.begin_forward([1], [2], positions=[7]),
        ValueError,
        "position",
    ),
    (
        "position negative",
        lambda c: c.begin_forward([1], [2], positions=[7, -1]),
        ValueError,
        "-1",
    ),
    ("commit unknown", lambda c: c.commit([5], [[]]), KeyError, "5"),
    ("commit twice", lambda c: c.commit([0, 0], [[], []]), ValueError, "twice"),
    ("commit no path", lambda c: c.commit([0], [[0, 3]]), ValueError, "3"),
    ("commit disorder", lambda c: c.commit([0], [[2, 0]]), ValueError, "2"),
    ("commit no such node", lambda c: c.commit([0], [[0, 4]]), IndexError, "4"),
    ("commit negative", lambda c: c.commit([0], [[-1]]), IndexError, "-1"),
    ("commit lists missing", lambda c: c.commit([0, 1], [[0]]), ValueError, "2"),
    ("attend outside a step", lambda c: c.attention(0, rows(1)), RuntimeError, "begin_forward"),
    ("end outside a step", lambda c: c.end_forward(), RuntimeError, "begin_forward"),
    ("look too far", lambda c: c.get_kv(1, 0, 4), IndexError, "3"),
    ("look backwards", lambda c: c.get_kv(1, 2, 1), IndexError, "1"),
    ("length of an unknown id", lambda c: c.sequence_length(5), KeyError, "5"),
    (
        "roll back another",
        lambda c: c.rollback(1, c.checkpoint(0)),
        ValueError,
        "sequence 0",
    ),
    ("out of pages", lambda c: c.begin_forward([1], [32]), kvctl.OutOfPagesError, "free"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [case[1:] for case in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_a_refusal_changes_nothing(
    call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    cache = make(max_total_tokens=48)
    _busy(cache)
    before = state(cache, (0, 1))
    with pytest.raises(error, match=message):
        call(cache)
    assert state(cache, (0, 1)) == before
    step(cache, {1: 1})
    cache.commit([0], [[0, 2, 3]])
    assert cache.sequence_length(0) == 12


IN_A_STEP: list[Callable[[Any], Any]] = [
    lambda c: c.add_sequence(7),
    lambda c: c.remove_sequence(1),
    lambda c: c.fork_sequence(0, 7),
    lambda c: c.popn(1, 1),
    lambda c: c.begin_forward([1], [1]),
    lambda c: c.commit([0], [[]]),
    lambda c: c.checkpoint(0),
]


@pytest.mark.parametrize("index", range(len(IN_A_STEP)))
def test_in_a_step_nothing_else_goes(index: int) -> None:
    cache = make()
    _busy(cache)
    cache.begin_forward([1], [2])
    with pytest.raises(RuntimeError, match="begin_forward"):
        IN_A_STEP[index](cache)
    cache.attention(0, rows(2))
    cache.end_forward()
    assert cache.sequence_length(1) == 5


def test_out_of_pages_says_how_many() -> None:
    cache = make(max_total_tokens=16)
    cache.add_sequence(0)
    step(cache, {0: 9})
    with pytest.raises(kvctl.OutOfPagesError, match=r"needs 2 pages and 1 of 4 are free"):
        cache.begin_forward([0], [8])


def test_an_exception_in_a_forward_is_undone() -> None:
    cache = make()
    _busy(cache)
    before = state(cache, (0, 1))
    with pytest.raises(ZeroDivisionError), cache.forward([1], [5]):
        cache.attention(0, rows(5))
        raise ZeroDivisionError
    assert state(cache, (0, 1)) == before


def test_two_threads_at_once_are_refused() -> None:
    cache = make(max_total_tokens=8192, prefill_chunk_size=2048)
    cache.add_sequence(0)
    qkv = rows(2048)
    cache.begin_forward([0], [2048])
    cache.attention(0, qkv)
    refused: list[str] = []
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            try:
                cache.sequence_length(0)
            except RuntimeError as error:
                refused.append(str(error))

    thread = threading.Thread(target=meddle)
    thread.start()
    answered = 0
    for _ in range(200):
        try:
            cache.attention(0, qkv)
            answered += 1
        except RuntimeError as error:
            refused.append(str(error))
        if refused and answered:
            break
    done.set()
    thread.join()
    assert answered
    assert refused
    assert all("thread" in message for message in refused)
    cache.end_forward()
    assert cache.sequence_length(0) == 2048


def test_attention_does_not_depend_on_company() -> None:
    """Bitwise: alone, in one chunk, in a batch, and on a path of a tree."""
    tokens, noise = rows(40, 3), rows(40, 4)
    alone = make(max_total_tokens=256)
    alone.add_sequence(0)
    one_by_one = np.concatenate([step(alone, {0: 1}, tokens[i : i + 1]) for i in range(40)])
    batch = make(max_total_tokens=256, page_size=16, prefill_chunk_size=64)
    for seq_id in (3, 1):
        batch.add_sequence(seq_id)
    got = step(batch, {3: 7, 1: 30}, np.concatenate([noise[:7], tokens[:30]]))
    assert got[7:].tobytes() == one_by_one[:30].tobytes()
    # Nodes 1, 3, 4 and so on are the path; the others are noise that hangs beside it.
    parents, path, last = [], [], -1
    for index in range(20):
        parents.append(last)
        if index % 2:
            path.append(index)
            last = index
    qkv = noise[:20].copy()
    qkv[path] = tokens[30:]
    got = step(batch, {1: 20}, qkv, mask=[kvctl.Mask.tree(parents)])
    assert got[path].tobytes() == one_by_one[30:].tobytes()
    assert not np.array_equal(got[0], one_by_one[30])
