"""Collected answers as batches of one length, and the tokens that a head should know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..._ffi.untrusted import read_json_object, reading
from ...models.checkpoints.safetensors_file import SafetensorsFile
from .collect import MANIFEST

_HELD_OUT = 20  # one text of so many, or of fewer where there are not as many, is held out


@dataclass(frozen=True)
class Batch:
    """Texts of one batch, padded at the end.

    Attributes
    ----------
    tokens
        (B, T) int64.
    hidden
        (B, T, layers, width) float32, in the order of the collection's layers.
    answers
        (B, T) bool, whether a token is the target's own.
    """

    tokens: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.float32]
    answers: npt.NDArray[np.bool_]


class Collection:
    """The texts of a directory that `collect` wrote; hidden states are read when they are needed.

    Parameters
    ----------
    folder
        The directory.
    longest
        Texts are cut to so many tokens.

    Raises
    ------
    FileNotFoundError
        If there is no collection, or none of its shards.
    ValueError
        If it has fewer than two answers to learn from, or a file is damaged.
    """

    def __init__(self, folder: str | Path, *, longest: int = 320) -> None:
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no {MANIFEST}: 'kvctl heads collect' makes one")
        manifest = read_json_object(path)
        with reading(str(path)):
            self.layers: list[int] = list(manifest["layers"])
            self.vocab_size = int(manifest["vocab_size"])
        self._files = [SafetensorsFile(path) for path in sorted(folder.glob("*.safetensors"))]
        if not self._files:
            raise FileNotFoundError(f"{folder} has no shards yet")
        self._where: list[tuple[int, int, int]] = []  # shard, first token, tokens
        self._tokens: list[npt.NDArray[np.int64]] = []
        self._starts: list[int] = []
        for shard, file in enumerate(self._files):
            tokens, first = file.integers("tokens"), 0
            lengths = file.integers("lengths").tolist()
            for length, start in zip(lengths, file.integers("prompt_lengths"), strict=True):
                size = min(length, longest)
                if start + 2 < size:
                    self._where.append((shard, first, size))
                    self._tokens.append(tokens[first : first + size])
                    self._starts.append(int(start))
                first += length
        every = min(_HELD_OUT, len(self._where))
        if every < 2:
            raise ValueError(f"{folder} has {every} answers of more than two tokens: collect more")
        texts = range(len(self._where))
        self.held_out = [index for index in texts if index % every == every - 1]
        self.training = [index for index in texts if index % every != every - 1]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(size for _, _, size in self._where)

    def frequent_tokens(self, count: int) -> npt.NDArray[np.int32]:
        """Return the most frequent tokens of the answers, ascending; ids fill up what is left."""
        seen = np.zeros(self.vocab_size, np.int64)
        for index in self.training:
            np.add.at(seen, self._tokens[index][self._starts[index] :], 1)
        best = np.lexsort((np.arange(self.vocab_size), -seen))[: min(count, self.vocab_size)]
        return np.sort(best).astype(np.int32)

    def batch(self, indices: list[int]) -> Batch:
        """Read some texts."""
        longest = max(len(self._tokens[index]) for index in indices)
        width = self._files[0].shape("hidden")[1:]
        tokens = np.zeros((len(indices), longest), np.int64)
        hidden = np.zeros((len(indices), longest, *width), np.float32)
        answers = np.zeros((len(indices), longest), bool)
        for row, index in enumerate(indices):
            shard, first, size = self._where[index]
            tokens[row, :size] = self._tokens[index]
            hidden[row, :size] = self._files[shard].rows("hidden", first, first + size)
            answers[row, self._starts[index] : size] = True
        return Batch(tokens, hidden, answers)

    def batches(self, indices: list[int], *, most: int, seed: int) -> Iterator[list[int]]:
        """Yield texts of about one length, at most so many tokens together with the padding.

        The order of texts and batches is the seed's.
        """
        rng = np.random.default_rng(seed)
        noisy = [len(self._tokens[i]) + rng.uniform(0, 32) for i in indices]
        groups: list[list[int]] = [[]]
        for at in np.argsort(noisy, kind="stable"):
            index = indices[at]
            widest = max([len(self._tokens[i]) for i in groups[-1]] + [len(self._tokens[index])])
            if groups[-1] and widest * (len(groups[-1]) + 1) > most:
                groups.append([])
            groups[-1].append(index)
        for at in rng.permutation(len(groups)):
            if groups[at]:
                yield groups[at]
