"""From a model's files to a directory that kvctl's runner loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..architectures.layers import ParamSpec
from ..architectures.llama import export
from ..checkpoints.weights import Checkpoint, check_parameter, load_parameter, open_checkpoint
from .library import build, make_target
from .metadata import cache_shape, make_metadata
from .output import check_output
from .params import ParamWriter

Progress = Callable[[str, float], None]
"""Called with what is being done ("compile" or "weights") and the fraction of it that is done."""

_PREFILL_CHUNK = 512
_QUANTIZATION = {"float32": "q0f32", "float16": "q0f16", "bfloat16": "q0bf16"}


def compile_model(
    source: str | Path | Checkpoint,
    output_dir: str | Path,
    *,
    target: str = "cpu",
    dtype: str | None = None,
    cache: str | None = None,
    context_window_size: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compile a model and write its directory: library, parameters, configuration, tokenizer.

    The directory appears whole or not at all. Nothing but a compiled model is ever replaced, and
    never one that holds, or lies in, what is compiled.

    Parameters
    ----------
    source : str, Path or Checkpoint
        A GGUF file, a directory with ``config.json`` and safetensors files, or an open checkpoint.
    output_dir : str or Path
        The directory to write.
    target : str
        "cpu", "cuda", or "cuda:sm_90" for another architecture than sm_80; nvcc is needed, a GPU
        is not.
    dtype : str, optional
        For the CPU the type of the linear layers' weights, "float32" (default) or "bfloat16"; for
        CUDA the type of everything, "float16" (default) or "float32".
    cache : str, optional
        "kvctl" (default for the CPU) for a library that creates kvctl's cache, "tvm" (default for
        CUDA) for one that creates TVM's, in whose place ``kvctl.install()`` puts kvctl's.
    context_window_size : int, optional
        A shorter context than the model's.
    force : bool
        Replace a compiled model that is in `output_dir` already.
    progress : callable, optional
        Called with a stage ("compile", then "weights") and the fraction of it that is done.

    Returns
    -------
    Path
        `output_dir`.

    Raises
    ------
    FileNotFoundError
        If there is no model at `source`, or no nvcc for CUDA.
    FileExistsError
        If `output_dir` holds a compiled model and `force` is not set, or anything else.
    ValueError
        If `output_dir` is or contains the source, the model is damaged or not one that kvctl can
        build, or an option has no such value.
    """
    report = progress or (lambda stage, fraction: None)
    checkpoint = open_checkpoint(source) if isinstance(source, str | Path) else source
    config = checkpoint.config
    if (
        context_window_size is not None
        and not 1 <= context_window_size <= config.context_window_size
    ):
        raise ValueError(
            f"context_window_size must be from 1 to the model's {config.context_window_size}, "
            f"not {context_window_size}"
        )
    context = context_window_size or config.context_window_size
    output = Path(output_dir).absolute()
    check_output(output, source=checkpoint.source, force=force)
    tvm_target = make_target(target)
    on_cpu = target == "cpu"
    dtype = dtype or ("float32" if on_cpu else "float16")
    cache = cache or ("kvctl" if on_cpu else "tvm")

    report("compile", 0.0)
    module, params = export(config, dtype=dtype, cache=cache, target=tvm_target)
    for param in params:
        check_parameter(checkpoint, param.name)
    metadata = make_metadata(
        params,
        model_type="llama",
        quantization=_QUANTIZATION[dtype],
        context_window_size=context,
        prefill_chunk_size=min(context, _PREFILL_CHUNK),
        vocab_size=config.vocab_size,
        kv_cache=cache_shape(config, config.num_hidden_layers),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        staging = Path(scratch) / "new"
        staging.mkdir()
        report("compile", 0.3)
        build(module, metadata, tvm_target).export_library(str(staging / "lib.so"))
        report("compile", 1.0)
        _write_params(checkpoint, params, staging, dtype=dtype, report=report)
        tokenizer = checkpoint.tokenizer_json()
        if tokenizer is not None:
            (staging / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        chat = _chat_config(checkpoint, metadata)
        (staging / "mlc-chat-config.json").write_text(json.dumps(chat, indent=1))
        if output.exists():
            output.rename(Path(scratch) / "old")
        staging.rename(output)
    report("weights", 1.0)
    return output


def _write_params(
    checkpoint: Checkpoint,
    params: list[ParamSpec],
    directory: Path,
    *,
    dtype: str,
    report: Progress,
) -> None:
    writer = ParamWriter(directory)
    tied = checkpoint.config.tie_word_embeddings
    # The tied pair first: the output layer is the embedding table under a second name.
    names = {param.name: param for param in params}
    total = sum(_size(param) for param in params)
    done = 0
    for name in ["model.embed_tokens.weight", *names]:
        param = names.pop(name, None)
        if param is None or (tied and name == "lm_head.weight"):
            continue
        array = load_parameter(checkpoint, name).astype(param.dtype, copy=False)
        writer.add(name, array, bfloat16=dtype == "bfloat16" and param.packed is not None)
        if tied and name == "model.embed_tokens.weight":
            writer.alias("lm_head.weight", name)
        done += _size(param)
        report("weights", done / total)
    writer.finish({})


def _size(param: ParamSpec) -> int:
    size = 1
    for extent in param.shape:
        size *= extent
    return size


def _chat_config(checkpoint: Checkpoint, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return MLC's ``mlc-chat-config.json``."""
    fields = (
        "model_type",
        "quantization",
        "context_window_size",
        "sliding_window_size",
        "attention_sink_size",
        "prefill_chunk_size",
        "tensor_parallel_shards",
        "pipeline_parallel_stages",
    )
    return {
        "version": "0.1.0",
        **{field: metadata[field] for field in fields},
        "model_config": checkpoint.config.to_mlc(),
        "vocab_size": checkpoint.config.vocab_size,
        "temperature": 1.0,
        "top_p": 1.0,
        "tokenizer_files": ["tokenizer.json"],
        **checkpoint.chat(),
    }
