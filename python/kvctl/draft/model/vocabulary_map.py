"""Two vocabularies: which tokens they share, and how one spells what only the other has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class VocabularyTokenizer(Protocol):
    """What a vocabulary map asks of a tokenizer; `kvctl.text.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        ...

    def token_bytes(self, id: int) -> bytes | None:
        """Return what a token stands for in a text; None for control tokens."""
        ...

    def encode(self, text: str, *, special: Any, bos: bool) -> list[int]:
        """Return the tokens of a text."""
        ...


class VocabularyMap:
    """The tokens that a draft model and its target share (token-level intersection, 2502.05202).

    Two tokens are the same if they stand for the same bytes. A draft model with this map proposes
    shared tokens only: its distribution is restricted to them before anything is drawn, so that
    what reaches the verifier is the distribution that was drawn from, and every rule stays exact.
    Tokens that only the target has are spelled by the draft model's tokenizer where it reads them.

    Parameters
    ----------
    draft_tokenizer, target_tokenizer
        `kvctl.text.Tokenizer`, ``runner.text.tokenizer``, or others with the same methods.
    draft_size, target_size
        The models' vocabulary sizes, where they have more rows than their tokenizers have tokens.

    Attributes
    ----------
    draft_ids, target_ids : numpy.ndarray
        (shared,) int32, the shared tokens in both vocabularies, in the order of the target's.

    Raises
    ------
    ValueError
        If they share less than a twentieth of the target's tokens, or a size is too small.

    Examples
    --------
    >>> shared = kvctl.draft.VocabularyMap(draft.text.tokenizer, target.text.tokenizer)
    >>> drafter = kvctl.draft.ModelDrafter(draft, vocabulary=shared)
    """

    #: The least share of the target's tokens that a draft model must know to be of use.
    LEAST_SHARE = 0.05

    def __init__(
        self,
        draft_tokenizer: VocabularyTokenizer,
        target_tokenizer: VocabularyTokenizer,
        *,
        draft_size: int | None = None,
        target_size: int | None = None,
    ) -> None:
        self.draft_size = _size(draft_tokenizer, draft_size, "draft_size")
        self.target_size = _size(target_tokenizer, target_size, "target_size")
        self._draft, self._target = draft_tokenizer, target_tokenizer
        by_bytes = _by_bytes(draft_tokenizer)
        pairs = [
            (by_bytes[content], target)
            for content, target in _by_bytes(target_tokenizer).items()
            if content in by_bytes
        ]
        pairs.sort(key=lambda pair: pair[1])
        if len(pairs) < self.LEAST_SHARE * target_tokenizer.vocab_size:
            raise ValueError(
                f"the vocabularies share {len(pairs)} of the target's "
                f"{target_tokenizer.vocab_size} tokens, less than a twentieth: such a model cannot "
                "draft token by token; StringDrafter drafts through text"
            )
        self.draft_ids = np.array([draft for draft, _ in pairs], np.int32)
        self.target_ids = np.array([target for _, target in pairs], np.int32)
        self._spelled = {target: [draft] for draft, target in pairs}
        self._alone = {content: id for content, id in by_bytes.items() if len(content) == 1}
        self._any = int(self.draft_ids[0])

    @property
    def share(self) -> float:
        """The share of the target's tokens that the draft model has too."""
        return len(self.target_ids) / self._target.vocab_size

    def spell(self, token: int) -> list[int]:
        """Return a target's token in the draft model's tokens; at least one."""
        known = self._spelled.get(token)
        if known is None:
            known = self._spelled[token] = self._spell(token) or [self._any]
        return known

    def to_target(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return (R, target_size) logits of the draft model; -inf for tokens that it lacks."""
        rows = np.full((len(logits), self.target_size), -np.inf, np.float32)
        rows[:, self.target_ids] = logits[:, self.draft_ids]
        return rows

    def to_draft(self, tokens: Sequence[int]) -> list[int]:
        """Return shared tokens in the draft model's vocabulary."""
        return [self._spelled[token][0] for token in tokens]

    def _spell(self, token: int) -> list[int]:
        content = self._target.token_bytes(token)
        if not content:
            return []  # control tokens: what they are called says nothing to another model
        try:
            return self._draft.encode(content.decode(), special="literal", bos=False)
        except ValueError:  # a part of a character, or what the tokenizer does not take
            return [self._alone[byte] for n in content if (byte := bytes([n])) in self._alone]


def _size(tokenizer: VocabularyTokenizer, size: int | None, name: str) -> int:
    if size is not None and size < tokenizer.vocab_size:
        raise ValueError(
            f"{name} must be at least the tokenizer's {tokenizer.vocab_size} tokens, got {size}"
        )
    return tokenizer.vocab_size if size is None else size


def _by_bytes(tokenizer: VocabularyTokenizer) -> dict[bytes, int]:
    """Return the token of each content; the lowest where several have it."""
    found: dict[bytes, int] = {}
    for id in range(tokenizer.vocab_size):
        content = tokenizer.token_bytes(id)
        if content:
            found.setdefault(content, id)
    return found
