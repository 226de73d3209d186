"""Self-speculation: draft on a sparse view of the cache, verify in full on the same cache.

There is no second model and no second cache. A mask shows the drafts only the first few and the
last tokens; then they are popped and verified together. The text is that of plain greedy decoding.
(MagicDec, Chen et al. 2024, arXiv:2408.11049, drafts like this on long contexts.)

``python examples/self_speculation.py MODEL_DIR "a prompt"``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from kvctl import Mask, ModelRunner, TokenTree, verify


def self_speculate(
    runner: ModelRunner,
    prompt: Sequence[int],
    count: int,
    *,
    drafts: int = 4,
    window: int = 64,
    sinks: int = 4,
) -> tuple[list[int], float]:
    """Return `count` greedy tokens, and the mean number of tokens per full forward."""
    view = Mask.window(window, sinks)
    runner.cache.add_sequence(0)
    logits = np.from_dlpack(runner.prefill([0], [prompt]))
    tokens, rounds = [int(logits[0].argmax())], 0
    while len(tokens) < count:
        chain = tokens[-1:]
        for _ in range(drafts):
            logits = np.from_dlpack(runner.forward([0], [chain[-1:]], mask=view))
            chain.append(int(logits[0].argmax()))
        runner.cache.popn(0, drafts)
        tree = TokenTree.chain(chain)
        result = verify(runner.verify([0], [tree]), [tree], rule="greedy", drawn="deterministic")
        runner.cache.commit([0], result.kept)
        tokens += [*result.tokens[0]]
        rounds += 1
    runner.cache.remove_sequence(0)
    return tokens[:count], (len(tokens) - 1) / rounds


def main() -> None:
    """Continue a prompt, and print the tokens per full forward."""
    from kvctl.text import ModelText

    text = ModelText.load(sys.argv[1])
    runner = ModelRunner.load(sys.argv[1])
    tokens, rate = self_speculate(runner, text.encode(sys.argv[2]), 64)
    print(text.decode(tokens))
    print(f"{rate:.2f} tokens per full forward")


if __name__ == "__main__":
    main()
