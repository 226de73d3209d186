"""The sequences of a head's cache: entries of the target's own features, in step with the texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.errors import OutOfPagesError
from ...mask import Mask
from ..arrays import to_host
from ..request import Request
from .protocols import FeatureHead


@dataclass(eq=False)
class _Text:
    """One text: its sequence, and what of it the head has not read yet."""

    id: int
    tokens: list[int] = field(default_factory=list)
    hidden: list[npt.NDArray[Any]] = field(default_factory=list)
    #: What the head gave for the root and for pending entries: the features of their children.
    root: npt.NDArray[Any] | None = None
    grown: list[npt.NDArray[Any]] = field(default_factory=list)


class HeadSequences:
    """A sequence of a head's cache for each text; see `kvctl.draft.model.sequences.Sequences`.

    Committed entries are made of the target's hidden states. Entries of drafts are made of what the
    head gave for their parents, so they are dropped after the round, those of accepted drafts too,
    and the target's hidden states take their place. That is why the cache holds after each round
    what a prefill of the text would.

    A text for which there is no room is left out until it starts anew: the hidden states that it
    would need later are gone.
    """

    def __init__(self, head: FeatureHead) -> None:
        self._head = head
        self._texts: dict[int, _Text] = {}
        self._by_id: dict[int, _Text] = {}
        self._next_id = 0  # not the lowest that is free: with many texts the search takes long

    def __contains__(self, request: Request) -> bool:
        return request.id in self._texts

    def id_of(self, request: Request) -> int:
        """Return the sequence of a text that has one."""
        return self._texts[request.id].id

    def depth_room(self, request: Request) -> int | None:
        """Return how many nodes may follow the root on a path; None where nothing limits it."""
        window = self._head.context_window_size
        return None if window is None else window - len(request.tokens)

    def start(self, request: Request) -> None:
        """Begin a text with the hidden states of all its tokens but the root."""
        self.finish(request)
        cache, id = self._head.cache, self._next_id
        while id in cache:
            id += 1
        self._next_id = id + 1
        # First: a sequence whose text is not known would stay for ever.
        self._texts[request.id] = self._by_id[id] = _Text(id)
        try:
            cache.add_sequence(id)
        except ValueError:  # as many sequences as the cache was made for
            self.finish(request)
            return
        self.extend(request, request.tokens[1:], request.prompt_hidden)

    def extend(self, request: Request, tokens: Sequence[int], hidden: Any) -> None:
        """Take tokens that a text has grown by; `hidden` are the states that they came from."""
        text = self._texts.get(request.id)
        if text is not None and len(tokens):
            text.tokens += map(int, tokens)
            text.hidden.append(np.array(to_host(hidden)[: len(tokens)]))

    def catch_up(self, requests: Sequence[Request]) -> dict[int, Any]:
        """Forward the entries that sequences lack, in chunks.

        Returns
        -------
        dict
            By the ids of texts, the logits (vocab_size,) behind their roots. Texts for which there
            is no room are missing.
        """
        for request in requests:
            window = self._head.context_window_size
            if window is not None and len(request.tokens) - 1 > window:
                self.finish(request)
        waiting = [r for r in requests if r in self and self._texts[r.id].tokens]
        while waiting:
            chunk, room = [], self._head.prefill_chunk_size
            for request in waiting:
                text = self._texts[request.id]
                count = min(room, len(text.tokens))
                if count:
                    chunk.append((text, count))
                    room -= count
            try:
                self._append(chunk)
            except OutOfPagesError:
                last = chunk[-1][0]
                self.finish(next(r for r in waiting if self._texts[r.id] is last))
            waiting = [r for r in waiting if r in self and self._texts[r.id].tokens]
        ready = [request for request in requests if request in self]
        if not ready:
            return {}
        rows = self._head.logits(np.stack([self._root(request) for request in ready]))
        return {request.id: row for request, row in zip(ready, rows, strict=True)}

    def grow(
        self, ids: Sequence[int], tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]]
    ) -> npt.NDArray[Any] | None:
        """Forward new nodes of pending trees, each with the feature that its parent gave."""
        texts = [self._by_id[id] for id in ids]
        features = [
            text.root if parent < 0 else text.grown[parent]
            for text, above in zip(texts, parents, strict=True)
            for parent in above
        ]
        masks = [Mask.tree(above) for above in parents]
        try:
            after = self._head.forward(ids, tokens, np.stack(features), mask=masks)  # type: ignore[arg-type]
        except OutOfPagesError:
            return None
        rows = iter(after)
        for text, new in zip(texts, tokens, strict=True):
            text.grown += [next(rows) for _ in new]
        return self._head.logits(after)

    def leave_to_target(self, requests: Sequence[Request]) -> None:
        """Do nothing: the caches are two."""

    def keep(self, kept: dict[int, list[int]]) -> None:
        """Drop all pending entries: those of accepted drafts were made of guessed features."""
        self._drop(kept)

    def drop_pending(self, requests: Iterable[Request]) -> None:
        """Drop what is pending: a round was given up."""
        self._drop([self._texts[request.id].id for request in requests if request in self])

    def finish(self, request: Request) -> None:
        """Remove a text's sequence."""
        text = self._texts.get(request.id)
        if text is not None:
            if text.id in self._head.cache:
                self._head.cache.remove_sequence(text.id)
            self._by_id.pop(text.id, None)
            del self._texts[request.id]  # last: until here it can be called again

    def _root(self, request: Request) -> npt.NDArray[Any]:
        root = self._texts[request.id].root
        assert root is not None, "a text starts with an entry"
        return root

    def _append(self, chunk: Sequence[tuple[_Text, int]]) -> None:
        """Forward the first entries of some texts."""
        for text, _ in chunk:
            text.hidden = [np.concatenate(text.hidden)] if len(text.hidden) > 1 else text.hidden
        hidden = [text.hidden[0][:count] for text, count in chunk]
        features = self._head.features(hidden[0] if len(hidden) == 1 else np.concatenate(hidden))
        after = self._head.forward(
            [text.id for text, _ in chunk], [text.tokens[:count] for text, count in chunk], features
        )
        row = 0
        for text, count in chunk:
            row += count
            text.root = np.array(after[row - 1])
            del text.tokens[:count]
            text.hidden = [text.hidden[0][count:]] if text.tokens else []

    def _drop(self, ids: Iterable[int]) -> None:
        cache = self._head.cache
        ids = [id for id in ids if id in self._by_id]
        for id in ids:
            self._by_id[id].grown = []
        pending = [id for id in ids if cache.pending_length(id)]
        if pending:
            cache.abort(pending)
