"""Attention masks on a compiled model: one keyword of a forward.

Run with a model directory (see ``kvctl compile``): ``python examples/masks.py MODEL_DIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvctl import Mask, ModelRunner

Logits = npt.NDArray[np.float32]


def forward(
    runner: ModelRunner,
    tokens: Sequence[int],
    mask: Mask | None = None,
    *,
    past: Sequence[int] = (),
    positions: Sequence[int] | None = None,
) -> Logits:
    """Return the logits (len(tokens), vocabulary) of tokens after a past, in a new sequence."""
    runner.cache.add_sequence(0)
    try:
        if past:
            runner.prefill([0], [past])
        where = None if positions is None else [positions]
        return np.from_dlpack(runner.forward([0], [tokens], mask=mask, positions=where))
    finally:
        runner.cache.remove_sequence(0)


def prefix_lm(runner: ModelRunner, prefix: Sequence[int], rest: Sequence[int]) -> Logits:
    """Let the tokens of a prefix see each other both ways; the rest stays causal."""
    return forward(runner, [*prefix, *rest], Mask.prefix_lm(len(prefix)))


def pack_documents(runner: ModelRunner, documents: Sequence[Sequence[int]]) -> list[Logits]:
    """Run several documents as one sequence that does not look across their borders."""
    sizes = [len(document) for document in documents]
    logits = forward(
        runner,
        [token for document in documents for token in document],
        Mask.documents(np.repeat(np.arange(len(sizes)), sizes)),
        positions=[position for size in sizes for position in range(size)],
    )
    return np.split(logits, np.cumsum(sizes)[:-1])


def streaming_llm(
    runner: ModelRunner, prompt: Sequence[int], count: int, *, window: int, sinks: int
) -> list[int]:
    """Decode greedily with a view of the first `sinks` and the last `window` tokens."""
    view = Mask.window(window, sinks)
    runner.cache.add_sequence(0)
    try:
        logits = np.from_dlpack(runner.forward([0], [prompt], mask=view))[-1]
        tokens: list[int] = []
        while len(tokens) < count:
            tokens.append(int(logits.argmax()))
            logits = np.from_dlpack(runner.forward([0], [tokens[-1:]], mask=view))[-1]
        return tokens
    finally:
        runner.cache.remove_sequence(0)


def score_continuations(
    runner: ModelRunner, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Logits]:
    """Run several continuations of one prompt in one forward, as the branches of a tree."""
    parents: list[int] = []
    for continuation in continuations:
        start = len(parents)
        parents += [-1, *range(start, start + len(continuation) - 1)]
    tokens = [token for continuation in continuations for token in continuation]
    logits = forward(runner, tokens, Mask.tree(parents), past=prompt)
    return np.split(logits, np.cumsum([len(one) for one in continuations])[:-1])


def hide_span(
    runner: ModelRunner, past: Sequence[int], tokens: Sequence[int], begin: int, end: int
) -> Logits:
    """Hide keys [begin, end) of the past from the last of the new tokens."""
    hidden: list[list[tuple[int, int]]] = [[] for _ in tokens]
    hidden[-1] = [(begin, end)]
    return forward(runner, tokens, Mask.causal() & ~Mask.ranges(hidden), past=past)


def main() -> None:
    """Run each of them on token ids that any model has."""
    runner = ModelRunner.load(sys.argv[1])
    words = list(range(10, 30))
    print(Mask.prefix_lm(4).picture(8, 8), end="\n\n")
    print("prefix LM:", prefix_lm(runner, words[:4], words[4:]).argmax(-1))
    for logits in pack_documents(runner, [words[:7], words[7:]]):
        print("packed document:", logits.argmax(-1))
    print("window and sinks:", streaming_llm(runner, words, 16, window=8, sinks=4))
    for logits in score_continuations(runner, words, [[1, 2], [3, 4, 5]]):
        print("branch:", logits.argmax(-1))
    print("hidden span:", hide_span(runner, words, [1, 2], 5, 10).argmax(-1))


if __name__ == "__main__":
    main()
