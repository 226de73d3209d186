"""What the decoding loop, the drafters and the commands need of a model: the runner's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..cache.step_arguments import MaskLike
    from ..text import ModelText
    from ..tree import TokenTree
    from .runner_cache import RunnerCache

#: What a runner may be able to do beyond the protocol; see `Runner.abilities`.
ABILITIES = ("embed", "hidden", "layers")


class Runner(Protocol):
    """A model on a kvctl cache.

    :class:`kvctl.ModelRunner` runs compiled models, ``kvctl.hf.ModelRunner`` those of transformers.
    :func:`kvctl.generate`, every drafter and the commands take either, and any other object with
    these members: they ask for abilities, never for a class. An optional ability is named in
    `abilities`.

    Logits are float32 on the cache's device, in anything that speaks DLPack. Every forward happens
    for all sequences that it names, or raises and leaves the cache as it was.
    """

    @property
    def cache(self) -> RunnerCache:
        """The cache that holds the sequences."""
        ...

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        ...

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most; `prefill` takes more, in chunks."""
        ...

    @property
    def context_window_size(self) -> int | None:
        """Tokens that a sequence may have; None where the model sets no limit."""
        ...

    @property
    def sliding_window_size(self) -> int | None:
        """The window of whole sequences, behind which tokens are evicted; None without one.

        Windows of single layers are part of the model, and are not named here.
        """
        ...

    @property
    def abilities(self) -> frozenset[str]:
        """Which optional abilities the runner has.

        ``"hidden"``: `prefill`, `verify` and `forward` take ``hidden=`` and then return the logits
        and a tensor ``(rows, layers, hidden_size)``, with a row for each new token. True asks for
        one layer, what the output layer reads; a sequence of layers asks for the outputs of these
        layers, counted from 0.

        ``"layers"``: `verify` and `forward` take ``layers=``, a range of layers that starts at 0.
        The final norm and the output layer follow it (an early exit). The rows are pending and can
        be dropped; they can be committed once the runner's ``complete(seq_ids)`` ran their other
        layers.

        ``"embed"``: ``embed(tokens)`` returns the rows ``(n, hidden_size)`` that enter layer 0.
        """
        ...

    @property
    def text(self) -> ModelText:
        """The model's tokenizer, chat template and stops.

        Raises
        ------
        FileNotFoundError
            If the model came without a tokenizer.
        """
        ...

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end the model's turn; empty where nothing names any."""
        ...

    def prefill(self, seq_ids: Sequence[int], tokens: Sequence[npt.ArrayLike]) -> Any:
        """Append prompts of any lengths; logits (B, vocab_size) behind each prompt."""
        ...

    def decode(self, seq_ids: Sequence[int], tokens: npt.ArrayLike) -> Any:
        """Append one token to each sequence; logits (B, vocab_size)."""
        ...

    def verify(self, seq_ids: Sequence[int], trees: TokenTree | Sequence[TokenTree]) -> Any:
        """Forward one tree for each sequence, its rows pending; logits (rows, vocab_size)."""
        ...

    def forward(
        self,
        seq_ids: Sequence[int],
        tokens: Sequence[npt.ArrayLike],
        *,
        mask: MaskLike | Sequence[MaskLike | None] | None = None,
        positions: Sequence[npt.ArrayLike] | None = None,
        pending: bool | None = None,
    ) -> Any:
        """Forward any new tokens under any masks; logits (new tokens, vocab_size)."""
        ...
