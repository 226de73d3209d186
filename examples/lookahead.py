"""Lookahead decoding (Fu et al. 2024, arXiv:2402.02057): guess n-grams and check them at once.

Besides the last token, each forward holds a *window* of guesses that Jacobi iteration improves, and
*candidates*: n-grams from earlier windows that begin with the last token. Guesses of the window see
the guesses before them; a candidate sees itself. A mask says so, positions run along the window's
diagonals, and the cache keeps the rows of the candidate that was right. The text is that of plain
greedy decoding.

``python examples/lookahead.py MODEL_DIR "a prompt"``
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvctl import Mask, ModelRunner


class Window:
    """Guesses, `levels` rows of `width` tokens: guess j of level k stands k + j + 1 ahead."""

    def __init__(self, prompt: Sequence[int], width: int, levels: int) -> None:
        rng = np.random.default_rng(0)
        self.guesses = rng.choice(np.asarray(prompt), (levels, width))
        place, level = np.tile(np.arange(width), levels), np.repeat(np.arange(levels), width)
        self.positions = 1 + place + level
        # A guess sees level 0 up to its own place, and the levels between at its own place.
        self.sees = ((level == 0) & (place <= place[:, None])) | (
            (place == place[:, None]) & (level <= level[:, None])
        )

    def improve(self, next_tokens: npt.NDArray[np.int64]) -> list[tuple[int, ...]]:
        """Add the tokens after the last level as a new one; return the n-grams this completes."""
        levels = np.vstack([self.guesses, next_tokens[-self.guesses.shape[1] :]])
        self.guesses = levels[1:]
        return [tuple(ngram) for ngram in levels.T.tolist()]


def lookahead_decode(
    runner: ModelRunner,
    prompt: Sequence[int],
    count: int,
    *,
    width: int = 5,
    levels: int = 3,
    candidates: int = 5,
) -> tuple[list[int], float]:
    """Return `count` greedy tokens, and the mean number of tokens per forward."""
    window = Window(prompt, width, levels)
    pool: dict[int, deque[tuple[int, ...]]] = defaultdict(lambda: deque(maxlen=candidates))
    cache = runner.cache
    cache.add_sequence(0)
    tokens, rounds = [int(np.from_dlpack(runner.prefill([0], [prompt]))[0].argmax())], 0
    while len(tokens) < count:
        chains = list(pool[tokens[-1]])
        rows = [tokens[-1], *window.guesses.ravel().tolist(), *(t for c in chains for t in c)]
        first = 1 + window.guesses.size  # row of the first candidate
        sees = np.zeros((len(rows), len(rows)), bool)
        sees[:, 0] = True
        sees[1:first, 1:first] = window.sees
        for i in range(len(chains)):
            chain = slice(first + i * levels, first + (i + 1) * levels)
            sees[chain, chain] = np.tri(levels, dtype=bool)
        ahead = np.r_[0, window.positions, np.tile(1 + np.arange(levels), len(chains))]
        positions = (cache.sequence_length(0) + ahead).tolist()
        logits = runner.forward(
            [0], [rows], mask=Mask.dense(sees), positions=[positions], pending=True
        )
        best = np.from_dlpack(logits).argmax(-1)

        kept = [0]
        for i, chain_tokens in enumerate(chains):
            right = [0]
            for row, token in enumerate(chain_tokens, first + i * levels):
                if best[right[-1]] != token:
                    break
                right.append(row)
            kept = max(kept, right, key=len)
        cache.commit([0], [kept])
        tokens += best[kept].tolist()
        rounds += 1
        for gram in window.improve(best[1:first]):
            if gram[1:] not in pool[gram[0]]:
                pool[gram[0]].append(gram[1:])
    cache.remove_sequence(0)
    return tokens[:count], (len(tokens) - 1) / rounds


def main() -> None:
    """Continue a prompt, and print the tokens per forward."""
    from kvctl.text import ModelText

    text = ModelText.load(sys.argv[1])
    runner = ModelRunner.load(sys.argv[1])
    tokens, rate = lookahead_decode(runner, text.encode(sys.argv[2]), 64)
    print(text.decode(tokens))
    print(f"{rate:.2f} tokens per forward")


if __name__ == "__main__":
    main()
