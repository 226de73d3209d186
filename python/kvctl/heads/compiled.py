"""A compiled head, as `kvctl.draft` uses it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tvm_ffi

from .._ffi.untrusted import reading
from ..draft import DraftVocabulary
from ..draft.arrays import to_host
from ..engine.compiled.runner import ModelRunner
from .config import KINDS, check_read_layers

if TYPE_CHECKING:
    from ..cache import PagedKVCache
    from ..draft import HeadDrafter, MedusaDrafter
    from ..engine.protocol import Runner
    from ..mask import Mask


class CompiledHead:
    """What compiled heads have in common.

    Parameters
    ----------
    runner
        The head's directory, loaded.
    description
        What its configuration says of it.
    """

    def __init__(self, runner: ModelRunner, description: dict[str, Any]) -> None:
        self._runner, self.description = runner, description
        self.hidden_layers = tuple(description["hidden_layers"])
        self.vocab_size: int = description["vocab_size"]
        ids, target = description["token_ids"], description["target"]
        self.vocabulary = DraftVocabulary(ids, target["vocab_size"]) if ids else None
        functions = runner.functions
        self._functions = {name: functions[name] for name in functions if name.startswith("head_")}

    def check_target(self, runner: Runner) -> None:
        """Make sure that the head may draft for a model.

        Raises
        ------
        ValueError
            If the model has another vocabulary, width or depth, or gives no hidden states.
        """
        size = self.description["target"]["vocab_size"]
        if runner.vocab_size != size:
            raise ValueError(
                f"the head was made for a vocabulary of {size} tokens, and the model has "
                f"{runner.vocab_size}"
            )
        own = runner.config.get("model_config", {}) if isinstance(runner, ModelRunner) else {}
        for name in ("hidden_size", "num_hidden_layers"):
            made, found = self.description["target"][name], own.get(name)
            if found is not None and found != made:
                raise ValueError(
                    f"the head was made for a model with {name} {made}, and the model's is {found}"
                )
        if "hidden" not in runner.abilities:
            layers = ",".join(map(str, self.hidden_layers))
            raise ValueError(
                "the model gives no hidden states, which the head reads: compile it with "
                f"--hidden-layers {layers}"
            )

    @property
    def identity(self) -> str:
        """Name the head's library, its version and the device."""
        return self._runner.identity

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._functions[name](*arguments, self._runner.params)


class CompiledFeatureHead(CompiledHead):
    """EAGLE's heads; see `kvctl.draft.head.FeatureHead`."""

    @property
    def cache(self) -> PagedKVCache:
        """The cache of its entries."""
        cache: Any = self._runner.cache
        return cache  # type: ignore[no-any-return]

    @property
    def prefill_chunk_size(self) -> int:
        """New entries that one forward takes at most."""
        return self._runner.prefill_chunk_size

    @property
    def context_window_size(self) -> int | None:
        """Entries that a sequence may have."""
        return self._runner.context_window_size

    def features(self, hidden: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the features of hidden states."""
        return to_host(self._call("head_features", _rows(hidden)))

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        features: npt.NDArray[Any],
        *,
        mask: Sequence[Mask] | None = None,
    ) -> npt.NDArray[Any]:
        """Append entries, and return the features after them."""
        ids = np.array([token for new in tokens for token in new], np.int32)
        size = self.description["target"]["vocab_size"]
        if ids.size and not (0 <= ids.min() and ids.max() < size):
            raise ValueError(f"a token is outside the vocabulary of 0 to {size - 1}")
        cache = self.cache
        with cache.forward(seq_ids, [len(new) for new in tokens], mask=mask):
            step = self._call("head_step", _rows(ids), _rows(features), cache._handle)
        return to_host(step[0])

    def logits(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the logits of features."""
        return to_host(self._call("head_logits", _rows(features)))

    def drafter(self, **options: Any) -> HeadDrafter:
        """Return a drafter; without options, of EAGLE-2's trees."""
        from ..draft import HeadDrafter

        shape = {"branching": 4, "beam": 4, "nodes": 16}
        return HeadDrafter(self, **(options or shape))


class CompiledMedusa(CompiledHead):
    """Medusa's heads; see `kvctl.draft.head.MarginalHead`."""

    def logits(self, hidden: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (B, heads, V): minus infinity for tokens that they do not know."""
        heads = [to_host(one) for one in self._call("head_logits", _rows(hidden))]
        if self.vocabulary is not None:
            heads = [self.vocabulary.logits(one) for one in heads]
        return np.stack(heads, axis=1)

    def drafter(self, **options: Any) -> MedusaDrafter:
        """Return a drafter."""
        from ..draft import MedusaDrafter

        return MedusaDrafter(self, **options)


def load(
    directory: str | Path,
    *,
    max_sequences: int = 16,
    max_total_tokens: int | None = None,
) -> CompiledFeatureHead | CompiledMedusa:
    """Load a compiled head, on the CPU.

    Parameters
    ----------
    directory
        What `compile_head` wrote.
    max_sequences, max_total_tokens
        Of the head's cache: texts that it drafts for at once, and their tokens.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If it is damaged, or no head.
    """
    runner = ModelRunner.load(
        directory, max_sequences=max_sequences, max_total_tokens=max_total_tokens
    )
    description = runner.config.get("kvctl", {}).get("head")
    if not isinstance(description, dict):
        raise ValueError(f"{directory} is no head: 'kvctl heads compile' makes one")
    where = f"{Path(directory) / 'mlc-chat-config.json'}: head"
    with reading(where):
        _check(description, runner.metadata["kvctl"]["head"])
        kind = CompiledMedusa if description["kind"] == "medusa" else CompiledFeatureHead
        return kind(runner, description)


def _check(description: dict[str, Any], compiled: str) -> None:
    """Make sure that a description fits together, and is of the kind that was compiled.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it does not, or a part of it is missing or of another type.
    """
    kind, target, ids = description["kind"], description["target"], description["token_ids"]
    if kind not in KINDS or kind != compiled:
        raise ValueError(f"kind is {kind!r}, and the library is a head of kind {compiled!r}")
    sizes = {name: target[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    for name, size in {**sizes, "head's vocab_size": description["vocab_size"]}.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{name} must be an integer of at least 1, not {size!r}")
    check_read_layers(kind, tuple(description["hidden_layers"]), sizes["num_hidden_layers"])
    wanted = len(ids) if ids else sizes["vocab_size"]
    if description["vocab_size"] != wanted:
        raise ValueError(f"vocab_size is {description['vocab_size']}, where {wanted} fit")


def _rows(array: npt.NDArray[Any]) -> Any:
    """Return an array as the library's functions take it."""
    return tvm_ffi.from_dlpack(np.ascontiguousarray(array))
