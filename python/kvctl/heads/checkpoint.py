"""A head's weights under kvctl's names, whatever layout they were published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .._ffi.untrusted import read_json_object
from ..models.checkpoints.array import Array
from ..models.checkpoints.safetensors_file import FLOAT_DTYPES, SafetensorsFile
from ..models.checkpoints.weight_names import check_consumed, check_present
from ..models.checkpoints.weights import Checkpoint
from .config import HeadConfig
from .layouts import Layout, read_layout

_PICKLED = (".pt", ".pth", ".bin", ".pkl")


class HeadCheckpoint:
    """A published head, checked against its target before a weight is read.

    Known are the layouts of SafeAILab's EAGLE and EAGLE-3, FasterDecoding's Medusa and vLLM's
    speculators, and modules for multi-token prediction among their model's weights, as safetensors
    files beside a ``config.json``. Every tensor is one that the head takes. Nothing is unpickled.

    Attributes
    ----------
    config : HeadConfig
        Its shape.
    source : Path
        Its directory.
    """

    def __init__(
        self,
        source: Path,
        config: HeadConfig,
        layout: Layout,
        files: dict[str, SafetensorsFile],
        target: Checkpoint,
    ) -> None:
        self.source, self.config = source, config
        self._layout, self._files, self._target = layout, files, target

    @classmethod
    def open(cls, source: Path, target: Checkpoint) -> HeadCheckpoint:
        """Open a directory.

        Raises
        ------
        FileNotFoundError
            If there is none, or no ``config.json`` or safetensors file in it.
        ValueError
            If it is damaged, pickled, of a kind that kvctl does not build, or of another target.
        """
        files = _open_files(source)
        where = source / "config.json"
        if not where.exists():
            raise FileNotFoundError(f"{source} has no config.json")
        fields = read_json_object(where)
        try:
            layout, config = read_layout(fields, files, target.config)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        wanted = [name for name in layout.tensors() if layout.is_own(name)]
        check_present(wanted, files, str(source))
        check_consumed({*wanted, *layout.ignored}, files, str(source))
        for name in wanted:
            if files[name].dtype(name) not in FLOAT_DTYPES:
                raise ValueError(
                    f"{files[name].path}: weight '{name}' is {files[name].dtype(name)}; kvctl "
                    f"reads {', '.join(FLOAT_DTYPES)}"
                )
        return cls(source, config, layout, files, target)

    def name(self, parameter: str) -> str:
        """Return what the files call a parameter of ours."""
        return " and ".join(self._layout.sources(parameter).names)

    def shape(self, parameter: str) -> tuple[int, ...]:
        """Return the shape that a parameter of ours would have.

        Raises
        ------
        ValueError
            If a tensor of which it is a half is not twice as wide.
        """
        source = self._layout.sources(parameter)
        shapes = [self._shape(name) for name in source.names]
        if len({shape[1:] for shape in shapes}) > 1:
            return shapes[0]
        first = sum(shape[0] for shape in shapes) if source.rows is None else len(source.rows)
        rest = shapes[0][1:]
        if source.columns is not None:
            begin, end = source.columns
            if len(rest) != 1 or rest[0] != 2 * (end - begin):
                raise ValueError(
                    f"{self.source}: weight '{source.names[0]}' is {shapes[0]}, and its rows must "
                    f"have {2 * (end - begin)} numbers, of a token and of a feature"
                )
            rest = (end - begin,)
        return (first, *rest)

    def tensor(self, parameter: str) -> Array:
        """Return a parameter of ours, float32."""
        source = self._layout.sources(parameter)
        parts = [self._tensor(name) for name in source.names]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if source.columns is not None:
            whole = whole[:, slice(*source.columns)]
        if source.rows is not None:
            whole = whole[list(source.rows)]
        return np.ascontiguousarray(whole)

    def _shape(self, name: str) -> tuple[int, ...]:
        own = self._layout.is_own(name)
        return self._files[name].shape(name) if own else self._target.shape(self._targets(name))

    def _tensor(self, name: str) -> Array:
        own = self._layout.is_own(name)
        return self._files[name].tensor(name) if own else self._target.tensor(self._targets(name))

    def _targets(self, name: str) -> str:
        """Return a weight's name in the target, without the mark that it is one."""
        name = name.removeprefix("target:")
        tied = name == "lm_head.weight" and self._target.config.tie_word_embeddings
        return "model.embed_tokens.weight" if tied else name


def _open_files(source: Path) -> dict[str, Any]:
    """Return the file of each tensor of a directory."""
    if not source.is_dir():
        raise FileNotFoundError(f"there is no directory of a head at {source}")
    paths = sorted(source.glob("*.safetensors"))
    pickled = sorted(path.name for path in source.iterdir() if path.suffix in _PICKLED)
    if not paths and pickled:
        raise ValueError(
            f"{source / pickled[0]} is pickled: reading it could run any program that is in it, so "
            "kvctl does not. Where you trust it, convert it in Python: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        )
    if not paths:
        raise FileNotFoundError(f"{source} has no .safetensors files")
    file_of: dict[str, SafetensorsFile] = {}
    for path in paths:
        file = SafetensorsFile(path)
        for name in file.names:
            if name in file_of:
                raise ValueError(f"{path} and {file_of[name].path.name} both hold '{name}'")
            file_of[name] = file
    return file_of
