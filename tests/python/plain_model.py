"""A model directory as another compiler makes it: TVM's own layers, metadata without kvctl."""

from __future__ import annotations

import json

from tiny_model import tiny_config


def compile_plain_model(directory, *, seed=0):
    """The tiny model with the weights of compile_tiny_model, laid out as MLC-LLM does it."""
    import tvm
    from tvm import relax

    from kvctl.models import RandomCheckpoint
    from kvctl.models.layers import PlainLayers
    from kvctl.models.llama import LlamaForCausalLM
    from kvctl.models.params import ParamWriter
    from kvctl.models.weights import load_parameter

    config = tiny_config()
    target = tvm.target.Target("llvm")
    model = LlamaForCausalLM(config, PlainLayers("float32"), cache="kvctl", target=target)
    module, params = model.export_tvm(model.spec())
    checkpoint = RandomCheckpoint(config, seed=seed)
    directory.mkdir(parents=True)
    writer = ParamWriter(directory)
    for name, _ in params:
        writer.add(name, load_parameter(checkpoint, name))
    writer.finish({})
    metadata = {
        "model_type": "llama",
        "prefill_chunk_size": 64,
        "context_window_size": 512,
        "sliding_window_size": -1,
        "tensor_parallel_shards": 1,
        "kv_state_kind": "kv_cache",
        "max_batch_size": 8,
        "params": [
            {"name": name, "shape": list(map(int, param.shape)), "dtype": param.dtype}
            for name, param in params
        ],
    }
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    relax.build(builder.get(), target).export_library(str(directory / "tiny-plain-cpu.so"))
    config_text = json.dumps({"model_config": {"vocab_size": config.vocab_size}})
    (directory / "mlc-chat-config.json").write_text(config_text)
    return directory
