"""TVM's interface for sequences that move: metadata, layout hash, and a group of pages per layer.

That TVM's cache takes what kvctl's gives, and the other way round, is in test_drop_in_rest.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from kvctl import PagedKVCache
from kvctl._ffi.convert import to_tensor
from kvctl.cache.paged_kv_cache import Rope
from small_cache import kv, make_cache, step


def call(cache: PagedKVCache, name: str, *args: Any) -> Any:
    return tvm_ffi.get_global_func(f"vm.builtin.attention_kv_cache_{name}")(cache, *args)


def metadata(cache: PagedKVCache, seq_id: int = 0) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(str(call(cache, "get_checkpoint_metadata", seq_id)))
    return described


def exported(cache: PagedKVCache, seq_id: int = 0) -> list[np.ndarray]:
    groups = []
    for group in metadata(cache, seq_id)["groups"]:
        pages = np.full(group["shape"], 7, group["dtype"])
        assert pages.nbytes == group["nbytes"]
        call(cache, "export_page_group", seq_id, group["group_index"], to_tensor(pages))
        groups.append(pages)
    return groups


def prepare(cache: PagedKVCache, described: dict[str, Any], seq_id: int = 0) -> None:
    call(cache, "prepare_import", seq_id, json.dumps(described, sort_keys=True))


def imported(
    cache: PagedKVCache, described: Any, groups: list[np.ndarray], seq_id: int = 0
) -> None:
    prepare(cache, described, seq_id)
    for group, pages in reversed(list(enumerate(groups))):
        call(cache, "import_page_group", seq_id, group, to_tensor(pages))
    call(cache, "finish_import", seq_id)


def filled(**changes: Any) -> PagedKVCache:
    cache = make_cache(**({"rope": Rope()} | changes))
    cache.add_sequence(3)
    cache.add_sequence(0)
    step(cache, 3, range(50, 60))
    step(cache, 0, range(18))
    return cache


@pytest.mark.parametrize("seq_id", [0, 3])
@pytest.mark.parametrize(
    ("dtype", "inline"),
    [("float32", False), ("float32", True), ("float16", False), ("float16", True), ("int8", False)],
)
def test_another_cache_goes_on_bit_for_bit(dtype: str, inline: bool, seq_id: int) -> None:
    rope = Rope(inline=inline)
    cache = filled(dtype=dtype, rope=rope)
    other = filled(dtype=dtype, rope=rope, max_total_tokens=80)
    groups = exported(cache, seq_id)
    imported(other, metadata(cache, seq_id), groups, seq_id)
    assert other.sequence_ids == [seq_id]  # as TVM's cache, it starts from nothing
    np.testing.assert_array_equal(kv(other, seq_id), kv(cache, seq_id))
    np.testing.assert_array_equal(step(other, seq_id, [1, 2]), step(cache, seq_id, [1, 2]))


def test_what_a_page_does_not_fill_is_zero() -> None:
    for pages in exported(filled()):  # 18 tokens in pages of 4
        assert not pages[0, 4, :, :, 2:].any()
        assert pages[0, 4, :, :, :2].all()


def test_the_hash_tells_layouts_apart() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"page_size": 8},
        {"num_kv_heads": 4},
        {"head_dim": 32},
        {"num_layers": 3},
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"rope": Rope(theta=500.0)},
        {"rope": Rope(scale=0.5)},
        {"rope": Rope(inline=True)},
        {"rope": None},
    ]
    hashes = [
        call(make_cache(**({"rope": Rope()} | change)), "get_layout_hash") for change in changes
    ]
    assert len(set(hashes)) == len(changes)
    again = make_cache(rope=Rope(), max_total_tokens=80, max_sequences=3, prefill_chunk_size=16)
    assert call(again, "get_layout_hash") == hashes[0]


LIES: dict[str, tuple[Any, str]] = {
    "page size": (lambda d: d.update(page_size=8), "'page_size' is 8 where this cache has 4"),
    "hash": (lambda d: d.update(layout_hash="00"), "'layout_hash' is \"00\" where"),
    "scale": (lambda d: d.update(rotary_scale=2), "'rotary_scale' is 2 where"),
    "missing": (lambda d: d.pop("groups"), "'groups' is missing"),
    "group": (lambda d: d["groups"].pop(), "'groups' is"),
    "shape": (lambda d: d["groups"][0].update(shape=[1, 2]), "'groups' is"),
    "pages": (lambda d: d["logical_pages"][1].update(length=3), "'logical_pages' is"),
    "too long": (lambda d: d.update(seq_length=1 << 40), "does not fit the cache"),
    "negative": (lambda d: d.update(seq_length=-1), "does not fit the cache"),
    "text": (lambda d: d.update(seq_length="9"), "'seq_length' is missing or has the wrong type"),
    "id": (lambda d: d.update(seq_id=5), "'seq_id' is 5 where this cache has 0"),
}


@pytest.mark.parametrize("name", LIES)
def test_metadata_that_does_not_fit_is_refused_and_changes_nothing(name: str) -> None:
    change, message = LIES[name]
    cache = filled()
    described = metadata(cache)
    before = kv(cache, 0)
    change(described)
    with pytest.raises(ValueError, match=message):
        prepare(cache, described)
    assert cache.sequence_ids == [0, 3]
    np.testing.assert_array_equal(kv(cache, 0), before)
    with pytest.raises(ValueError, match="not valid JSON"):
        call(cache, "prepare_import", 0, "{")


def test_an_import_is_all_or_nothing() -> None:
    cache = filled()
    described, groups = metadata(cache), [to_tensor(g) for g in exported(cache)]
    with pytest.raises(RuntimeError, match="no import of sequence 0 has been prepared"):
        call(cache, "import_page_group", 0, 0, groups[0])
    prepare(cache, described)
    call(cache, "import_page_group", 0, 0, groups[0])
    assert cache.empty  # nothing is seen of it until it is complete
    with pytest.raises(KeyError):
        cache.sequence_length(0)
    with pytest.raises(ValueError, match="page group 1 of sequence 0 has not been imported"):
        call(cache, "finish_import", 0)
    with pytest.raises(ValueError, match="page group 0 has been imported already"):
        call(cache, "import_page_group", 0, 0, groups[0])
    with pytest.raises(IndexError, match="page group 2 does not exist"):
        call(cache, "import_page_group", 0, 2, groups[0])
    with pytest.raises(ValueError, match=r"\(1, 5, 2, 2, 4, 16\)"):
        call(cache, "import_page_group", 0, 1, to_tensor(np.zeros((1, 4, 2, 2, 4, 16))))
    cache.add_sequence(0)
    call(cache, "import_page_group", 0, 1, groups[1])
    with pytest.raises(ValueError, match="already has a sequence 0"):
        call(cache, "finish_import", 0)
    cache.remove_sequence(0)
    call(cache, "finish_import", 0)
    assert cache.sequence_length(0) == 18
    with pytest.raises(RuntimeError, match="no import of sequence 0 has been prepared"):
        call(cache, "finish_import", 0)
    prepare(cache, described)
    cache.clear()
    with pytest.raises(RuntimeError, match="no import of sequence 0 has been prepared"):
        call(cache, "finish_import", 0)


def test_what_metadata_cannot_say_is_refused() -> None:
    cache = filled()
    cache.evict(0, [0, 5, 6])
    with pytest.raises(
        NotImplementedError, match=r"TVM's format, .* positions, other than 0, .*; save_sequence"
    ):
        metadata(cache)
    cache.evict(0, [0, 1], rerotate=True)
    assert metadata(cache)["seq_length"] == 2
    step(cache, 0, [1], pending=True)
    with pytest.raises(ValueError, match="has 1 pending nodes; commit or abort them"):
        metadata(cache)
    cache.enable_sliding_window(3, 5)
    with pytest.raises(NotImplementedError, match="window of sequence 3; save_sequence has"):
        metadata(cache, 3)
    with pytest.raises(KeyError, match="no sequence 8"):
        metadata(cache, 8)
    windowed = make_cache(layer_windows=(0, 5))
    with pytest.raises(
        NotImplementedError, match="no place for windows of layers; save_sequence has"
    ):
        call(windowed, "get_layout_hash")
