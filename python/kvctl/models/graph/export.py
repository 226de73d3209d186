"""From a configuration to the graph of its decoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tvm
from tvm.relax.frontend import nn

from ..checkpoints.config import DecoderConfig
from .decoder import DecoderForCausalLM
from .kv_cache import SIZES
from .layers import KvctlLayers, Layers, ParamSpec
from .plain_layers import PlainLayers
from .sharded_layers import ShardedLayers
from .tensor_parallel import TensorParallel, whole_params


def check_layers(
    config: DecoderConfig, hidden_layers: Sequence[int], exit_layers: Sequence[int]
) -> None:
    """Check which hidden states and early exits are asked for.

    Raises
    ------
    ValueError
        If a layer is none of the model's, or they do not ascend.
    """
    last = config.num_hidden_layers - 1
    for name, values, least in (("hidden", hidden_layers, 0), ("exit", exit_layers, 1)):
        inside = all(type(one) is int and least <= one <= last for one in values)
        if not inside or list(values) != sorted(set(values)):
            raise ValueError(
                f"{name}_layers must ascend from {least} to {last} at most, not {list(values)}"
            )


def export(
    config: DecoderConfig,
    *,
    dtype: str = "float32",
    cache: str = "kvctl",
    target: Any = None,
    unused: Sequence[int] = (),
    hidden_layers: Sequence[int] | None = None,
    exit_layers: Sequence[int] = (),
    parallel: TensorParallel | None = None,
    blocks: Mapping[str, str] | None = None,
) -> tuple[tvm.IRModule, list[ParamSpec]]:
    """Build the graph of a model.

    Parameters
    ----------
    config : DecoderConfig
        The model's shape.
    dtype : str
        On the CPU what the linear weights are packed as, "float32", "bfloat16", "int8" or "int4"
        (activations are float32); elsewhere the type of everything.
    cache : str
        "kvctl", or "tvm" for TVM's own cache (its kernels are compiled into the library).
    target : tvm.target.Target, optional
        What the graph will be compiled for; by default this machine's CPU.
    unused : sequence of int
        Ids that are no tokens, padding of the output layer: their logits are minus infinity, so
        that nothing ever chooses them.
    hidden_layers : sequence of int, optional
        Layers whose outputs a verification can return, ascending; an empty one still gives what
        the output layer reads. By default there are no hidden states.
    exit_layers : sequence of int
        Numbers of layers after which a verification can stop.
    parallel : TensorParallel, optional
        How `config` is split; the graph is then that of each of its workers.
    blocks : mapping, optional
        See `KvctlLayers`.

    Returns
    -------
    module, params
        MLC-LLM's functions by their names, and the parameters in the order in which they take them,
        whole as they are saved.

    Raises
    ------
    ValueError
        If `dtype` or `cache` is not one of those, a layer is none of the model's, or sums of
        several workers are to be whole elsewhere than on the CPU.
    """
    check_layers(config, hidden_layers or (), exit_layers)
    if cache not in ("kvctl", "tvm"):
        raise ValueError(f"cache must be 'kvctl' or 'tvm', not '{cache}'")
    target = tvm.target.Target("llvm") if target is None else target
    on_cpu = target.kind.name == "llvm"
    if parallel is not None and parallel.sums == "whole" and not on_cpu:
        raise ValueError(
            "tensor_parallel_sums 'whole' is for the CPU: on a GPU TVM's compiler chooses by a "
            "product's shape in which order it is summed, so a worker's share has other bits"
        )
    layers: Layers = KvctlLayers(dtype, blocks) if on_cpu else PlainLayers(dtype)
    saved = "float32" if on_cpu else dtype

    def make(shape: DecoderConfig, ops: Any, over: TensorParallel | None) -> DecoderForCausalLM:
        return DecoderForCausalLM(
            shape,
            ops,
            cache=cache,
            target=target,
            unused=unused,
            hidden_layers=hidden_layers,
            exit_layers=exit_layers,
            parallel=over,
        )

    if parallel is None:
        model = make(config, layers, None)
        return export_module(model, module_spec(model), dtype=saved)
    model = make(parallel.local, ShardedLayers(layers, parallel), parallel)
    module, local = export_module(model, module_spec(model), dtype=saved)
    whole = param_specs(make(config, layers, None).named_parameters(), saved)
    return module, whole_params(local, whole, parallel)


def module_spec(model: Any) -> Any:
    """Return the signatures of a module's functions, and of the one that creates its cache.

    Parameters
    ----------
    model
        Has ``functions()``, the arguments of its functions by their names, and
        ``create_tir_paged_kv_cache``.
    """
    packed = {"param_mode": "packed", "effect_mode": "none"}
    spec: dict[str, Any] = {
        name: {**arguments, "$": dict(packed)} for name, arguments in model.functions().items()
    }
    spec["create_tir_paged_kv_cache"] = {
        **dict.fromkeys(SIZES, int),
        "$": {"param_mode": "none", "effect_mode": "none"},
    }
    return nn.spec.ModuleSpec.from_raw(spec, model)


def export_module(model: Any, spec: Any, *, dtype: str) -> tuple[tvm.IRModule, list[ParamSpec]]:
    """Export the functions of a module.

    Parameters
    ----------
    model, spec
        The module, and its signatures.
    dtype : str
        Of saved parameters that do not name their own.

    Returns
    -------
    module, params
        The functions, and the parameters in the order in which they take them.
    """
    module, params = model.export_tvm(spec)
    return module, param_specs(params, dtype)


def param_specs(params: Iterable[tuple[str, Any]], dtype: str) -> list[ParamSpec]:
    """Return what is saved of a module's parameters, `dtype` where they do not name their own."""
    return [
        ParamSpec(
            name,
            tuple(int(d) for d in param.attrs.get("plain_shape", param.shape)),
            param.attrs.get("plain_dtype", dtype),
            param.attrs.get("packed"),
        )
        for name, param in params
    ]
