"""Any attention KV cache driven through TVM's ``vm.builtin`` functions, TVM's own among them.

TVM's cache needs its kernels: its CPU ones are compiled here, once per configuration. TVM hands
its two tree kernels for the CPU to the cache in swapped order; they are put right here, so that
what the tests show are the defects of the cache and not of that call.

One file, since each function of TVM is one method of the driver.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl.testing.cache_model import CacheModel

ROPE_MODES = {"none": 0, "normal": 1, "inline": 2}
MHA, MHA_SLIDING = 0, 3


@dataclass(frozen=True)
class Config:
    """What both caches are created with. TVM's CPU kernels are written for pages of 16 tokens."""

    num_layers: int = 2
    num_qo_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "float32"
    max_sequences: int = 8
    max_total_tokens: int = 512
    prefill_chunk_size: int = 256
    page_size: int = 16
    sliding_window: bool = False
    layer_sliding_window: int = 32
    sliding_layers: tuple[int, ...] = ()
    rope: str = "none"
    rope_scale: float = 1.0
    rope_theta: float = 10000.0


def compiler_or_skip() -> Any:
    """Import all of TVM, or skip the test where only its runtime is installed."""
    library = Path(tvm_ffi.__file__).parent.parent / "tvm" / "lib" / "libtvm_compiler.so"
    if not library.exists():
        pytest.skip("TVM's compiler is not installed: its cache has no kernels to run on")
    import tvm

    return tvm


@functools.cache
def _kernels(config: Config) -> dict[str, Any]:
    tvm = compiler_or_skip()
    from tvm.relax.frontend.nn.llm import kv_cache as llm

    kv, qo, dim, dtype = config.num_kv_heads, config.num_qo_heads, config.head_dim, config.dtype
    scaling: dict[str, Any] = {}
    window = config.layer_sliding_window
    functions = {
        "append": llm._kv_cache_transpose_append(kv, dim, dtype),
        "ragged": llm._attention_prefill_ragged_cpu(kv, qo, dim, dim, dtype, scaling),
        "prefill": llm._attention_prefill_cpu(kv, qo, dim, dtype, False, scaling),
        "decode": llm._attention_decode_cpu(kv, qo, dim, dtype, False, scaling),
        "prefill_window": llm._attention_prefill_cpu(
            kv, qo, dim, dtype, True, scaling, sliding_window_size=window
        ),
        "decode_window": llm._attention_decode_cpu(kv, qo, dim, dtype, True, scaling),
        "tree": llm.tree_attn_cpu(kv, qo, dim, dtype, scaling),
        "tree_paged": llm.tree_attn_with_paged_kv_cache_cpu(kv, qo, dim, dtype, scaling),
        "merge": llm._merge_state_inplace_cpu(dtype),
        "split_rotary": llm.llama_rope_with_position_map(
            config.rope_theta, config.rope_scale, dim, qo, kv, dtype, scaling
        ),
        "copy_page": llm._copy_single_page_cpu(kv, config.page_size, dim, dtype),
        "debug_get_kv": llm._kv_cache_debug_get_kv(config.num_layers, kv, dim, dtype),
        "compact": llm._compact_kv_copy_cpu(kv, dim, dtype),
    }
    module = tvm.IRModule(
        {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    )
    built = tvm.tirx.build(module, target=tvm.target.Target("llvm"))
    return {name: built[name] for name in functions}


def tvm_kernels(config: Config) -> dict[str, Any]:
    """Compile TVM's CPU kernels, once for all configurations that share them."""
    return _kernels(
        replace(
            config,
            max_sequences=0,
            max_total_tokens=0,
            prefill_chunk_size=0,
            sliding_window=False,
            sliding_layers=(),
            rope="none",
        )
    )


def create_arguments(config: Config) -> list[Any]:
    """Return the 28 arguments of ``vm.builtin.paged_attention_kv_cache_create``."""
    kernel = tvm_kernels(config)
    kinds = [
        MHA_SLIDING if layer in config.sliding_layers else MHA for layer in range(config.num_layers)
    ]
    return [
        tvm_ffi.Shape(
            [
                config.max_sequences,
                config.max_total_tokens,
                config.prefill_chunk_size,
                config.page_size,
                int(config.sliding_window),
                config.layer_sliding_window,
            ]
        ),
        tvm_ffi.Shape([0, config.num_layers]),
        config.num_qo_heads,
        config.num_kv_heads,
        config.head_dim,
        config.head_dim,
        tvm_ffi.Shape(kinds),
        False,
        ROPE_MODES[config.rope],
        config.rope_scale,
        config.rope_theta,
        None,
        _tensor(np.zeros((), config.dtype)),
        kernel["append"],
        None,
        ["tirx", kernel["ragged"]],
        ["tirx", kernel["prefill"]],
        ["tirx", kernel["decode"]],
        ["tirx", kernel["prefill_window"]],
        ["tirx", kernel["decode_window"]],
        ["tirx", kernel["tree_paged"]],
        ["tirx", kernel["tree"]],
        [],
        [kernel["merge"], kernel["merge"]],
        kernel["split_rotary"],
        kernel["copy_page"],
        kernel["debug_get_kv"],
        kernel["compact"],
    ]


def _tensor(array: np.ndarray) -> Any:
    tensor = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")(
        tvm_ffi.Shape(array.shape), tvm_ffi.dtype(str(array.dtype)), tvm_ffi.device("cpu", 0), None
    )
    np.from_dlpack(tensor)[...] = array
    return tensor


