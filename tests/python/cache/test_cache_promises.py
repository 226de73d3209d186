"""What is asked of the cache beyond what its operations do one by one, sentence by sentence.

One file, since it follows one list of promises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl import Mask, PagedKVCache
from kvctl._ffi.convert import to_tensor
from kvctl.cache.paged_kv_cache import Rope
from library_rotation import frequencies, library_cache, rotation_in_python, turned
from small_cache import attention, kv, make_cache, step

FREQUENCIES = frequencies(16)


def builtin(name: str, *args: Any) -> Any:
    return tvm_ffi.get_global_func(f"vm.builtin.{name}")(*args)


def state(cache: PagedKVCache) -> Any:
    """Everything that can be seen of a cache between steps, the next position included."""
    seen: list[Any] = [cache.num_available_pages]
    for seq_id in cache.sequence_ids:
        seen += [seq_id, cache.sequence_length(seq_id), cache.pending_length(seq_id)]
        seen.append(kv(cache, seq_id).tobytes())
        mask = [Mask.tree([-1])] if cache.pending_length(seq_id) else None
        try:
            cache.begin_forward([seq_id], [1], mask=mask)
        except kvctl.OutOfPagesError:
            continue
        seen.append(int(np.from_dlpack(cache.query_positions())[0]))
        cache.abort()
    return seen


def test_a_tree_is_as_large_as_a_chunk_and_grows_beyond_it() -> None:
    cache = make_cache(max_total_tokens=4000, prefill_chunk_size=1500, rope=Rope())
    cache.add_sequence(0)
    step(cache, 0, range(3))
    parents = [-1, *((node - 1) // 2 for node in range(1, 1500))]
    step(cache, 0, range(1500), mask=Mask.tree(parents))
    parents += [(node - 1) // 2 for node in range(1500, 3000)]
    got = step(cache, 0, range(1500, 3000), mask=Mask.tree(parents))
    path = [2999]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    assert len(path) == 12
    tokens = [0, 1, 2, *path]
    exact = attention(tokens, list(range(len(tokens))), 1, Rope())
    np.testing.assert_allclose(got[:, -1:], exact, atol=3e-6)
    cache.commit([0], [path])
    np.testing.assert_allclose(
        step(cache, 0, [9]), attention([*tokens, 9], list(range(16)), 1, Rope()), atol=3e-6
    )


@pytest.mark.parametrize("operation", ["begin", "commit", "evict", "load"])
def test_the_pages_that_are_said_to_be_needed_are_those_that_suffice(
    operation: str, tmp_path: Any
) -> None:
    cache = make_cache(max_total_tokens=80)  # 20 pages of 4 tokens
    cache.add_sequence(0)
    step(cache, 0, range(14))
    cache.save_sequence(0, tmp_path / "saved")
    for seq_id in (1, 2):
        cache.fork_sequence(0, seq_id)
    tree = Mask.tree([-1, 0, 0, 2, 3, 4])
    if operation == "commit":
        step(cache, 2, range(6), mask=tree)
        cache.fork_sequence(2, 3)
    calls: dict[str, Callable[[], Any]] = {
        "begin": lambda: cache.begin_forward([0, 2], [5, 9]),
        "commit": lambda: cache.commit([2, 3], [[0, 2, 3, 4], [0, 2, 3, 4]]),
        "evict": lambda: cache.evict(1, [0, 1, 2, 3, 5, 7, 11, 12, 13]),
        "load": lambda: cache.load_sequence(90, tmp_path / "saved"),
    }
    fill = iter(range(10, 40))
    while cache.num_available_pages:
        seq_id = next(fill)
        cache.add_sequence(seq_id)
        step(cache, seq_id, [0])
    said = []
    for free in range(8):
        before = state(cache)
        try:
            calls[operation]()
            break
        except kvctl.OutOfPagesError as error:
            words = str(error).split()
            said.append(int(words[words.index("needs") + 1]))
            assert f"and {free} of 20 are free" in str(error)
        assert state(cache) == before
        cache.remove_sequence(10 + free)
    assert said == [free] * free


def test_positions_that_descend_do_not_meet_windows() -> None:
    cache = make_cache(rope=Rope(), layer_windows=(0, 5))
    for seq_id in range(2):
        cache.add_sequence(seq_id)
        step(cache, seq_id, range(6))
    cache.enable_sliding_window(0, 4, horizon=0)
    before = state_of_windowed(cache)
    for positions in ([7, 6], [3, 4]):
        with pytest.raises(ValueError, match="under a sliding window positions must not descend"):
            cache.begin_forward([0], [2], positions=positions)
        assert state_of_windowed(cache) == before
    step(cache, 0, [1, 2], positions=[8, 8])
    step(cache, 1, [1, 2], positions=[6, 2])
    before = state_of_windowed(cache)
    with pytest.raises(ValueError, match="token 7 has position 2 and the one before it 6"):
        cache.begin_forward([1], [1])
    with pytest.raises(ValueError, match="those that sequence 1 was given descend"):
        cache.enable_sliding_window(1, 4)
    assert state_of_windowed(cache) == before
    cache.popn(1, 1)  # the next one comes where that one stood, before the last
    with pytest.raises(ValueError, match="would have position 2 and the last one has 6"):
        cache.begin_forward([1], [1])
    with pytest.raises(ValueError, match="those that sequence 1 was given descend"):
        cache.enable_sliding_window(1, 4)
    cache.popn(1, 1)
    step(cache, 1, [5])
    plain = make_cache(rope=Rope())  # where nothing measures them, positions are free
    plain.add_sequence(0)
    step(plain, 0, range(3), positions=[9, 4, 0])
    got = step(plain, 0, [5])
    np.testing.assert_allclose(got, attention([0, 1, 2, 5], [9, 4, 0, 1], 1, Rope()), atol=3e-6)
    with pytest.raises(ValueError, match="must not descend: token 1 has position 4"):
        plain.begin_forward([0], [1], mask=Mask.window(3))


def state_of_windowed(cache: PagedKVCache) -> Any:
    lengths = [cache.sequence_length(seq_id) for seq_id in cache.sequence_ids]
    latest = [
        [np.from_dlpack(part).tobytes() for part in cache.get_kv(seq_id, length - 2)]
        for seq_id, length in zip(cache.sequence_ids, lengths, strict=True)
    ]
    return cache.num_available_pages, lengths, latest


def test_mistakes_through_tvms_functions_change_nothing() -> None:
    cache = make_cache()
    for seq_id in range(3):
        cache.add_sequence(seq_id)
        step(cache, seq_id, range(5))
    step(cache, 0, range(4), mask=Mask.tree([-1, 0, 0, 2]))
    step(cache, 1, range(3), mask=Mask.tree([-1, -1, 1]))
    before = state(cache)
    shape = tvm_ffi.Shape
    commit = "attention_kv_cache_commit_accepted_token_tree_nodes"
    begin = "kv_state_begin_forward"
    mistakes: list[tuple[type[Exception], str, str, Any]] = [
        (IndexError, "leaf 4 is not in", commit, (shape([0]), shape([4]))),
        (IndexError, "leaf -2 is not in", commit, (shape([1, 0]), shape([2, -2]))),
        (IndexError, "which has 0 nodes", commit, (shape([0, 2]), shape([3, 0]))),
        (ValueError, "1 leaves", commit, (shape([0, 1]), shape([3]))),
        (ValueError, "twice", commit, (shape([0, 0]), shape([3, 1]))),
        (KeyError, "no sequence 7", commit, (shape([0, 7]), shape([3, 1]))),
        (
            ValueError,
            "append length must fit 32 bits, got 4611686018427387904",
            begin,
            (shape([2]), shape([1 << 62])),
        ),
        (
            ValueError,
            "append length must fit 32 bits, got 9223372036854775807",
            begin,
            (shape([2, 1]), shape([(1 << 63) - 1] * 2)),
        ),
        (ValueError, "it must be at least 1", begin, (shape([2]), shape([-(1 << 20)]))),
        (ValueError, "2 parents", begin, (shape([2]), shape([3]), shape([-1, 0]))),
        (ValueError, "is 3; the parent of", begin, (shape([2]), shape([3]), shape([-1, 3, 0]))),
        (ValueError, "token tree parent", begin, (shape([2]), shape([1]), shape([1 << 40]))),
        (ValueError, "pending", begin, (shape([2, 0]), shape([1, 1]))),
        (ValueError, "cannot pop 6", "kv_state_popn", (2, 6)),
        (ValueError, "fork position 9", "kv_state_fork_sequence", (1, 5, 9)),
        (
            ValueError,
            "fewer than the window",
            "attention_kv_cache_enable_sliding_window_for_seq",
            (2, 4, 4),
        ),
    ]
    for error, message, name, args in mistakes:
        with pytest.raises(error, match=message):
            builtin(name, cache, *args)
        assert state(cache) == before, name


@pytest.mark.parametrize("sinks", [0, 3])
def test_trees_popn_forks_and_rollback_under_a_window(sinks: int) -> None:
    """Everything that a checkpoint has to outlive, within the horizon, exactly."""
    rope, size, horizon = Rope(), 7, 16
    cache = make_cache(rope=rope)
    cache.add_sequence(0)
    cache.enable_sliding_window(0, size, sinks=sinks, horizon=horizon)

    def expected(tokens: list[int], new: int) -> np.ndarray:
        at = np.arange(len(tokens))
        see = (at[-new:, None] - at < size) | (at < sinks)
        return attention(tokens, list(at), new, rope, see)

    tokens: list[int] = []

    def chain(new: list[int], seq_id: int = 0) -> None:
        got = step(cache, seq_id, new)
        np.testing.assert_allclose(got, expected([*tokens, *new], len(new)), atol=5e-6)
        cache.debug_poison()

    for first in range(0, 40, 8):
        chain(list(range(first, first + 8)))
        tokens += range(first, first + 8)
    point, free = cache.checkpoint(0), cache.num_available_pages
    probe = step(cache, 0, [99])
    cache.popn(0, 1)
    for _ in range(2):
        cache.fork_sequence(0, 1)
        tree = [50, 51, 52, 53, 54]
        got = step(cache, 0, tree, mask=Mask.tree([-1, 0, 0, 2, 3]))
        path = [0, 2, 3, 4]
        exact = expected([*tokens, 50, 52, 53, 54], 4)
        np.testing.assert_allclose(got[:, path], exact, atol=5e-6)
        cache.commit([0], [path])
        tokens += [50, 52, 53, 54]
        chain([60, 61, 62])
        tokens += [60, 61, 62]
        cache.popn(0, 9)  # two of before the checkpoint
        del tokens[-9:]
        chain([70])
        tokens.append(70)
        chain([71, 72, 73])
        cache.rollback(0, point)
        cache.debug_poison()
        tokens = list(range(40))
        np.testing.assert_array_equal(step(cache, 0, [99]), probe)
        cache.popn(0, 1)
        np.testing.assert_array_equal(step(cache, 1, [99]), probe)  # the fork saw nothing of it
        cache.remove_sequence(1)
        assert cache.num_available_pages >= free  # the window may have freed some
    for token in range(horizon + 12):
        step(cache, 0, [token])
    with pytest.raises(ValueError, match="the rollback horizon is 16"):
        cache.rollback(0, point)


def test_four_threads_that_do_anything_at_all_are_refused_or_served() -> None:
    cache = make_cache(max_total_tokens=400)
    checkpoints: list[Any] = []
    errors: list[BaseException] = []
    refused, served = [0], [0]

    def work(seed: int) -> None:
        random = Random(seed)
        qkv = np.zeros((4, 8, 16), np.float32)

        def hold() -> None:
            checkpoints.append(cache.checkpoint(random.randrange(6)))
            if len(checkpoints) > 4:
                checkpoints.pop(0)  # dropped by whichever thread this is

        calls: list[Callable[[], Any]] = [
            lambda: cache.add_sequence(random.randrange(6)),
            lambda: cache.remove_sequence(random.randrange(6)),
            lambda: cache.fork_sequence(random.randrange(6), random.randrange(6)),
            lambda: cache.begin_forward([random.randrange(6)], [4]),
            lambda: cache.begin_forward([0], [4], mask=Mask.tree([-1, 0, 0, 1])),
            lambda: cache.attention(random.randrange(2), qkv),
            lambda: cache.end_forward(),
            lambda: cache.abort(),
            lambda: cache.commit([0], [[0, 1, 3]]),
            lambda: cache.popn(random.randrange(6), random.randrange(4)),
            lambda: cache.evict(random.randrange(6), [0, 2]),
            lambda: cache.rollback(random.randrange(6), random.choice(checkpoints)),
            lambda: cache.get_kv(random.randrange(6)),
            hold,
        ]
        for _ in range(1500):
            try:
                random.choice(calls)()
                served[0] += 1
            except (RuntimeError, KeyError, IndexError, ValueError) as error:
                refused[0] += "another thread" in str(error)
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert served[0] > 500
    cache.abort()
    cache.debug_poison()  # the page counts are right
    checkpoints.clear()
    for seq_id in cache.sequence_ids:
        cache.remove_sequence(seq_id)
    assert cache.num_available_pages == cache.num_pages


@pytest.mark.parametrize("operation", ["load", "import", "attention"])
def test_a_library_that_fails_leaves_everything_as_it_was(operation: str, tmp_path: Any) -> None:
    """Whichever call of its rotation it is that fails; keys that come from outside turn inline."""
    calls_left = [1 << 30]

    def angles(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        calls_left[0] -= 1
        if calls_left[0] < 0:
            raise ArithmeticError("no more")
        return turned(x, at * FREQUENCIES)

    cache = library_cache(
        rotation_in_python(angles, 2),
        num_layers=2,
        num_qo_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_total_tokens=80,
        page_size=4,
        prefill_chunk_size=8,
        rope="inline",
    )
    cache.add_sequence(0)
    step(cache, 0, range(8))
    step(cache, 0, range(8, 11))
    cache.save_sequence(0, tmp_path / "saved")
    prefix = "attention_kv_cache_"
    metadata = builtin(prefix + "get_checkpoint_metadata", cache, 0)
    group = to_tensor(np.ones((1, 3, 2, 2, 4, 16), np.float32))

    def one_step() -> None:
        with cache.forward([0], [1]):
            for layer in range(2):
                cache.attention(layer, np.ones((1, 8, 16), np.float32))

    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: cache.load_sequence(1, tmp_path / "saved"),
        "import": lambda: builtin(prefix + "finish_import", cache, 0),
        "attention": one_step,
    }
    if operation == "import":
        builtin(prefix + "prepare_import", cache, 0, metadata)
        for layer in range(2):
            builtin(prefix + "import_page_group", cache, 0, layer, group)
    before = state(cache)
    for failing in range(20):
        calls_left[0] = failing
        try:
            calls[operation]()
            break
        except Exception as error:
            assert "no more" in str(error)
        calls_left[0] = 1 << 30
        assert state(cache) == before
    assert failing >= 2
    calls_left[0] = 1 << 30
    assert state(cache) != before
    step(cache, 0, [1])
