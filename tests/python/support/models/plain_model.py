"""A model directory as another compiler makes it: TVM's own layers, metadata without kvctl."""

from __future__ import annotations

import json

from tiny_model import tiny_config


def compile_plain_model(
    directory,
    *,
    seed=0,
    cache="kvctl",
    layer_windows=None,
    last_hidden=False,
    checkpoint=None,
    **metadata,
):
    """The tiny model with the weights of compile_tiny_model, laid out as MLC-LLM does it.

    `layer_windows` is the window and, for each layer, whether it slides (cache="tvm" only);
    `last_hidden` adds MLC-LLM's functions for hidden states; `checkpoint` is another model; other
    keywords are what the library says of itself.
    """
    import tvm
    from tvm import relax

    from kvctl.models import RandomCheckpoint
    from kvctl.models.build.params import ParamWriter
    from kvctl.models.checkpoints.weights import load_parameter
    from kvctl.models.graph.decoder import DecoderForCausalLM
    from kvctl.models.graph.export import module_spec
    from kvctl.models.graph.plain_layers import PlainLayers

    checkpoint = RandomCheckpoint(tiny_config(), seed=seed) if checkpoint is None else checkpoint
    config = checkpoint.config
    target = tvm.target.Target("llvm")
    kind = DecoderForCausalLM if layer_windows is None else _with_layer_windows(*layer_windows)
    kind = _with_last_hidden() if last_hidden else kind
    model = kind(config, PlainLayers("float32"), cache=cache, target=target)
    module, params = model.export_tvm(module_spec(model))
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
        **metadata,
    }
    builder = relax.BlockBuilder(module)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    relax.build(builder.get(), target).export_library(str(directory / "tiny-plain-cpu.so"))
    config_text = json.dumps({"model_config": {"vocab_size": config.vocab_size}})
    (directory / "mlc-chat-config.json").write_text(config_text)
    return directory


def _with_last_hidden():
    """A Llama with MLC-LLM's functions for hidden states."""
    from tvm.relax.frontend import nn

    from kvctl.models.graph import decoder

    class WithHidden(decoder.DecoderForCausalLM):
        def batch_verify_to_last_hidden_states(self, input_embeds, paged_kv_cache):
            return self.model(input_embeds, paged_kv_cache), paged_kv_cache

        def functions(self):
            functions = super().functions()
            rows = nn.spec.Tensor(["seq_len", self.config.hidden_size], "float32")
            return {
                **functions,
                "batch_verify_to_last_hidden_states": functions["batch_verify"],
                "get_logits": {"hidden_states": rows},
            }

    return WithHidden


def _with_layer_windows(window, slides):
    """A Llama some of whose layers attend to a window (TVM's MHASliding)."""
    from unittest import mock

    from kvctl.models.graph import decoder

    class WindowedDecoder(decoder.DecoderForCausalLM):
        def create_paged_cache(self, sizes):
            def create(**options):
                options["attn_kind"] = ["mha_sliding" if slide else "mha" for slide in slides]
                return decoder_cache(**options, layer_sliding_window_size=window)

            decoder_cache = decoder.TIRPagedKVCache
            with mock.patch.object(decoder, "TIRPagedKVCache", create):
                return super().create_paged_cache(sizes)

    return WindowedDecoder