class BuiltinCache:
    """An AttentionKVCache behind TVM's own functions, whoever's it is."""

    def __init__(self, handle: Any, config: Config) -> None:
        self.handle = handle
        self.config = config
        self.positions_seen = np.zeros(0, np.int32)

    def _call(self, name: str, *args: Any) -> Any:
        return tvm_ffi.get_global_func(f"vm.builtin.{name}")(self.handle, *args)

    def clear(self) -> None:
        self._call("kv_state_clear")

    def add(self, *seq_ids: int) -> None:
        for seq_id in seq_ids:
            self._call("kv_state_add_sequence", seq_id)

    def remove(self, seq_id: int) -> None:
        self._call("kv_state_remove_sequence", seq_id)

    def fork(self, parent: int, child: int, position: int = -1) -> None:
        self._call("kv_state_fork_sequence", parent, child, position)

    def popn(self, seq_id: int, n: int) -> None:
        self._call("kv_state_popn", seq_id, n)

    def enable_window(self, seq_id: int, window: int, sinks: int) -> None:
        self._call("attention_kv_cache_enable_sliding_window_for_seq", seq_id, window, sinks)

    def begin(
        self, seq_ids: list[int], lengths: list[int], parents: list[int] | None = None
    ) -> None:
        tree = () if parents is None else (tvm_ffi.Shape(parents),)
        self._call("kv_state_begin_forward", tvm_ffi.Shape(seq_ids), tvm_ffi.Shape(lengths), *tree)

    def end(self) -> None:
        self._call("kv_state_end_forward")

    def commit(self, seq_ids: list[int], leaves: list[int]) -> None:
        self._call(
            "attention_kv_cache_commit_accepted_token_tree_nodes",
            tvm_ffi.Shape(seq_ids),
            tvm_ffi.Shape(leaves),
        )

    def attention(self, layer: int, qkv: np.ndarray, sm_scale: float | None = None) -> np.ndarray:
        config = self.config
        out = _tensor(np.zeros((len(qkv), config.num_qo_heads, config.head_dim), config.dtype))
        scale = config.head_dim**-0.5 if sm_scale is None else sm_scale
        self._call(
            "attention_kv_cache_attention_with_fused_qkv",
            layer,
            scale,
            _tensor(np.ascontiguousarray(qkv, config.dtype)),
            out,
        )
        return np.from_dlpack(out).copy()

    def self_attention(self, layer: int, q: Any, k: Any, v: Any) -> list[np.ndarray]:
        out, lse = _tensor(np.zeros_like(q)), _tensor(np.zeros(q.shape[:2], np.float32))
        name, scale = "attention_kv_cache_self_attention", self.config.head_dim**-0.5
        self._call(name, layer, scale, _tensor(q), _tensor(k), _tensor(v), out, lse)
        return [np.from_dlpack(out).copy(), np.from_dlpack(lse).copy()]

    def cross_attention(self, layer: int, q: Any) -> list[np.ndarray]:
        out, lse = _tensor(np.zeros_like(q)), _tensor(np.zeros(q.shape[:2], np.float32))
        name, scale = "attention_kv_cache_cross_attention", self.config.head_dim**-0.5
        self._call(name, layer, scale, _tensor(q), out, lse)
        return [np.from_dlpack(out).copy(), np.from_dlpack(lse).copy()]

    def merge(self, out: Any, lse: Any, other_out: Any, other_lse: Any) -> list[np.ndarray]:
        merged = self._call(
            "attention_kv_cache_merge_attn_output_inplace",
            *(_tensor(part) for part in (out, lse, other_out, other_lse)),
        )
        return [np.from_dlpack(part).copy() for part in merged]

    def shared_kv(self, source_layer: int, q: Any, k: Any, v: Any) -> np.ndarray:
        out = _tensor(np.zeros_like(q))
        name, scale = "attention_kv_cache_attention_with_shared_kv", self.config.head_dim**-0.5
        self._call(name, source_layer, scale, _tensor(q), _tensor(k), _tensor(v), out)
        return np.from_dlpack(out).copy()

    def layout_hash(self) -> str:
        return str(self._call("attention_kv_cache_get_layout_hash"))

    def metadata(self) -> Any:
        return json.loads(str(self._call("attention_kv_cache_get_checkpoint_metadata", 0)))

    def export_group(self, group: int) -> np.ndarray:
        shape = self.metadata()["groups"][group]["shape"]
        pages = _tensor(np.zeros(shape, self.config.dtype))
        self._call("attention_kv_cache_export_page_group", 0, group, pages)
        return np.from_dlpack(pages).copy()

    def import_all(self, metadata: Any, groups: list[np.ndarray]) -> None:
        self._call("attention_kv_cache_prepare_import", 0, json.dumps(metadata))
        for group, pages in enumerate(groups):
            self._call("attention_kv_cache_import_page_group", 0, group, _tensor(pages))
        self._call("attention_kv_cache_finish_import", 0)

    def positions(self) -> np.ndarray:
        return np.from_dlpack(self._call("attention_kv_cache_get_query_positions")).copy()

    def length(self, seq_id: int) -> int:
        return int(self._call("attention_kv_cache_get_sequence_length", seq_id))

    def total_length(self) -> int:
        return int(self._call("attention_kv_cache_get_total_sequence_length"))

    def free_pages(self) -> int:
        return int(self._call("attention_kv_cache_get_num_available_pages"))

    def empty(self) -> bool:
        return bool(self._call("attention_kv_cache_empty"))

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> Any:
        config = self.config
        end = self.length(seq_id) if end is None else end
        shape = (config.num_layers, end - begin, config.num_kv_heads, config.head_dim)
        k, v = _tensor(np.zeros(shape, config.dtype)), _tensor(np.zeros(shape, config.dtype))
        self._call("attention_kv_cache_debug_get_kv", seq_id, begin, end, k, v)
        return np.from_dlpack(k).copy(), np.from_dlpack(v).copy()

    def forward(
        self, seq_ids: list[int], qkv: list[np.ndarray], parents: list[list[int]] | None = None
    ) -> list[np.ndarray]:
        """Run every layer of a step; qkv[i] and what returns are (layers, n_i, heads, dim)."""
        lengths = [part.shape[1] for part in qkv]
        flat = None if parents is None else [parent for tree in parents for parent in tree]
        self.begin(seq_ids, lengths, flat)
        self.positions_seen = self.positions()
        outputs = [
            self.attention(layer, np.concatenate([part[layer] for part in qkv]))
            for layer in range(self.config.num_layers)
        ]
        self.end()
        return np.split(np.stack(outputs), np.cumsum(lengths)[:-1], axis=1)


