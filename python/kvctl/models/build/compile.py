"""From a model's files to a directory that kvctl's runner loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.generation_config import unused_settings
from ..checkpoints.tokens.vocabulary import Vocabulary, read_vocabulary
from ..checkpoints.weights import (
    Checkpoint,
    check_parameter,
    open_checkpoint,
)
from ..graph.export import check_layers, export
from ..graph.layers import BLOCK_BYTES, BLOCK_INPUTS
from ..graph.logit_mask import LOGIT_MASK
from ..graph.tensor_parallel import TensorParallel, check_sums
from .asked import QUANTIZATION, asked_for, default_dtype, default_sums
from .chat_config import checked_chat, make_chat_config
from .kept_blocks import kept_blocks
from .library import building, check_compiler, make_target
from .metadata import cache_shape, make_metadata
from .output import check_output
from .parameters import Progress, is_embedding, write_params
from .params import largest_shard
from .saved import saved_bytes
from .staging import check_space, staged

Note = Callable[[str], None]
"""Called with a sentence about the model that its user should know."""

_PREFILL_CHUNK = 512


def compile_model(
    source: str | Path | Checkpoint,
    output_dir: str | Path,
    *,
    target: str = "cpu",
    dtype: str | None = None,
    cache: str | None = None,
    context_window_size: int | None = None,
    hidden_layers: Sequence[int] | None = None,
    exit_layers: Sequence[int] = (),
    tensor_parallel: int = 1,
    tensor_parallel_sums: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    note: Note | None = None,
    size: Callable[[int], None] | None = None,
) -> Path:
    """Compile a model and write its directory: library, parameters, configuration, tokenizer.

    The directory appears complete or not at all. Only a compiled model is ever replaced, and never
    one that contains the source or lies in it. Every tensor of the checkpoint is one that
    the model takes, of a type that kvctl reads; else nothing is compiled. Rows of the output layer
    for which the tokenizer has no token are masked: their logits are minus infinity.

    Parameters
    ----------
    source : str, Path or Checkpoint
        A GGUF file, or any part of a split one; a directory with ``config.json`` and safetensors
        files, or one such file, which is then read alone; or an open checkpoint.
    output_dir : str or Path
        The directory to write.
    target : str
        "cpu", "cuda", or "cuda:sm_90" for another architecture than sm_80; nvcc is needed, a GPU
        is not.
    dtype : str, optional
        For the CPU the type of the linear layers' weights, "float32" (default), "bfloat16",
        "int8" or "int4"; for CUDA the type of everything, "float16" (default) or "float32".
        Weights of 8 and 4 bits have a scale for every 32 inputs, and keep the bits that a GGUF
        file has: all of its types from 4 to 8 bits in int8, those of 4 bits in int4. Others are
        rounded once; the output layer of int4 then has 8 bits.
    cache : str, optional
        "kvctl" (default for the CPU) for a library that creates kvctl's cache, "tvm" (default for
        CUDA) for one that creates TVM's, in whose place ``kvctl.install()`` puts kvctl's.
    context_window_size : int, optional
        A shorter context than the model's.
    hidden_layers : sequence of int, optional
        Layers whose outputs ``runner.verify(hidden=...)`` can return, counted from 0, ascending.
        With an empty one it returns what the output layer reads.
    exit_layers : sequence of int
        Numbers of layers after which ``runner.verify(layers=range(n))`` can stop.
    tensor_parallel : int
        Workers that the model is split over: ``kvctl.distributed.ModelRunner`` runs it. The
        parameters are saved whole, and each worker reads its share.
    tensor_parallel_sums : str, optional
        How the projections out of attention and of the feed-forward add up over workers:
        "whole" (default for the CPU, and for it alone), two allgathers each, and logits are bit for
        bit those of one worker; "partial" (default for CUDA), one allreduce each of what every
        worker has of the sums.
    force : bool
        Replace a compiled model that is in `output_dir` already.
    progress : callable, optional
        Called with a stage and the fraction of it that is done: "compile", and beside it "weights".
    note : callable, optional
        Called with a sentence about what the user should know, such as masked rows.
    size : callable, optional
        Called with the bytes of all parameters, before the first is written.

    Returns
    -------
    Path
        `output_dir`.

    Raises
    ------
    FileNotFoundError
        If there is no model at `source`, a file of it is missing, or no nvcc for CUDA or no C++
        compiler is there.
    FileExistsError
        If `output_dir` holds a compiled model and `force` is not set, or anything else.
    ValueError
        If `output_dir` is or contains the source, the model is damaged or not one that kvctl can
        build, its weights are not all finite, or an option has no such value.
    OSError
        If there is no room for the files.
    """
    report = progress or (lambda stage, fraction: None)
    tell = note or (lambda sentence: None)
    output = Path(output_dir).absolute()
    if isinstance(source, str | Path) and not Path(source).exists():
        raise FileNotFoundError(f"there is no model at {source}")
    path = Path(source) if isinstance(source, str | Path) else source.source
    check_output(output, source=path, force=force)
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
    check_layers(config, hidden_layers or (), exit_layers)
    tvm_target = make_target(target)
    on_cpu = target == "cpu"
    dtype = dtype or default_dtype(target)
    parallel, sums = None, tensor_parallel_sums or default_sums(target)
    check_sums(sums)
    if tensor_parallel != 1:
        group = BLOCK_INPUTS if dtype in BLOCK_BYTES else 1
        parallel = TensorParallel(
            config.with_context(context), tensor_parallel, group=group, sums=sums
        )
        for sentence in parallel.notes():
            tell(sentence)
    cache = cache or ("kvctl" if on_cpu or config.attention_soft_cap is not None else "tvm")
    tokenizer = checkpoint.tokenizer_json()
    vocabulary = _vocabulary(checkpoint, tokenizer, tell)
    chat = checked_chat(checkpoint, tokenizer)
    if settings := unused_settings(checkpoint.source):
        tell(
            f"generation_config.json sets {', '.join(settings)}, which a compiled model does not "
            "do by itself: say so when you generate (kvctl.Sampling), where there is a way"
        )

    report("compile", 0.0)
    module, params = export(
        config.with_context(context),
        dtype=dtype,
        cache=cache,
        target=tvm_target,
        unused=vocabulary.unused,
        hidden_layers=hidden_layers,
        exit_layers=exit_layers,
        parallel=parallel,
        blocks=kept_blocks(checkpoint, dtype) if on_cpu else None,
    )
    for param in params:
        if param.name != LOGIT_MASK:
            check_parameter(checkpoint, param.name)
    split = {} if parallel is None else {"tensor_parallel": parallel.to_json(params)}
    run = config if parallel is None else parallel.local
    metadata = make_metadata(
        params,
        model_type=config.model_type,
        quantization=QUANTIZATION[dtype],
        context_window_size=context,
        prefill_chunk_size=min(context, _PREFILL_CHUNK),
        vocab_size=config.vocab_size,
        kv_cache=cache_shape(run, config.num_hidden_layers),
        shards=tensor_parallel,
        kvctl={**_layers_metadata(hidden_layers, exit_layers), **split},
    )
    check_compiler()
    sizes = [saved_bytes(param) for param in params if not is_embedding(param, config)]
    check_space(output, sum(sizes), largest_shard(sizes))
    report("compile", 0.3)
    if size is not None:
        size(sum(sizes))
    with (
        tempfile.TemporaryDirectory(prefix="kvctl-") as scratch,
        staged(output) as staging,
        building(module, metadata, tvm_target, Path(scratch) / "lib.so") as library,
    ):
        compiled = False

        def report_weights(stage: str, fraction: float) -> None:
            nonlocal compiled
            if library.done() and not compiled:
                library.result()  # where that raises, nothing more is written
                report("compile", 1.0)
                compiled = True
            report(stage, fraction)

        write_params(checkpoint, params, staging, unused=vocabulary.unused, report=report_weights)
        library.result()
        if not compiled:
            report("compile", 1.0)
        shutil.copy(Path(scratch) / "lib.so", staging / "lib.so")
        if tokenizer is not None:
            (staging / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        asked = asked_for(
            path,
            target=target,
            dtype=dtype,
            cache=cache,
            context_window_size=context_window_size,
            hidden_layers=hidden_layers,
            exit_layers=exit_layers,
            tensor_parallel=tensor_parallel,
            tensor_parallel_sums=sums,
        )
        chat_config = make_chat_config(checkpoint, chat, metadata, staging / "lib.so", asked)
        (staging / "mlc-chat-config.json").write_text(json.dumps(chat_config, indent=1))
    report("weights", 1.0)
    return output


def _layers_metadata(
    hidden_layers: Sequence[int] | None, exit_layers: Sequence[int]
) -> dict[str, Any]:
    """Return what the library says of its hidden states and early exits."""
    hidden = {} if hidden_layers is None else {"hidden_layers": list(hidden_layers)}
    return {**hidden, **({"exit_layers": list(exit_layers)} if exit_layers else {})}


def _vocabulary(checkpoint: Checkpoint, tokenizer: str | None, note: Note) -> Vocabulary:
    """Return which ids of a model are tokens, and say so where that is not all of them."""
    if tokenizer is None:
        note("the model comes without a tokenizer: text can neither go in nor come out")
        return Vocabulary((), 0)
    size = checkpoint.config.vocab_size
    where = "" if checkpoint.source is None else f" of {checkpoint.source}"
    vocabulary = read_vocabulary(tokenizer, size, f"the tokenizer{where}")
    if vocabulary.unused:
        note(
            f"{len(vocabulary.unused)} of the model's {size} ids are no tokens of its tokenizer: "
            "they are masked, and never sampled"
        )
    if vocabulary.beyond:
        note(
            f"{vocabulary.beyond} added tokens of the tokenizer are none of the model's {size} "
            "ids: text that contains one is refused"
        )
    return vocabulary
