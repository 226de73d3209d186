"""Which tokens follow the roots of a round: one call of `kvctl.verify`, or a few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draft import Draft
from ..verification import Verification, verify
from ..verification.enumeration import Rule
from .grammar.bitmask import Words, all_allowed
from .rows import join_rows, joinable, some_rows

if TYPE_CHECKING:
    from .text_state import TextState

#: Rules that follow the target's own choice, and read neither `drawn` nor the distributions.
FOLLOWING = ("greedy", "target_only", "coupled", "typical")


@dataclass(frozen=True)
class Decision:
    """What verification decided for one text."""

    tokens: list[int]
    nodes: list[int]
    kept: list[int]
    log_probs: list[float] | None


class Decider:
    """Verifies the drafts of texts by one rule.

    Parameters
    ----------
    rule
        A rule of `kvctl.verify`, or "auto": greedy at temperature 0, else target_only.
    log_probs
        Whether to return log-probabilities.
    """

    def __init__(self, rule: str | Rule, *, log_probs: bool) -> None:
        self._rule = rule
        self._log_probs = log_probs

    @property
    def follows_target(self) -> bool:
        """Whether leaving out nodes of any draft, for any reason, cannot bias the rule."""
        return isinstance(self._rule, str) and self._rule in ("auto", "greedy", "target_only")

    @property
    def certain(self) -> str | None:
        """How a draft of tokens that have no alternative is declared; None: the rule takes none."""
        if not isinstance(self._rule, str) or self._rule == "best_of_k":
            return None
        return "coupled" if self._rule == "coupled" else "deterministic"

    def decide(
        self,
        texts: Sequence[TextState],
        drafts: Sequence[Draft],
        logits: Any,
        masks: Sequence[Words | None] = (),
    ) -> list[Decision]:
        """Return the decision for each text.

        Parameters
        ----------
        logits
            A row for each row of the drafts' trees, one tree after another.
        masks
            For each text (nodes, W) int32, the tokens allowed after each node of its tree; None
            allows all. Empty where no text has any.

        Raises
        ------
        ValueError
            As `kvctl.verify`.
        """
        decisions: list[Decision] = []
        runs = list(self._runs(texts, drafts))
        row = 0
        for begin, end in runs:
            part = drafts[begin:end]
            rows = sum(draft.tree.num_rows for draft in part)
            mine = logits if len(runs) == 1 else some_rows(logits, row, row + rows)
            decisions += self._decide(texts[begin:end], part, mine, masks[begin:end])
            row += rows
        return decisions

    def _form(self, draft: Draft) -> Any:
        """Return what must be equal for two drafts to share a call."""
        if isinstance(self._rule, str) and self._rule in ("auto", *FOLLOWING):
            return None
        for name in ("probs", "probs_per_node"):
            if (probs := getattr(draft, name)) is not None:
                return (name, joinable(probs))
        return None

    def _runs(
        self, texts: Sequence[TextState], drafts: Sequence[Draft]
    ) -> Iterator[tuple[int, int]]:
        """Yield the neighbours that one call decides: of one seed, distributions of one form."""
        begin, key = 0, None
        for i, (text, draft) in enumerate(zip(texts, drafts, strict=True)):
            mine = (text.asked.seed, self._form(draft))
            if i > begin and (mine != key or not _shared(mine)):
                yield begin, i
                begin = i
            key = mine
        yield begin, len(texts)

    def _decide(
        self,
        texts: Sequence[TextState],
        drafts: Sequence[Draft],
        logits: Any,
        masks: Sequence[Words | None],
    ) -> list[Decision]:
        rule: Any = self._rule
        if rule == "auto":
            greedy = all(text.sampling.temperature == 0 for text in texts)
            rule = "greedy" if greedy else "target_only"
        options: dict[str, Any] = {}
        form = self._form(drafts[0])
        if form is not None:
            name = {"probs": "draft_probs", "probs_per_node": "draft_probs_per_node"}[form[0]]
            options[name] = join_rows([getattr(draft, form[0]) for draft in drafts])
        if self._log_probs:
            options["log_probs"] = True
        if any(mask is not None for mask in masks):
            vocab_size = int(logits.shape[1])
            options["bitmask"] = np.concatenate(
                [
                    all_allowed(len(draft.tree), vocab_size) if mask is None else mask
                    for draft, mask in zip(drafts, masks, strict=True)
                ]
            )
        if any(text.penalized for text in texts):
            options["history"] = [text.tokens[:-1] if text.penalized else () for text in texts]
        drawn: Any = [draft.drawn for draft in drafts]
        if rule in ("greedy", "target_only"):
            # They do not ask how a draft was drawn, and plain steps, which draft nothing, must take
            # the same tokens: not those of the noise that coupled drafts were drawn with.
            drawn = "deterministic"
        elif all(isinstance(one, str) for one in drawn) and len(set(drawn)) == 1:
            drawn = drawn[0]
        result = verify(
            logits,
            [draft.tree for draft in drafts],
            rule=rule,
            drawn=drawn,
            sampling=[text.sampling for text in texts],
            seed=texts[0].asked.seed,
            request_ids=[text.asked.request_id for text in texts],
            root_positions=[len(text.tokens) - 1 for text in texts],
            **options,
        )
        return _take_apart(result)


def _shared(key: tuple[int, Any]) -> bool:
    """Return whether drafts of this key can be joined at all."""
    return key[1] is None or key[1][1] is not None


def _take_apart(result: Verification) -> list[Decision]:
    log_probs = [None] * len(result) if result.log_probs is None else result.log_probs
    return [
        Decision(tokens, nodes, kept, None if one is None else one.tolist())
        for tokens, nodes, kept, one in zip(
            result.tokens, result.accepted_nodes, result.kept, log_probs, strict=True
        )
    ]
