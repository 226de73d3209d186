"""A decoder over several workers: each has some heads, some of the feed-forward, some logits.

All workers run one graph, that of a narrower model: projections into heads and into the
feed-forward are split by outputs. Those out of them are split by inputs, and an allreduce adds the
workers' partial sums; or they are split by outputs as well, inputs and outputs are gathered, and
every sum is whole. Hidden states are whole, and equal, on every worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..checkpoints.config import DecoderConfig
from .layers import BLOCK_INPUTS, ParamSpec
from .logit_mask import LOGIT_MASK
from .split import Range, Split

SUMS = ("partial", "whole")
"""How the projections out of heads and out of the feed-forward add up over workers."""

_VOCAB_BLOCK = 4096
"""Logits whose exponentials are summed together: kVocabBlock in core/sampling/vocab_ops.h."""


class TensorParallel:
    """How a decoder is split over workers.

    Heads of keys and values are split where each worker can have one of its own, and otherwise
    replicated; query heads go with theirs. What does not divide is filled with zeros, which change
    no result.

    Parameters
    ----------
    config : DecoderConfig
        The whole model.
    workers : int
        How many there are.
    group : int
        Inputs of the feed-forward's last projection that stay together, as those of one scale.
    sums : str
        "partial": those projections are split by inputs, and an allreduce adds the workers' sums.
        "whole": they are split by outputs, and each sum is that of one worker, bit for bit.

    Raises
    ------
    ValueError
        If the model cannot be split over so many.
    """

    def __init__(
        self, config: DecoderConfig, workers: int, *, group: int = 1, sums: str = "partial"
    ) -> None:
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= queries:
            raise ValueError(
                f"tensor_parallel must be from 1 to the model's {queries} heads of queries, not "
                f"{workers!r}: every worker needs one"
            )
        check_sums(sums)
        if config.qk_norm == "all":
            raise ValueError(
                "tensor_parallel cannot split a model that normalises the queries of all heads "
                "together (qk_norm 'all', as OLMo 2 does): compile it for one worker"
            )
        self.config, self.workers, self.sums = config, workers, sums
        if sums == "whole":
            group = 1  # no projection is split by inputs
        per_group = queries // keys
        sharers = max(1, workers // keys)  # workers that have the same heads of keys
        self._keys = -(-keys // workers) if sharers == 1 else 1
        per_key = -(-per_group // sharers)
        self._queries = self._keys * per_key
        self._inside = -(-config.intermediate_size // (workers * group)) * group
        self.vocab = _logits(config.vocab_size, workers)
        """Logits of a worker."""
        key_ranges, query_ranges = [], []
        for worker in range(workers):
            first = worker // sharers * self._keys
            key_ranges.append(_range(first, self._keys, keys))
            begin = first * per_group + worker % sharers * per_key
            end = min(queries, (first + self._keys) * per_group)
            query_ranges.append(_range(begin, self._queries, end))
        self._key_ranges, self._query_ranges = key_ranges, query_ranges

    @property
    def local(self) -> DecoderConfig:
        """The model that a worker runs, but for its logits."""
        return replace(
            self.config,
            num_attention_heads=self._queries,
            num_key_value_heads=self._keys,
            intermediate_size=self._inside,
        )

    @property
    def vocab_ranges(self) -> list[Range]:
        """The ids whose logits each worker has."""
        return self._shared_out(self.vocab, self.config.vocab_size)

    @property
    def outputs(self) -> int:
        """Outputs of a worker, of projections whose sums are whole."""
        return -(-self.config.hidden_size // self.workers)

    def columns(self, kind: str) -> list[int]:
        """Return how many real columns each worker has, of rows that are gathered.

        Parameters
        ----------
        kind : str
            "o": inputs of the projection out of heads; "down": of that out of the feed-forward;
            "hidden": outputs of both.
        """
        ranges, unit = {
            "o": (self._query_ranges, self.config.head_dim),
            "down": (self._inside_ranges, 1),
            "hidden": (self._output_ranges, 1),
        }[kind]
        return [unit * (end - begin) for begin, end in ranges]

    @property
    def _inside_ranges(self) -> list[Range]:
        return self._shared_out(self._inside, self.config.intermediate_size)

    @property
    def _output_ranges(self) -> list[Range]:
        return self._shared_out(self.outputs, self.config.hidden_size)

    def _shared_out(self, share: int, size: int) -> list[Range]:
        return [_range(worker * share, share, size) for worker in range(self.workers)]

    def notes(self) -> list[str]:
        """Return sentences on what does not divide, and so costs more than its share."""
        config, found = self.config, []
        sharers = max(1, self.workers // config.num_key_value_heads)
        if sharers > 1:
            found.append(
                f"{config.num_key_value_heads} heads of keys and values are fewer than the "
                f"{self.workers} workers: up to {sharers} workers keep the same one in their caches"
            )
        filled = self._queries * self.workers - config.num_attention_heads
        if filled:
            found.append(
                f"{config.num_attention_heads} heads do not divide over {self.workers} workers: "
                f"each has room for {self._queries}, and {filled} of them are zeros"
            )
        return found

    def split(self, param: ParamSpec) -> Split | None:
        """Return how a parameter is split, or None where every worker has all of it.

        Parameters
        ----------
        param : ParamSpec
            The whole parameter, as it is saved.

        Raises
        ------
        ValueError
            If that would cut groups of weights with one scale.
        """
        dim, name = self.config.head_dim, param.name
        if name in ("lm_head.weight", LOGIT_MASK):
            fill = "minus_infinity" if name == LOGIT_MASK else "zero"
            return Split(0, (self.vocab,), tuple((one,) for one in self.vocab_ranges), fill)
        layer, _, kind = name.rpartition(".")
        stem = layer.rpartition(".")[2]
        inside = self._inside_ranges
        if stem == "qkv_proj":
            return self._split_qkv()
        if stem == "gate_up_proj":
            size, half = self._inside, self.config.intermediate_size
            both = tuple((one, (one[0] + half, one[1] + half)) for one in inside)
            return Split(0, (size, size), both)
        if stem == "up_proj":
            return Split(0, (self._inside,), tuple((one,) for one in inside))
        if kind == "weight" and stem in ("o_proj", "down_proj") and self.sums == "whole":
            return Split(0, (self.outputs,), tuple((one,) for one in self._output_ranges))
        if kind == "weight" and stem == "down_proj":
            return _by_columns(param, self._inside, inside)
        if kind == "weight" and stem == "o_proj":
            columns = [(dim * begin, dim * end) for begin, end in self._query_ranges]
            return _by_columns(param, dim * self._queries, columns)
        return None

    def _split_qkv(self) -> Split:
        config, dim = self.config, self.config.head_dim
        behind = config.num_attention_heads
        ranges = []
        for queries, keys in zip(self._query_ranges, self._key_ranges, strict=True):
            values = [
                (first + keys[0], first + keys[1])
                for first in (behind, behind + config.num_key_value_heads)
            ]
            ranges.append(tuple((dim * begin, dim * end) for begin, end in (queries, *values)))
        return Split(0, (dim * self._queries, *[dim * self._keys] * 2), tuple(ranges))

    def to_json(self, params: Sequence[ParamSpec]) -> dict[str, Any]:
        """Return what a library's metadata says of the split of its parameters."""
        splits: list[Split] = []
        by_param: dict[str, int] = {}
        for param in params:
            found = self.split(param)
            if found is None:
                continue
            if found not in splits:
                splits.append(found)
            by_param[param.name] = splits.index(found)
        return {
            "columns": self.vocab,
            "sums": self.sums,
            "splits": [split.to_json() for split in splits],
            "params": by_param,
        }


