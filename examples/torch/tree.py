"""Tree attention with commit: verify many continuations in one forward of a torch model.

``python examples/torch/tree.py``
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import kvctl
from decoder import Decoder, generate, make_cache, run


def score(model: nn.Module, cache: kvctl.PagedKVCache, tree: kvctl.TokenTree) -> torch.Tensor:
    """Return the logits (nodes, VOCAB) of a tree behind sequence 0; its nodes are pending."""
    return run(model, cache, tree.tokens.tolist(), mask=tree)


def speculate(
    model: nn.Module,
    cache: kvctl.PagedKVCache,
    prompt: Sequence[int],
    count: int,
    *,
    branches: int = 2,
    depth: int = 3,
) -> tuple[list[int], float]:
    """Return `count` greedy tokens, and the mean number of tokens of a forward.

    The drafts are the continuations of the last places where the newest token stood.
    """
    cache.add_sequence(0)
    text = [*prompt, int(run(model, cache, prompt)[-1].argmax())]
    rounds = 0
    while len(text) < len(prompt) + count:
        tree = draft(text, branches, depth)
        logits = score(model, cache, tree)
        result = kvctl.verify(logits, tree, rule="greedy", drawn="deterministic")
        cache.commit([0], result.kept)
        text += result.tokens[0]
        rounds += 1
    cache.remove_sequence(0)
    return text[len(prompt) :][:count], (len(text) - len(prompt) - 1) / rounds


def draft(text: Sequence[int], branches: int, depth: int) -> kvctl.TokenTree:
    """Return a tree of what followed the last token earlier in the text."""
    tokens, parents = [text[-1]], [-1]
    places = [i for i in range(len(text) - 2, -1, -1) if text[i] == text[-1]]
    for place in places[:branches]:
        node = 0
        for token in text[place + 1 : place + 1 + depth]:
            children = [i for i, parent in enumerate(parents) if parent == node]
            known = [child for child in children if tokens[child] == token]
            if not known:
                tokens.append(token)
                parents.append(node)
            node = known[0] if known else len(tokens) - 1
    return kvctl.TokenTree(tokens, parents)


if __name__ == "__main__":
    torch.manual_seed(0)
    model, prompt = Decoder(), [5, 17, 200, 31, 5, 17]
    tokens, rate = speculate(model, make_cache(), prompt, 64)
    print(tokens, f"{rate:.2f} tokens in a forward", sep="\n")
    print("plain decoding gives", tokens == generate(model, make_cache(), prompt, 64))
