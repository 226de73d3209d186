"""What the cache does on which device, what it refuses, and what docs/machines/cuda.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi

import kvctl
from devices import put, require
from kvctl._ffi.functions import cache as functions

ROOT = Path(__file__).parents[3]
TABLE = {row.pop("name"): row for row in json.loads(functions.get_capabilities())}
CONFIG = {
    "num_layers": 1,
    "num_qo_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 64,
    "max_total_tokens": 256,
    "prefill_chunk_size": 64,
    "dtype": "float16",
}


def test_the_page_on_cuda_lists_what_the_table_says():
    limits = (ROOT / "docs/machines/cuda.md").read_text().split("## Limits")[1].split("\n## ")[0]
    listed = re.search(
        r"- The cache on CUDA refuses with `NotImplementedError`: (.*?)\.\n-", limits, re.S
    )
    only_cpu = [row["description"] for row in TABLE.values() if row["devices"] == ["cpu"]]
    assert " ".join(listed[1].split()) == ", ".join(only_cpu)


def test_every_row_names_known_devices_and_a_refusal():
    assert {use.__name__ for use in USES} == {name for name in TABLE if TABLE[name]["devices"]}
    for row in TABLE.values():
        assert set(row["devices"]) <= {"cpu", "cuda"}
        assert row["refusal"] and row["description"]


def create(device, **options):
    return kvctl.PagedKVCache.create(**(CONFIG | options), device=device)


def filled(device, **options):
    cache = create(device, **options)
    cache.add_sequence(0)
    with cache.forward([0], [64]):
        cache.attention(0, put(np.ones((64, 4, 64)), device, "float16"))
    return cache


def int8_pages(device):
    create(device, dtype="int8")


def float8_pages(device):
    create(device, dtype="float8_e4m3fn")


def inline_rope(device):
    create(device, rope=kvctl.Rope(inline=True))


def page_selector(device):
    create(device).select_pages(lambda layer, q: [None])


def renumbered_sinks(device):
    cache = filled(device, rope=kvctl.Rope())
    cache.enable_sliding_window(0, 16, sinks=2, renumber_sinks=True)
    with cache.forward([0], [1]):
        cache.attention(0, put(np.ones((1, 4, 64)), device, "float16"))


def attention_sums(device):
    create(device).observe_attention(lambda layer, seq_ids, sums: None)


def rerotated_eviction(device):
    filled(device, rope=kvctl.Rope()).evict(0, [0, 5], rerotate=True)


def builtin(cache, name, *args):
    return tvm_ffi.get_global_func(f"vm.builtin.attention_kv_cache_{name}")(cache, *args)


def attention_in_parts(device):
    cache = filled(device)
    q, kv = np.ones((1, 2, 64)), np.ones((1, 1, 64))
    q, k, v, out = (put(x, device, "float16") for x in (q, kv, kv, q))
    with cache.forward([0], [1], pending=True):
        lse = put(np.ones((1, 2)), device, "float32")
        builtin(cache, "self_attention", 0, 1.0, q, k, v, out, lse)


def page_group_export(device):
    cache = filled(device)
    pages = put(np.zeros((1, 4, 2, 1, 16, 64)), device, "float16")
    builtin(cache, "export_page_group", 0, 0, pages)


def page_group_import(device):
    cache = filled(device)
    builtin(cache, "prepare_import", 0, builtin(cache, "get_checkpoint_metadata", 0))


def written_check(device):
    with kvctl.checking():
        filled(device)


USES = [
    int8_pages,
    float8_pages,
    inline_rope,
    page_selector,
    renumbered_sinks,
    attention_in_parts,
    attention_sums,
    rerotated_eviction,
    page_group_export,
    page_group_import,
    written_check,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_device_does_what_the_table_says_and_refuses_the_rest(device, use):
    require(device)
    row = TABLE[use.__name__]
    if device in row["devices"]:
        use(device)
    else:
        with pytest.raises(NotImplementedError, match=f"^{re.escape(row['refusal'])}$"):
            use(device)
