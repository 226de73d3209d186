"""Where a model's weights come from, as float32 and under kvctl's names, which are a Llama's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .array import Array
from .config import DecoderConfig
from .weight_names import weight_shape


class Checkpoint(Protocol):
    """A model on disk, or one made up."""

    config: DecoderConfig

    @property
    def source(self) -> Path | None:
        """Return the file or directory that is read, or None where nothing is."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight by kvctl's name, without reading it.

        Raises
        ------
        ValueError
            If there is no such weight.
        """
        ...

    def tensor(self, name: str) -> Array:
        """Return a weight by kvctl's name, float32.

        Raises
        ------
        ValueError
            If there is no such weight.
        """
        ...

    def tokenizer_json(self) -> str | None:
        """Return the contents of a ``tokenizer.json``, or None where the model has no tokenizer."""
        ...

    def chat(self) -> dict[str, Any]:
        """Return what is known of conversing with it: token ids of begin and end, template."""
        ...


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a model's files.

    Parameters
    ----------
    source : str or Path
        A GGUF file, or any part of one that is split; a directory with ``config.json`` and
        safetensors files, whose ``model.safetensors.index.json``, if there is one, says which file
        holds which tensor; one safetensors file, which then holds everything, or an index.

    Raises
    ------
    FileNotFoundError
        If there is nothing there, or a file is missing that a model needs.
    ValueError
        If the files are damaged or not a model that kvctl can build: every tensor is one that the
        model takes, of a type that kvctl reads.
    """
    from .gguf.checkpoint import GGUFCheckpoint
    from .safetensors_checkpoint import INDEX_SUFFIX, SafetensorsCheckpoint

    path = Path(source)
    if path.is_dir() or path.name.endswith((".safetensors", INDEX_SUFFIX)):
        return SafetensorsCheckpoint(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}")
    return GGUFCheckpoint(path)


class RandomCheckpoint:
    """Random weights of a given shape, the same for the same seed; no tokenizer.

    Parameters
    ----------
    config : DecoderConfig
        The model's shape.
    seed : int
        Seeds NumPy's generator.
    """

    def __init__(self, config: DecoderConfig, *, seed: int = 0) -> None:
        self.config = config
        self._seed = seed

    @property
    def source(self) -> None:
        """See `Checkpoint`."""
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return weight_shape(self.config, name)

    def tensor(self, name: str) -> Array:
        """See `Checkpoint`."""
        shape = weight_shape(self.config, name)
        rng = np.random.default_rng([self._seed, *name.encode()])
        if name.endswith(".bias"):
            return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.3)
        if len(shape) == 1:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        scale = 0.5 if "embed" in name else shape[1] ** -0.5
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    def tokenizer_json(self) -> str | None:
        """See `Checkpoint`."""
        return None

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return {}


_CHUNK_BYTES = 4 << 20
"""Of a parameter that is read in pieces: it stays in the processor's caches on its way."""
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def check_parameter(checkpoint: Checkpoint, name: str) -> None:
    """Make sure, without reading it, that a parameter of ours can be loaded.

    Raises
    ------
    ValueError
        If the checkpoint lacks a weight or has it in another shape.
    """
    for part in _parts(checkpoint, name):
        found, wanted = checkpoint.shape(part), weight_shape(checkpoint.config, part)
        if found != wanted:
            where = "" if checkpoint.source is None else f"{checkpoint.source}: "
            raise ValueError(
                f"{where}weight '{part}' is {found}, where the model's shape asks for {wanted}"
            )


def load_parameter(checkpoint: Checkpoint, name: str) -> Array:
    """Return a parameter of ours: a weight of the checkpoint, or several that ours fuses into one.

    Raises
    ------
    ValueError
        As `check_parameter` does.
    """
    check_parameter(checkpoint, name)
    arrays = [checkpoint.tensor(part) for part in _parts(checkpoint, name)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def parameter_chunks(checkpoint: Checkpoint, name: str) -> Iterator[Array]:
    """Yield a parameter of ours in pieces along its first axis, so that little memory is needed.

    Checkpoints that cannot read rows give each of its weights as one piece.

    Raises
    ------
    ValueError
        As `check_parameter` does.
    """
    check_parameter(checkpoint, name)
    read = getattr(checkpoint, "rows", None)
    for part in _parts(checkpoint, name):
        shape = checkpoint.shape(part)
        if read is None or len(shape) == 1:
            yield checkpoint.tensor(part)
            continue
        step = max(1, _CHUNK_BYTES // (4 * math.prod(shape[1:])))
        for begin in range(0, shape[0], step):
            yield read(part, begin, min(begin + step, shape[0]))


def parameter_kinds(checkpoint: Checkpoint, name: str) -> list[str | None]:
    """Return GGUF's types of the weights that are a parameter of ours; None for others."""
    kind = getattr(checkpoint, "kind", None)
    return [None if kind is None else kind(part) for part in _parts(checkpoint, name)]


def parameter_blocks(checkpoint: Any, name: str, wanted: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the blocks of a parameter's weights, of a type that `block_type` chose.

    Raises
    ------
    ValueError
        As `check_parameter` does, or if a scale is not finite.
    """
    check_parameter(checkpoint, name)
    for part in _parts(checkpoint, name):
        yield checkpoint.blocks(part, wanted)


def _parts(checkpoint: Checkpoint, name: str) -> list[str]:
    if name == "lm_head.weight" and checkpoint.config.tie_word_embeddings:
        return ["model.embed_tokens.weight"]
    for fused, sources in _FUSED.items():
        if f".{fused}." in name:
            return [name.replace(fused, source) for source in sources]
    return [name]
