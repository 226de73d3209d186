"""A model as Hugging Face lays it out: config.json, tokenizer.json and safetensors files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..._ffi.untrusted import read_json_object
from ...text.sources import fields_of_huggingface
from ..architectures.registry import ARCHITECTURES
from .array import Array
from .config import DecoderConfig
from .file_checkpoint import FileCheckpoint
from .safetensors_file import FLOAT_DTYPES, SafetensorsFile
from .source_weights import SourceWeights
from .tokens.added_tokens import read_tokenizer_json
from .weight_names import check_consumed, check_present

INDEX_SUFFIX = ".safetensors.index.json"
_INDEX = "model" + INDEX_SUFFIX
_WHOLE = "model.safetensors"

# Buffers that some versions of transformers saved: the model computes them from its configuration.
_COMPUTED = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class SafetensorsCheckpoint(FileCheckpoint):
    """See `kvctl.models.Checkpoint`. Nothing is unpickled; pickled ``.bin`` files are not read.

    Where there is a ``model.safetensors.index.json``, it alone says which file holds which tensor;
    else ``model.safetensors`` is read, else every safetensors file of the directory, among which
    no tensor may then be held twice.

    Parameters
    ----------
    path : Path
        The directory; or a safetensors file, or an index, beside which ``config.json`` lies.

    Raises
    ------
    FileNotFoundError
        If ``config.json`` or a safetensors file is missing.
    ValueError
        If a file is damaged, or the model is not one that kvctl can build: every tensor is one
        that it takes, of a type that kvctl reads.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no model at {path}")
        self._source = path
        self._directory = path if path.is_dir() else path.parent
        where = str(self._directory / "config.json")
        self.config = DecoderConfig.from_huggingface(self._json("config.json"), where=where)
        layout = ARCHITECTURES[self.config.model_type].huggingface
        computed = "|".join(filter(None, (_COMPUTED, layout.computed, layout.beside)))
        self._is_computed = re.compile(computed).fullmatch
        self._file_of = self._find_tensors()
        prefixed = any(name.startswith(layout.prefix) for name in self._file_of)
        self._weights = SourceWeights(
            self.config,
            layout,
            _Files(path, self._file_of),
            where=str(path),
            prefix=layout.prefix if prefixed else "",
            head=layout.other_head if f"{layout.other_head}.weight" in self._file_of else None,
        )
        wanted = self._weights.tensor_names()
        shard = not path.is_dir() and (self._directory / _INDEX).exists()
        hint = f"to read all that {_INDEX} names, give the directory" if shard else ""
        check_present(wanted, self._file_of, str(path), hint)
        for name in wanted:
            file = self._file_of[name]
            if file.dtype(name) not in FLOAT_DTYPES:
                raise ValueError(
                    f"{file.path}: weight '{name}' is {file.dtype(name)}; kvctl reads "
                    f"{', '.join(FLOAT_DTYPES)}, and no quantised safetensors"
                )
        head = self._weights.name(_HEAD)
        tied = [head] if self.config.tie_word_embeddings else []
        left = [name for name in self._file_of if not self._is_computed(name)]
        check_consumed({*wanted, *tied}, left, str(path))
        if tied and head in self._file_of:
            self._check_tied()

    def tokenizer_json(self) -> str | None:
        """See `Checkpoint`."""
        return read_tokenizer_json(self._directory)

    def chat(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return fields_of_huggingface(self._directory)

    def _find_tensors(self) -> dict[str, SafetensorsFile]:
        """Return the file of each tensor."""
        if self._source.name.endswith(INDEX_SUFFIX):
            return self._indexed(self._source)
        if not self._source.is_dir():
            return self._all_of([self._source])
        if (self._directory / _INDEX).exists():
            return self._indexed(self._directory / _INDEX)
        if (self._directory / _WHOLE).exists():
            return self._all_of([self._directory / _WHOLE])
        files = sorted(self._directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{self._directory} has no .safetensors files")
        return self._all_of(files)

    def _all_of(self, paths: list[Path]) -> dict[str, SafetensorsFile]:
        file_of: dict[str, SafetensorsFile] = {}
        for path in paths:
            file = SafetensorsFile(path)
            for name in file.names:
                if name in file_of:
                    raise ValueError(
                        f"{path} and {file_of[name].path.name} both hold '{name}', and no "
                        f"{_INDEX} says which counts: name one of the files"
                    )
                file_of[name] = file
        return file_of

    def _indexed(self, index: Path) -> dict[str, SafetensorsFile]:
        where = read_json_object(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise ValueError(f"{index} is damaged: its weight_map names no tensors")
        for tensor, name in where.items():
            if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(
                    f"{index} is damaged: it gives '{tensor}' to {name!r:.60}, which is not the "
                    "name of a file beside it"
                )
        files = {}
        for name in sorted(set(where.values())):
            if not (self._directory / name).exists():
                raise FileNotFoundError(
                    f"{self._directory / name} is missing; {index.name} names it"
                )
            files[name] = SafetensorsFile(self._directory / name)
        file_of = {}
        for tensor, name in where.items():
            if tensor not in files[name]:
                raise ValueError(
                    f"{files[name].path} lacks the tensor '{tensor}', which {index.name} gives it"
                )
            file_of[tensor] = files[name]
        # A copy of what the index gives to another file is not read; what it forgets is no copy.
        for file in files.values():
            for tensor in file.names:
                if tensor not in where and not self._is_computed(tensor):
                    raise ValueError(
                        f"{file.path} holds '{tensor}', of which {index.name} says nothing"
                    )
        return file_of

    def _check_tied(self) -> None:
        """Check that an output layer that is saved beside the table it is tied to equals it."""
        head, table = self._weights.name(_HEAD), self._weights.name(_TABLE)
        same = self.shape(_HEAD) == self.shape(_TABLE) and np.array_equal(
            self.tensor(_HEAD), self.tensor(_TABLE)
        )
        if not same:
            raise ValueError(
                f"{self._file_of[head].path}: '{head}' is not '{table}', to which "
                "tie_word_embeddings of config.json ties it"
            )

    def _json(self, name: str) -> dict[str, Any]:
        path = self._directory / name
        if not path.exists():
            raise FileNotFoundError(f"{self._directory} has no {name}")
        return read_json_object(path)


class _Files:
    """The tensors of all files."""

    def __init__(self, source: Path, file_of: dict[str, SafetensorsFile]) -> None:
        self._source, self._file_of = source, file_of

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file(name).shape(name)

    def tensor(self, name: str) -> Array:
        return self._file(name).tensor(name)

    def rows(self, name: str, begin: int, end: int) -> Array:
        return self._file(name).rows(name, begin, end)

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._file_of:
            raise ValueError(f"{self._source} has no weight '{name}': is a file missing?")
        return self._file_of[name]
