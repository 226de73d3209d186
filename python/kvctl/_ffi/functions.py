"""The packed functions that kvctl calls, with their types: `cache.popn` is kvctl.cache.popn.

Generated from what libkvctl.so registers. Do not edit: run ``make ffi`` (scripts/generate_ffi.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

from tvm_ffi import Object, register_object
from tvm_ffi import get_global_func as _get

from . import libraries as libraries  # loads the library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from tvm_ffi import Device, Shape, Tensor
    from tvm_ffi import dtype as DataType

    class SupportsDLPack(Protocol):
        """A tensor of any library."""

        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


KVStateHandle = NewType("KVStateHandle", Object)
AttentionKVCacheHandle = NewType("AttentionKVCacheHandle", KVStateHandle)
PagedKVCacheHandle = NewType("PagedKVCacheHandle", AttentionKVCacheHandle)
CacheCheckpointHandle = NewType("CacheCheckpointHandle", Object)
RNNStateHandle = NewType("RNNStateHandle", KVStateHandle)
RecurrentStateHandle = NewType("RecurrentStateHandle", RNNStateHandle)
RecurrentCheckpointHandle = NewType("RecurrentCheckpointHandle", Object)
ModelRunnerHandle = NewType("ModelRunnerHandle", Object)
FunctionTableHandle = NewType("FunctionTableHandle", Object)
if TYPE_CHECKING:

    class CacheConfig(Object):
        """The C++ object ``kvctl.CacheConfig``."""

        num_layers: int
        num_qo_heads: int
        num_kv_heads: int
        head_dim: int
        max_total_tokens: int
        page_size: int
        max_sequences: int
        prefill_chunk_size: int
        dtype: str
        device: Device
        rope_mode: int
        rope_scale: float
        rope_theta: float
        layer_windows: Shape
        kv_scales: Tensor | None

        def __init__(
            self,
            *,
            num_layers: int,
            num_qo_heads: int,
            num_kv_heads: int,
            head_dim: int,
            max_total_tokens: int,
            page_size: int,
            max_sequences: int,
            prefill_chunk_size: int,
            dtype: str,
            device: Device,
            rope_mode: int,
            rope_scale: float,
            rope_theta: float,
            layer_windows: Shape,
            kv_scales: Tensor | None,
        ) -> None: ...

    class SavedSequenceRecord(Object):
        """The C++ object ``kvctl.SavedSequenceRecord``."""

        length: int
        next_position: int
        window_size: int
        sinks: int
        horizon: int
        evicted_begin: int
        evicted_end: int
        renumber_sinks: bool
        reports_held_length: bool
        positions: Tensor | None
        k: Tensor
        v: Tensor

        def __init__(
            self,
            *,
            length: int,
            next_position: int,
            window_size: int,
            sinks: int,
            horizon: int,
            evicted_begin: int,
            evicted_end: int,
            renumber_sinks: bool,
            reports_held_length: bool,
            positions: Tensor | None,
            k: Tensor,
            v: Tensor,
        ) -> None: ...

    class RecurrentFacts(Object):
        """The C++ object ``kvctl.RecurrentFacts``."""

        state_bytes: int
        max_states: int
        num_free_states: int
        max_history: int
        keep_steps: bool
        num_layers: int
        num_states: int

        def __init__(
            self,
            *,
            state_bytes: int,
            max_states: int,
            num_free_states: int,
            max_history: int,
            keep_steps: bool,
            num_layers: int,
            num_states: int,
        ) -> None: ...

    class SamplingParams(Object):
        """The C++ object ``kvctl.SamplingParams``."""

        temperature: float
        top_k: int
        top_p: float
        min_p: float
        repetition_penalty: float
        presence_penalty: float
        frequency_penalty: float
        bias_tokens: Tensor | None
        bias_values: Tensor | None
        stop_tokens: Tensor | None

        def __init__(
            self,
            *,
            temperature: float,
            top_k: int,
            top_p: float,
            min_p: float,
            repetition_penalty: float,
            presence_penalty: float,
            frequency_penalty: float,
            bias_tokens: Tensor | None,
            bias_values: Tensor | None,
            stop_tokens: Tensor | None,
        ) -> None: ...

    class DraftRequest(Object):
        """The C++ object ``kvctl.DraftRequest``."""

        how: int
        logits: Tensor | None
        sampling: Sequence[SamplingParams]
        seed: int
        request_ids: Tensor | None
        root_positions: Tensor | None
        first_nodes: Tensor | None
        depths: Tensor | None
        bitmask: Tensor | None

        def __init__(
            self,
            *,
            how: int,
            logits: Tensor | None,
            sampling: Sequence[SamplingParams],
            seed: int,
            request_ids: Tensor | None,
            root_positions: Tensor | None,
            first_nodes: Tensor | None,
            depths: Tensor | None,
            bitmask: Tensor | None,
        ) -> None: ...

    class VerifyRequest(Object):
        """The C++ object ``kvctl.VerifyRequest``."""

        rule: int
        trees: Tensor | None
        drawn: int
        drawn_per_node: Tensor | None
        logits: Tensor | None
        probabilities: bool
        draft_probs: Tensor | None
        draft_ids: Tensor | None
        draft_per_node: bool
        sampling: Sequence[SamplingParams]
        seed: int
        request_ids: Tensor | None
        root_positions: Tensor | None
        gumbel: bool
        history_begins: Tensor | None
        history: Tensor | None
        bitmask: Tensor | None
        epsilon: float
        delta: float

        def __init__(
            self,
            *,
            rule: int,
            trees: Tensor | None,
            drawn: int,
            drawn_per_node: Tensor | None,
            logits: Tensor | None,
            probabilities: bool,
            draft_probs: Tensor | None,
            draft_ids: Tensor | None,
            draft_per_node: bool,
            sampling: Sequence[SamplingParams],
            seed: int,
            request_ids: Tensor | None,
            root_positions: Tensor | None,
            gumbel: bool,
            history_begins: Tensor | None,
            history: Tensor | None,
            bitmask: Tensor | None,
            epsilon: float,
            delta: float,
        ) -> None: ...

else:

    def __getattr__(name: str) -> type[Object]:
        """Make the class of a record when it is first asked for."""
        if name not in [
            "CacheConfig",
            "SavedSequenceRecord",
            "RecurrentFacts",
            "SamplingParams",
            "DraftRequest",
            "VerifyRequest",
        ]:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        record = type(name, (Object,), {"__module__": __name__})
        return globals().setdefault(name, register_object(f"kvctl.{name}")(record))


class build:
    """``kvctl.build.*``."""

    get_isa: Callable[[], str] = _get("kvctl.build.get_isa")
    get_openmp_threads: Callable[[], int] = _get("kvctl.build.get_openmp_threads")
    get_tvm_version: Callable[[], str] = _get("kvctl.build.get_tvm_version")
    get_version: Callable[[], str] = _get("kvctl.build.get_version")
    init: Callable[[str], None] = _get("kvctl.build.init")
    set_stream_source: Callable[[Callable[..., Any] | None], None] = _get(
        "kvctl.build.set_stream_source"
    )


class cache:
    """``kvctl.cache.*``."""

    abort_forward: Callable[[PagedKVCacheHandle], None] = _get("kvctl.cache.abort_forward")
    attend: Callable[
        [
            PagedKVCacheHandle,
            int,
            Tensor,
            Tensor | None,
            float,
            float,
            Tensor | None,
            Tensor | None,
            Tensor | None,
            Tensor | None,
        ],
        Tensor,
    ] = _get("kvctl.cache.attend")
    attend_in_place: Callable[
        [
            PagedKVCacheHandle,
            int,
            Tensor,
            Tensor,
            Tensor,
            Tensor,
            float,
            float,
            Tensor | None,
            Tensor | None,
            Tensor | None,
        ],
        bool,
    ] = _get("kvctl.cache.attend_in_place")
    begin_forward: Callable[
        [PagedKVCacheHandle, Shape, Shape, Sequence[Tensor | None] | None, Shape | None, int], None
    ] = _get("kvctl.cache.begin_forward")
    checkpoint: Callable[[PagedKVCacheHandle, int], CacheCheckpointHandle] = _get(
        "kvctl.cache.checkpoint"
    )
    commit: Callable[[PagedKVCacheHandle, Shape, Sequence[Shape], bool], None] = _get(
        "kvctl.cache.commit"
    )
    count_saturated: Callable[[PagedKVCacheHandle], int] = _get("kvctl.cache.count_saturated")
    create: Callable[[CacheConfig], PagedKVCacheHandle] = _get("kvctl.cache.create")
    create_for_model: Callable[
        [Shape, int, int, int, int, int, float, float, Tensor], PagedKVCacheHandle
    ] = _get("kvctl.cache.create_for_model")
    create_with_windows: Callable[
        [Shape, int, Shape, int, int, int, int, float, float, Tensor], PagedKVCacheHandle
    ] = _get("kvctl.cache.create_with_windows")
    debug_poison: Callable[[PagedKVCacheHandle], None] = _get("kvctl.cache.debug_poison")
    drop_pending: Callable[[PagedKVCacheHandle, Shape | None], None] = _get(
        "kvctl.cache.drop_pending"
    )
    end_forward: Callable[[PagedKVCacheHandle], None] = _get("kvctl.cache.end_forward")
    evict: Callable[[PagedKVCacheHandle, int, Shape, bool], None] = _get("kvctl.cache.evict")
    forget_graphs: Callable[[PagedKVCacheHandle], None] = _get("kvctl.cache.forget_graphs")
    get_capabilities: Callable[[], str] = _get("kvctl.cache.get_capabilities")
    get_config: Callable[[PagedKVCacheHandle], CacheConfig] = _get("kvctl.cache.get_config")
    get_graph_state: Callable[[PagedKVCacheHandle], Sequence[int]] = _get(
        "kvctl.cache.get_graph_state"
    )
    get_kv: Callable[[PagedKVCacheHandle, int, int, int], Sequence[Tensor]] = _get(
        "kvctl.cache.get_kv"
    )
    get_kv_layout: Callable[[PagedKVCacheHandle], str] = _get("kvctl.cache.get_kv_layout")
    get_layer_pages: Callable[[PagedKVCacheHandle, int], Tensor] = _get(
        "kvctl.cache.get_layer_pages"
    )
    get_page_ids: Callable[[PagedKVCacheHandle, int], tuple[int, ...]] = _get(
        "kvctl.cache.get_page_ids"
    )
    get_page_table: Callable[[PagedKVCacheHandle, Shape], Sequence[Tensor]] = _get(
        "kvctl.cache.get_page_table"
    )
    get_pending_length: Callable[[PagedKVCacheHandle, int], int] = _get(
        "kvctl.cache.get_pending_length"
    )
    get_sequence_ids: Callable[[PagedKVCacheHandle], tuple[int, ...]] = _get(
        "kvctl.cache.get_sequence_ids"
    )
    get_uploads: Callable[[PagedKVCacheHandle], Sequence[int]] = _get("kvctl.cache.get_uploads")
    has_sequence: Callable[[PagedKVCacheHandle, int], bool] = _get("kvctl.cache.has_sequence")
    install: Callable[[], None] = _get("kvctl.cache.install")
    is_in_forward: Callable[[PagedKVCacheHandle], bool] = _get("kvctl.cache.is_in_forward")
    is_installed: Callable[[], bool] = _get("kvctl.cache.is_installed")
    load_sequence: Callable[[PagedKVCacheHandle, int, SavedSequenceRecord], None] = _get(
        "kvctl.cache.load_sequence"
    )
    popn: Callable[[PagedKVCacheHandle, int, int], None] = _get("kvctl.cache.popn")
    rollback: Callable[[PagedKVCacheHandle, int, CacheCheckpointHandle], None] = _get(
        "kvctl.cache.rollback"
    )
    save_sequence: Callable[[PagedKVCacheHandle, int], SavedSequenceRecord] = _get(
        "kvctl.cache.save_sequence"
    )
    set_observer: Callable[[PagedKVCacheHandle, Callable[..., Any] | None, bool, int], None] = _get(
        "kvctl.cache.set_observer"
    )
    set_page_selector: Callable[[PagedKVCacheHandle, Callable[..., Any] | None], None] = _get(
        "kvctl.cache.set_page_selector"
    )
    set_sliding_window: Callable[[PagedKVCacheHandle, int, int, int, int, bool], None] = _get(
        "kvctl.cache.set_sliding_window"
    )
    uninstall: Callable[[], None] = _get("kvctl.cache.uninstall")


class checking:
    """``kvctl.checking.*``."""

    get: Callable[[], bool] = _get("kvctl.checking.get")
    set: Callable[[bool], bool] = _get("kvctl.checking.set")


class checkpoint:
    """``kvctl.checkpoint.*``."""

    file_md5: Callable[[Callable[..., Any]], Sequence[str]] = _get("kvctl.checkpoint.file_md5")


class model:
    """``kvctl.model.*``."""

    activate: Callable[[SupportsDLPack, str, SupportsDLPack], None] = _get("kvctl.model.activate")
    add_bias: Callable[[SupportsDLPack, SupportsDLPack, SupportsDLPack], None] = _get(
        "kvctl.model.add_bias"
    )
    attention: Callable[[PagedKVCacheHandle, int, Tensor, float, float, Tensor], None] = _get(
        "kvctl.model.attention"
    )
    backend: Callable[[], str] = _get("kvctl.model.backend")
    gated_activate: Callable[[SupportsDLPack, str, SupportsDLPack], None] = _get(
        "kvctl.model.gated_activate"
    )
    gather_columns: Callable[[Tensor, SupportsDLPack, Tensor], None] = _get(
        "kvctl.model.gather_columns"
    )
    gather_columns_add: Callable[[Tensor, SupportsDLPack, SupportsDLPack, Tensor], None] = _get(
        "kvctl.model.gather_columns_add"
    )
    get_kernels: Callable[[str], Sequence[str]] = _get("kvctl.model.get_kernels")
    layer_norm: Callable[
        [SupportsDLPack, SupportsDLPack, SupportsDLPack, float, SupportsDLPack], None
    ] = _get("kvctl.model.layer_norm")
    linear: Callable[[SupportsDLPack, SupportsDLPack, SupportsDLPack], None] = _get(
        "kvctl.model.linear"
    )
    linear_add: Callable[[SupportsDLPack, SupportsDLPack, SupportsDLPack, SupportsDLPack], None] = (
        _get("kvctl.model.linear_add")
    )
    pack_linear: Callable[[SupportsDLPack], Tensor] = _get("kvctl.model.pack_linear")
    pack_linear_bf16: Callable[[SupportsDLPack], Tensor] = _get("kvctl.model.pack_linear_bf16")
    pack_quantized: Callable[[SupportsDLPack], Tensor] = _get("kvctl.model.pack_quantized")
    qk_norm: Callable[
        [SupportsDLPack, SupportsDLPack, SupportsDLPack, int, int, float, SupportsDLPack], None
    ] = _get("kvctl.model.qk_norm")
    quantize: Callable[[SupportsDLPack, int], Tensor] = _get("kvctl.model.quantize")
    rms_norm: Callable[[SupportsDLPack, SupportsDLPack, float, SupportsDLPack], None] = _get(
        "kvctl.model.rms_norm"
    )
    rope_table: Callable[[SupportsDLPack, SupportsDLPack, float, SupportsDLPack], None] = _get(
        "kvctl.model.rope_table"
    )
    rotate: Callable[[SupportsDLPack, SupportsDLPack, int, SupportsDLPack], None] = _get(
        "kvctl.model.rotate"
    )
    scale: Callable[[SupportsDLPack, float, SupportsDLPack], None] = _get("kvctl.model.scale")
    scale_add: Callable[[SupportsDLPack, float, SupportsDLPack, SupportsDLPack], None] = _get(
        "kvctl.model.scale_add"
    )
    silu_mul: Callable[[SupportsDLPack, SupportsDLPack], None] = _get("kvctl.model.silu_mul")
    soft_cap: Callable[[SupportsDLPack, float, SupportsDLPack], None] = _get("kvctl.model.soft_cap")
    take_rows: Callable[[SupportsDLPack, SupportsDLPack, SupportsDLPack], None] = _get(
        "kvctl.model.take_rows"
    )


class recurrent:
    """``kvctl.recurrent.*``."""

    abort_forward: Callable[[RecurrentStateHandle], None] = _get("kvctl.recurrent.abort_forward")
    begin_forward: Callable[
        [RecurrentStateHandle, Shape, Shape, Shape, Sequence[Shape | None] | None], None
    ] = _get("kvctl.recurrent.begin_forward")
    check_end_forward: Callable[[RecurrentStateHandle], None] = _get(
        "kvctl.recurrent.check_end_forward"
    )
    check_rollback: Callable[[RecurrentStateHandle, int, RecurrentCheckpointHandle], None] = _get(
        "kvctl.recurrent.check_rollback"
    )
    checkpoint: Callable[[RecurrentStateHandle, int], RecurrentCheckpointHandle] = _get(
        "kvctl.recurrent.checkpoint"
    )
    commit: Callable[[RecurrentStateHandle, Shape, Sequence[Shape]], tuple[int, ...]] = _get(
        "kvctl.recurrent.commit"
    )
    create: Callable[[int, int, int, int, bool, Sequence[Tensor]], RecurrentStateHandle] = _get(
        "kvctl.recurrent.create"
    )
    create_for_model: Callable[[Shape, int, Sequence[Tensor]], RecurrentStateHandle] = _get(
        "kvctl.recurrent.create_for_model"
    )
    drop_pending: Callable[[RecurrentStateHandle, Shape], None] = _get(
        "kvctl.recurrent.drop_pending"
    )
    end_forward: Callable[[RecurrentStateHandle], None] = _get("kvctl.recurrent.end_forward")
    fork_sequence: Callable[[RecurrentStateHandle, int, int, int], int] = _get(
        "kvctl.recurrent.fork_sequence"
    )
    get_earliest_position: Callable[[RecurrentStateHandle, int], int] = _get(
        "kvctl.recurrent.get_earliest_position"
    )
    get_facts: Callable[[RecurrentStateHandle], RecurrentFacts] = _get("kvctl.recurrent.get_facts")
    get_mask_parents: Callable[[Tensor], tuple[int, ...] | None] = _get(
        "kvctl.recurrent.get_mask_parents"
    )
    get_num_roots: Callable[[RecurrentStateHandle], int] = _get("kvctl.recurrent.get_num_roots")
    get_pending_length: Callable[[RecurrentStateHandle, int], int] = _get(
        "kvctl.recurrent.get_pending_length"
    )
    get_roots: Callable[[RecurrentStateHandle, int, int, Tensor], None] = _get(
        "kvctl.recurrent.get_roots"
    )
    get_rows: Callable[[RecurrentStateHandle, bool, Tensor], None] = _get(
        "kvctl.recurrent.get_rows"
    )
    get_sequence_length: Callable[[RecurrentStateHandle, int], int] = _get(
        "kvctl.recurrent.get_sequence_length"
    )
    get_state: Callable[[RecurrentStateHandle, int, int, int, int], Tensor] = _get(
        "kvctl.recurrent.get_state"
    )
    has_sequence: Callable[[RecurrentStateHandle, int], bool] = _get("kvctl.recurrent.has_sequence")
    install: Callable[[], None] = _get("kvctl.recurrent.install")
    is_in_forward: Callable[[RecurrentStateHandle], bool] = _get("kvctl.recurrent.is_in_forward")
    is_installed: Callable[[], bool] = _get("kvctl.recurrent.is_installed")
    is_ours: Callable[[Object], bool] = _get("kvctl.recurrent.is_ours")
    plan_commit: Callable[[RecurrentStateHandle, Shape, Sequence[Shape]], tuple[int, ...]] = _get(
        "kvctl.recurrent.plan_commit"
    )
    plan_popn: Callable[[RecurrentStateHandle, int, int], tuple[int, ...]] = _get(
        "kvctl.recurrent.plan_popn"
    )
    popn: Callable[[RecurrentStateHandle, int, int], int] = _get("kvctl.recurrent.popn")
    restart: Callable[[RecurrentStateHandle, int], None] = _get("kvctl.recurrent.restart")
    rollback: Callable[[RecurrentStateHandle, int, RecurrentCheckpointHandle], None] = _get(
        "kvctl.recurrent.rollback"
    )
    root_shape: Callable[[RecurrentStateHandle], tuple[int, ...]] = _get(
        "kvctl.recurrent.root_shape"
    )
    set_steps: Callable[[RecurrentStateHandle, int, int, Tensor], RecurrentStateHandle] = _get(
        "kvctl.recurrent.set_steps"
    )
    uninstall: Callable[[], None] = _get("kvctl.recurrent.uninstall")


class runner:
    """``kvctl.runner.*``."""

    complete: Callable[[ModelRunnerHandle, Shape, Tensor, int], Sequence[Tensor | None]] = _get(
        "kvctl.runner.complete"
    )
    decode: Callable[[ModelRunnerHandle, Shape, Shape], Tensor] = _get("kvctl.runner.decode")
    embed: Callable[[ModelRunnerHandle, Shape], Tensor] = _get("kvctl.runner.embed")
    forward_states: Callable[
        [
            ModelRunnerHandle,
            Shape,
            Shape,
            Shape,
            Sequence[Tensor | None] | None,
            Shape | None,
            int,
            Shape,
            int,
        ],
        Sequence[Tensor | None],
    ] = _get("kvctl.runner.forward_states")
    gather_logits: Callable[[ModelRunnerHandle, Tensor], Tensor] = _get(
        "kvctl.runner.gather_logits"
    )
    get_cache: Callable[[ModelRunnerHandle], PagedKVCacheHandle | None] = _get(
        "kvctl.runner.get_cache"
    )
    get_config: Callable[[ModelRunnerHandle], str] = _get("kvctl.runner.get_config")
    get_function: Callable[[FunctionTableHandle, str], Callable[..., Any]] = _get(
        "kvctl.runner.get_function"
    )
    get_function_names: Callable[[FunctionTableHandle], Sequence[str]] = _get(
        "kvctl.runner.get_function_names"
    )
    get_library: Callable[[ModelRunnerHandle], FunctionTableHandle] = _get(
        "kvctl.runner.get_library"
    )
    get_library_metadata: Callable[[FunctionTableHandle], str] = _get(
        "kvctl.runner.get_library_metadata"
    )
    get_library_path: Callable[[FunctionTableHandle], str] = _get("kvctl.runner.get_library_path")
    get_logit_columns: Callable[[ModelRunnerHandle], int] = _get("kvctl.runner.get_logit_columns")
    get_num_shards: Callable[[ModelRunnerHandle], int] = _get("kvctl.runner.get_num_shards")
    get_params: Callable[[ModelRunnerHandle], Sequence[Tensor]] = _get("kvctl.runner.get_params")
    get_prefill_chunk_size: Callable[[ModelRunnerHandle], int] = _get(
        "kvctl.runner.get_prefill_chunk_size"
    )
    get_state: Callable[[ModelRunnerHandle], RecurrentStateHandle | None] = _get(
        "kvctl.runner.get_state"
    )
    get_vocab_size: Callable[[ModelRunnerHandle], int] = _get("kvctl.runner.get_vocab_size")
    gives_hidden: Callable[[ModelRunnerHandle], bool] = _get("kvctl.runner.gives_hidden")
    has_function: Callable[[FunctionTableHandle, str], bool] = _get("kvctl.runner.has_function")
    instrument_library: Callable[[FunctionTableHandle, Callable[..., Any] | None], None] = _get(
        "kvctl.runner.instrument_library"
    )
    load_library: Callable[[str, Device], FunctionTableHandle] = _get("kvctl.runner.load_library")
    load_model: Callable[
        [
            str,
            Device,
            FunctionTableHandle | None,
            int,
            int,
            int,
            int,
            str,
            Tensor | None,
            int,
            int,
            bool,
            int,
            Callable[..., Any] | None,
        ],
        ModelRunnerHandle,
    ] = _get("kvctl.runner.load_model")
    prefill: Callable[[ModelRunnerHandle, Shape, Shape, Shape], Tensor] = _get(
        "kvctl.runner.prefill"
    )
    prefill_embeddings: Callable[[ModelRunnerHandle, Shape, Sequence[Tensor]], Tensor] = _get(
        "kvctl.runner.prefill_embeddings"
    )
    prefill_states: Callable[
        [ModelRunnerHandle, Shape, Shape, Shape, Shape], Sequence[Tensor | None]
    ] = _get("kvctl.runner.prefill_states")
    sample_shards: Callable[[ModelRunnerHandle, Tensor, Tensor, int, Shape, Shape], Tensor] = _get(
        "kvctl.runner.sample_shards"
    )
    set_join_logits: Callable[[ModelRunnerHandle, bool], None] = _get(
        "kvctl.runner.set_join_logits"
    )
    verify: Callable[[ModelRunnerHandle, Shape, Tensor], Tensor] = _get("kvctl.runner.verify")
    verify_states: Callable[
        [ModelRunnerHandle, Shape, Tensor, Shape, int], Sequence[Tensor | None]
    ] = _get("kvctl.runner.verify_states")


class verify:
    """``kvctl.verify.*``."""

    draft: Callable[[DraftRequest, Tensor, Tensor], None] = _get("kvctl.verify.draft")
    draft_on_device: Callable[[DraftRequest, Tensor, DataType], Tensor] = _get(
        "kvctl.verify.draft_on_device"
    )
    enumerate: Callable[[VerifyRequest, bool], bytes] = _get("kvctl.verify.enumerate")
    get_drawn: Callable[[], Sequence[str]] = _get("kvctl.verify.get_drawn")
    get_last_accepted: Callable[[VerifyRequest, bool, Tensor], None] = _get(
        "kvctl.verify.get_last_accepted"
    )
    get_rules: Callable[[], Sequence[str]] = _get("kvctl.verify.get_rules")
    get_target_probs: Callable[[VerifyRequest, bool, Tensor], None] = _get(
        "kvctl.verify.get_target_probs"
    )
    new_draft_request: Callable[[], DraftRequest] = _get("kvctl.verify.new_draft_request")
    new_request: Callable[[], VerifyRequest] = _get("kvctl.verify.new_request")
    new_sampling: Callable[[], SamplingParams] = _get("kvctl.verify.new_sampling")
    philox: Callable[[int, int, int, int, int, int], Sequence[int]] = _get("kvctl.verify.philox")
    run: Callable[[VerifyRequest, Tensor, Tensor | None], None] = _get("kvctl.verify.run")
    run_each: Callable[[VerifyRequest, Tensor, Tensor | None], Sequence[str]] = _get(
        "kvctl.verify.run_each"
    )
    run_greedy: Callable[[Tensor, int, Tensor, Tensor], None] = _get("kvctl.verify.run_greedy")


class runtime:
    """``runtime.*``."""

    TVMTensorCreateView: Callable[[Tensor, Shape, DataType, int], Tensor] = _get(
        "runtime.TVMTensorCreateView"
    )


class vm_builtin:
    """``vm.builtin.*``."""

    attention_kv_cache_empty: Callable[[AttentionKVCacheHandle], bool] = _get(
        "vm.builtin.attention_kv_cache_empty"
    )
    attention_kv_cache_get_num_available_pages: Callable[[AttentionKVCacheHandle], int] = _get(
        "vm.builtin.attention_kv_cache_get_num_available_pages"
    )
    attention_kv_cache_get_query_positions: Callable[[AttentionKVCacheHandle], Tensor] = _get(
        "vm.builtin.attention_kv_cache_get_query_positions"
    )
    attention_kv_cache_get_sequence_length: Callable[[AttentionKVCacheHandle, int], int] = _get(
        "vm.builtin.attention_kv_cache_get_sequence_length"
    )
    attention_kv_cache_get_total_sequence_length: Callable[[AttentionKVCacheHandle], int] = _get(
        "vm.builtin.attention_kv_cache_get_total_sequence_length"
    )
    kv_state_add_sequence: Callable[[KVStateHandle, int], None] = _get(
        "vm.builtin.kv_state_add_sequence"
    )
    kv_state_clear: Callable[[KVStateHandle], None] = _get("vm.builtin.kv_state_clear")
    kv_state_fork_sequence: Callable[[KVStateHandle, int, int, int], None] = _get(
        "vm.builtin.kv_state_fork_sequence"
    )
    kv_state_remove_sequence: Callable[[KVStateHandle, int], None] = _get(
        "vm.builtin.kv_state_remove_sequence"
    )
    rnn_state_get: Callable[[RNNStateHandle, int, int, Tensor], None] = _get(
        "vm.builtin.rnn_state_get"
    )
    rnn_state_set: Callable[[RNNStateHandle, int, int, Tensor], RNNStateHandle] = _get(
        "vm.builtin.rnn_state_set"
    )
