"""What drafters need of a head, compiled or written in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from ..model.draft_vocabulary import DraftVocabulary
from ..model.runner import DraftModel

if TYPE_CHECKING:
    from ...mask import Mask


class FeatureHead(DraftModel, Protocol):
    """A head that reads a feature and the token behind it, as EAGLE's do.

    An entry of its cache is the feature of a position together with the *next* token, so a text of
    n tokens has n - 1 entries, and the last of them holds the last token, the root. What the head
    gives for an entry is its guess at the next feature, from which come the logits of the token
    after. Its cache and its sizes count entries.

    Attributes
    ----------
    hidden_layers : tuple of int
        The target's layers whose outputs the features are made of.
    vocabulary : DraftVocabulary or None
        Which of the target's tokens its logits are about, if not all.
    """

    hidden_layers: tuple[int, ...]
    vocabulary: DraftVocabulary | None

    def features(self, hidden: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the features (n, F) of hidden states (n, layers, width)."""
        ...

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[Sequence[int]],
        features: npt.NDArray[Any],
        *,
        mask: Sequence[Mask] | None = None,
    ) -> npt.NDArray[Any]:
        """Append entries, sequence after sequence; return the features (entries, F) after them.

        With masks of trees the entries are pending. It happens for all sequences, or raises
        :class:`kvctl.OutOfPagesError` and changes nothing.
        """
        ...

    def logits(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (n, vocab_size) float32, the logits of what `forward` gave."""
        ...


class MarginalHead(Protocol):
    """Heads that guess several tokens at once, each without the ones before it, as Medusa's do.

    Attributes
    ----------
    hidden_layers : tuple of int
        The target's layers whose outputs they read.
    """

    hidden_layers: tuple[int, ...]

    def logits(self, hidden: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (B, K, V) float32 of hidden states (B, layers, width).

        The hidden states are those that the target's last token came from. Row k is about the
        (k + 1)-th token behind that one.
        """
        ...