def tvm_cache(config: Config, *more: Any) -> BuiltinCache:
    """Create TVM's own cache on TVM's own CPU kernels."""
    create = tvm_ffi.get_global_func("vm.builtin.paged_attention_kv_cache_create")
    return BuiltinCache(create(*create_arguments(config), *more), config)


def kvctl_cache(config: Config, *more: Any) -> BuiltinCache:
    """Create kvctl's cache with the very call that creates TVM's."""
    with kvctl.installed():
        return tvm_cache(config, *more)


class Wrong(AssertionError):
    """A cache answered otherwise than the model."""


class Shadowed:
    """A cache and the model: every operation goes to both, every answer is compared."""

    def __init__(self, cache: BuiltinCache, *, seed: int = 0) -> None:
        config = cache.config
        self.cache = cache
        self.model = CacheModel(
            num_layers=config.num_layers,
            num_qo_heads=config.num_qo_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=None if config.rope == "none" else config.rope_theta,
            rope_inline=config.rope == "inline",
        )
        self.rng = np.random.default_rng(seed)
        self.tolerance = 2e-5 if config.dtype == "float32" else 4e-3

    def add(self, *seq_ids: int) -> None:
        self.cache.add(*seq_ids)
        for seq_id in seq_ids:
            self.model.add_sequence(seq_id)

    def remove(self, seq_id: int) -> None:
        self.cache.remove(seq_id)
        self.model.remove_sequence(seq_id)

    def fork(self, parent: int, child: int, position: int = -1) -> None:
        self.cache.fork(parent, child, position)
        self.model.fork_sequence(parent, child, position)

    def popn(self, seq_id: int, n: int) -> None:
        self.cache.popn(seq_id, n)
        self.model.popn(seq_id, n)

    def qkv(self, length: int) -> np.ndarray:
        config = self.cache.config
        heads = config.num_qo_heads + 2 * config.num_kv_heads
        shape = (config.num_layers, length, heads, config.head_dim)
        return self.rng.standard_normal(shape, dtype=np.float32).astype(config.dtype)

    def forward(self, lengths: dict[int, int | list[int]]) -> None:
        """Append chains of so many tokens, or trees with these parents; one kind per step."""
        parents = [value for value in lengths.values() if isinstance(value, list)]
        sizes = [len(value) if isinstance(value, list) else value for value in lengths.values()]
        assert len(parents) in (0, len(lengths))
        qkv = [self.qkv(size) for size in sizes]
        got = self.cache.forward(list(lengths), qkv, parents or None)
        self.model.begin_forward(list(lengths), sizes, mask=parents or None)
        for layer in range(self.cache.config.num_layers):
            expected = self.model.attention(layer, np.concatenate([part[layer] for part in qkv]))
            self.close(np.concatenate([part[layer] for part in got]), expected, "attention")
        self.model.end_forward()

    def commit(self, leaves: dict[int, int]) -> None:
        """Commit the path to a leaf of each sequence (-1: nothing)."""
        self.cache.commit(list(leaves), list(leaves.values()))
        kept = [
            [] if leaf < 0 else self.model.sequences[seq_id].ancestors(leaf)
            for seq_id, leaf in leaves.items()
        ]
        self.model.commit(list(leaves), kept)

    def check(self, *seq_ids: int) -> None:
        """Compare lengths, K and V."""
        for seq_id in seq_ids or self.model.sequences:
            length = self.model.sequence_length(seq_id)
            if self.cache.length(seq_id) != length:
                raise Wrong(f"sequence {seq_id}: {self.cache.length(seq_id)} tokens, not {length}")
            if length:
                got, expected = self.cache.get_kv(seq_id), self.model.get_kv(seq_id)
                for one, other in zip(got, expected, strict=True):
                    self.close(one, other, f"K/V of sequence {seq_id}")

    def close(self, got: np.ndarray, expected: np.ndarray, what: str) -> None:
        difference = np.abs(got.astype(np.float64) - expected)
        if not np.all(difference <= self.tolerance * (1 + np.abs(expected))):
            raise Wrong(f"{what} differs by {difference.max()}")
