"""The table of packed functions: what libkvctl.so registers, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tvm_ffi

import kvctl
from kvctl._ffi import functions as ffi

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_ffi", ROOT / "scripts/generate_ffi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_function_of_the_library_is_in_the_table() -> None:
    registered = {
        name
        for name in tvm_ffi.registry.list_global_func_names()
        # Those of kvctl.distributed are Python's own, registered where a session was opened.
        if name.startswith("kvctl.") and not name.startswith("kvctl.distributed.")
    }
    ours = {name: area for name, area in vars(ffi).items() if isinstance(area, type)}
    listed = {
        f"kvctl.{area}.{verb}"
        for area, functions in ours.items()
        for verb in vars(functions)
        if not verb.startswith("_") and f"kvctl.{area}.{verb}" in registered
    }
    assert listed == registered


@pytest.mark.parametrize(
    ("schema", "annotation"),
    [
        ({"type": "ffi.Shape"}, "Shape"),
        ({"type": "DLTensor*"}, "SupportsDLPack"),
        ({"type": "Optional", "args": [{"type": "int"}]}, "int | None"),
        (
            {"type": "ffi.Array", "args": [{"type": "Optional", "args": [{"type": "ffi.Tensor"}]}]},
            "Sequence[Tensor | None]",
        ),
        ({"type": "kvctl.PagedKVCache"}, "PagedKVCacheHandle"),
        ({"type": "kvctl.CacheConfig"}, "CacheConfig"),
    ],
)
def test_schemas_are_rendered(
    generator: ModuleType, schema: dict[str, Any], annotation: str
) -> None:
    assert generator.Types().render(schema) == annotation


def test_handles_keep_their_parents(generator: ModuleType) -> None:
    types = generator.Types()
    types.render({"type": "kvctl.PagedKVCache"})
    assert list(types.handles) == [
        "relax.vm.KVState",
        "relax.vm.AttentionKVCache",
        "kvctl.PagedKVCache",
    ]
    assert types.handles["kvctl.PagedKVCache"].endswith(
        '("PagedKVCacheHandle", AttentionKVCacheHandle)'
    )


def test_a_record_has_the_fields_that_it_was_made_with() -> None:
    cache = kvctl.PagedKVCache.create(
        num_layers=2,
        num_qo_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_total_tokens=33,
        page_size=16,
        layer_windows=[0, 5],
        rope=kvctl.Rope(theta=5.0, inline=True),
    )
    config = ffi.cache.get_config(cache.handle)
    assert (config.num_layers, config.num_qo_heads, config.num_kv_heads) == (2, 4, 2)
    assert (config.max_total_tokens, config.page_size) == (48, 16)
    assert (config.rope_mode, config.rope_theta, config.layer_windows) == (2, 5.0, (0, 5))
    assert cache.num_pages == 3


def test_a_record_refuses_missing_and_unknown_fields() -> None:
    record: Any = ffi.CacheConfig
    with pytest.raises(TypeError, match="missing"):
        record(num_layers=1)
    with pytest.raises(TypeError, match="num_heads"):
        record(num_heads=1)


def test_the_class_of_a_record_is_made_once() -> None:
    assert ffi.CacheConfig is ffi.CacheConfig
    with pytest.raises(AttributeError, match="NoSuchRecord"):
        ffi.NoSuchRecord  # type: ignore[attr-defined]  # noqa: B018