def check_sums(sums: str) -> None:
    """Check a name of `SUMS`.

    Raises
    ------
    ValueError
        If it is none.
    """
    if sums not in SUMS:
        raise ValueError(f"tensor_parallel_sums must be one of {', '.join(SUMS)}, not {sums!r}")


def whole_params(
    local: Sequence[ParamSpec], whole: Sequence[ParamSpec], parallel: TensorParallel
) -> list[ParamSpec]:
    """Return the parameters of a worker's graph, in its order, whole as they are saved.

    Raises
    ------
    ValueError
        If a worker's share would be stored otherwise than the whole.
    """
    by_name = {param.name: param for param in whole}
    mask = ParamSpec(LOGIT_MASK, (parallel.config.vocab_size,), "float32")
    found = []
    for param in local:
        full = mask if param.name == LOGIT_MASK else by_name[param.name]
        if (full.packed, full.dtype) != (param.packed, param.dtype):
            raise _cuts_groups(full.name)
        found.append(full)
    return found


def _logits(vocab_size: int, workers: int) -> int:
    """Return how many logits a worker has: whole blocks, where that costs little.

    Then rows are sampled without gathering them (cpp/runtime/verify/shard_rows.h).
    """
    even = -(-vocab_size // workers)
    blocks = -(-even // _VOCAB_BLOCK) * _VOCAB_BLOCK
    return blocks if workers > 1 and blocks <= even + even // 8 else even


def _range(begin: int, size: int, limit: int) -> Range:
    return min(begin, limit), min(begin + size, limit)


def _by_columns(param: ParamSpec, local: int, columns: Sequence[Range]) -> Split:
    """Split a matrix by its inputs; groups of them that share a scale stay whole."""
    split = Split(1, (local,), tuple((one,) for one in columns))
    if param.dtype != "uint8":
        return split
    if any(edge % BLOCK_INPUTS for edge in (local, *(edge for one in columns for edge in one))):
        raise _cuts_groups(param.name)
    return split.in_units(BLOCK_INPUTS)


def _cuts_groups(name: str) -> ValueError:
    return ValueError(
        f"weights of 8 and 4 bits have a scale for every {BLOCK_INPUTS} inputs, and the share that "
        f"a worker would have of {name} cuts such groups: compile the model with dtype bfloat16, "
        "or for another number of workers"
    )
