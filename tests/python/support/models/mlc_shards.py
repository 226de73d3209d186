"""A library for several workers as MLC-LLM compiles it: its metadata, its functions that cut."""

from __future__ import annotations

import json

from relax_library import METADATA, metadata_says


def compile_mlc_shards(directory, checkpoint, workers):
    """Write a model directory for several workers; returns what its library says of itself.

    As in MLC-LLM's, the head is whole on every worker, ids and rows come from worker 0, the files
    hold whole parameters, and ``preprocs`` names the functions of the library that cut them. The
    library asks `metadata_says` for its metadata, so that one serves several tests.
    """
    import tvm
    from tvm import relax
    from tvm.relax.frontend.nn import op

    from kvctl.models.build.params import ParamWriter
    from kvctl.models.checkpoints.weights import load_parameter
    from kvctl.models.graph.decoder import DecoderForCausalLM
    from kvctl.models.graph.export import module_spec
    from kvctl.models.graph.plain_layers import PlainLayers
    from kvctl.models.graph.sharded_layers import ShardedLayers
    from kvctl.models.graph.tensor_parallel import TensorParallel

    class Model(DecoderForCausalLM):
        def embed(self, input_ids):
            return super().embed(op.ccl_broadcast_from_worker0(input_ids))

        def batch_prefill(self, input_embeds, logit_positions, paged_kv_cache):
            rows = op.ccl_broadcast_from_worker0(logit_positions)
            return super().batch_prefill(input_embeds, rows, paged_kv_cache)

    config = checkpoint.config
    parallel = TensorParallel(config, workers)
    local = parallel.local
    target = tvm.target.Target("llvm")
    layers = ShardedLayers(PlainLayers("float32"), parallel)
    model = Model(local, layers, cache="kvctl", target=target)
    module, params = model.export_tvm(module_spec(model))
    directory.mkdir(parents=True)
    writer = ParamWriter(directory)
    described = []
    for name, param in params:
        shape = [int(extent) for extent in param.shape]
        whole = load_parameter(checkpoint, name)
        writer.add(name, whole)
        preprocs = []
        if list(whole.shape) != shape:
            axis = next(i for i, extent in enumerate(shape) if extent != whole.shape[i])
            function = "_shard_" + name.split(".")[-2]
            cutter = _cutter(_parts(local, name, shape[axis]), axis, workers, shape)
            module[function] = cutter.with_attr("global_symbol", function)
            preprocs = [
                {
                    "func_name": function,
                    "in_shape": list(whole.shape),
                    "out_shape": [workers, *shape],
                    "out_dtype": "float32",
                }
            ]
        described.append({"name": name, "shape": shape, "dtype": "float32", "preprocs": preprocs})
    writer.finish({})
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        call = relax.call_pure_packed(METADATA, ty_args=relax.AnyType())
        builder.emit_func_output(builder.emit(call))
    relax.build(builder.get(), target).export_library(str(directory / "model-cpu.so"))
    chat = {"model_config": {"vocab_size": config.vocab_size}, "tensor_parallel_shards": workers}
    (directory / "mlc-chat-config.json").write_text(json.dumps(chat))
    metadata = {
        "model_type": "llama",
        "prefill_chunk_size": 64,
        "context_window_size": 512,
        "sliding_window_size": -1,
        "tensor_parallel_shards": workers,
        "pipeline_parallel_stages": 1,
        "kv_state_kind": "kv_cache",
        "max_batch_size": 8,
        "params": described,
    }
    metadata_says(metadata)
    return metadata


def _parts(local, name, extent):
    """The lengths of what lies behind each other in a worker's share."""
    if "qkv_proj" in name:
        keys = local.num_key_value_heads * local.head_dim
        return [extent - 2 * keys, keys, keys]
    return [extent // 2] * 2 if "gate_up_proj" in name else [extent]


def _cutter(parts, axis, workers, shape):
    """A function from a whole parameter to ``(workers, *shape)``."""
    from tvm import te, tirx

    whole = [extent * workers if i == axis else extent for i, extent in enumerate(shape)]
    array = te.placeholder(whole, "float32", name="w")

    def at(worker, *index):
        place, begin = index[axis], 0
        found = tirx.const(0, "int32")
        for part in parts:
            here = begin * workers + worker * part + (place - begin)
            found = te.if_then_else(place >= begin, here, found)
            begin += part
        return array[(*index[:axis], found, *index[axis + 1 :])]

    shares = te.compute([workers, *shape], at, name="shares")
    return te.create_prim_func([array, shares])
