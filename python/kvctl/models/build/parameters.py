"""The parameters of a compiled model, from the checkpoint to its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..checkpoints.config import DecoderConfig
from ..checkpoints.weights import Checkpoint, parameter_chunks
from ..graph.layers import ParamSpec
from ..graph.logit_mask import LOGIT_MASK, logit_mask_values
from .kept_blocks import keeps, kept_chunks
from .params import ParamWriter
from .saved import converted_parameter, is_halved, saved_size

Progress = Callable[[str, float], None]
"""Called with what is being done ("compile" or "weights") and the fraction of it that is done."""


def write_params(
    checkpoint: Checkpoint,
    params: list[ParamSpec],
    directory: Path,
    *,
    unused: Sequence[int],
    report: Progress,
) -> None:
    """Write the parameters; the logit mask is of `unused` ids."""
    writer = ParamWriter(directory)
    # The tied pair first: the output layer is the embedding table under a second name.
    names = {param.name: param for param in params}
    aliases = [one.name for one in params if is_embedding(one, checkpoint.config)]
    total = sum(saved_size(one) for one in params if one.name not in aliases)
    done = 0
    for name in ["model.embed_tokens.weight", *names]:
        param = names.pop(name, None)
        if param is None or name in aliases:
            continue
        if name == LOGIT_MASK:
            writer.add(name, logit_mask_values(checkpoint.config.vocab_size, unused))
            continue

        def chunks(param: ParamSpec = param) -> Iterator[npt.NDArray[Any]]:
            nonlocal done
            for converted in _saved_chunks(checkpoint, param):
                yield converted
                done += converted.size
                report("weights", done / total)

        writer.add_chunks(name, param.shape, param.dtype, chunks(), bfloat16=is_halved(param))
        if name == "model.embed_tokens.weight":
            for alias in aliases:
                writer.alias(alias, name)
    writer.finish({})


def _saved_chunks(checkpoint: Checkpoint, param: ParamSpec) -> Iterator[npt.NDArray[Any]]:
    """Yield a parameter as it is saved, in pieces."""
    if keeps(param):
        yield from kept_chunks(checkpoint, param)
        return
    for chunk in parameter_chunks(checkpoint, param.name):
        yield converted_parameter(chunk, param, checkpoint.source)


def is_embedding(param: ParamSpec, config: DecoderConfig) -> bool:
    """Return whether a parameter is the embedding table's bytes under a second name."""
    return config.tie_word_embeddings and param.name == "lm_head.weight" and param.dtype != "uint8"
