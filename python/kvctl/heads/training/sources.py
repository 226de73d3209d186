"""Where prompts come from: the grammar, passages of texts, and the model itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path

from ..._ffi.replace_file import replacing
from ..._ffi.untrusted import read_json_object, reading
from ...engine.compiled.runner import ModelRunner
from ...engine.generate import generate
from ...verification import Sampling
from .collect import check_same
from .prompts import PromptGrammar, passages

_PROMPTS = "prompts.json"

_LONGEST = 320  # tokens of a prompt
_FREE_TOKENS = 64


def make_prompts(
    runner: ModelRunner,
    count: int,
    *,
    texts: Sequence[Path] = (),
    free: float = 0.25,
    seed: int = 0,
) -> list[list[int]]:
    """Return the tokens of prompts, in the model's chat template; those of all kinds in turns.

    Parameters
    ----------
    runner
        The target.
    count
        How many there are.
    texts
        Text files; a tenth of the prompts at most are about their passages.
    free
        The share that the model writes itself: it is given the beginning of a conversation, and
        what it says in the user's place is a prompt. These are what it was trained to be asked.
    seed
        Of the grammar and of the model's own.

    Raises
    ------
    ValueError
        If the share is not from 0 to 1.
    """
    if not 0 <= free <= 1:
        raise ValueError(f"the share of free prompts must be from 0 to 1, not {free}")
    own = free_prompts(runner, round(count * free), seed=seed) if free else []
    read = list(islice(passages(list(texts)), count // 10))
    made = list(islice(PromptGrammar(seed), count - len(own) - len(read)))
    # The rarer kinds are spread evenly among the others.
    groups = [made, own, read]
    spread = sorted(
        ((i + 0.5) / len(group), kind, text)
        for kind, group in enumerate(groups)
        for i, text in enumerate(group)
    )
    prompts = [runner.text.encode_chat(text) for _, _, text in spread]
    return [prompt for prompt in prompts if len(prompt) <= _LONGEST]


def kept_prompts(
    folder: Path,
    model: Path,
    runner: ModelRunner,
    count: int,
    *,
    texts: Sequence[Path] = (),
    free: float = 0.25,
    seed: int = 0,
) -> list[list[int]]:
    """Return the prompts of a collection: those that it began with, or new ones, which it keeps.

    Parameters
    ----------
    folder
        The collection's directory.
    model
        The target's directory.
    runner, count, texts, free, seed
        See `make_prompts`.

    Raises
    ------
    ValueError
        If the collection began with other settings or another target, or its file is damaged.
    """
    file = folder / _PROMPTS
    weights = hashlib.sha256((model / "tensor-cache.json").read_bytes()).hexdigest()
    names = [str(text) for text in texts]
    asked = {"count": count, "text": names, "free": free, "seed": seed, "model": weights}
    if file.exists():
        kept = read_json_object(file)
        with reading(str(file)):
            check_same(folder, dict(kept["asked"]), asked)
            return [[int(token) for token in prompt] for prompt in kept["prompts"]]
    prompts = make_prompts(runner, count, texts=texts, free=free, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as unfinished:
        unfinished.write_text(json.dumps({"asked": asked, "prompts": prompts}))
    return prompts


def free_prompts(runner: ModelRunner, count: int, *, seed: int = 0) -> list[str]:
    """Return what the model says in the user's place; what is empty or said before is left out."""
    start = _before_the_user(runner)
    texts = generate(
        runner,
        [start] * count,
        max_new_tokens=_FREE_TOKENS,
        sampling=Sampling(temperature=1.0, top_p=0.95),
        stop=runner.stop_tokens,
        seed=seed,
    )
    words = ([token for token in one.tokens if token not in runner.stop_tokens] for one in texts)
    said = (runner.text.decode(tokens).strip() for tokens in words)
    return list(dict.fromkeys(one for one in said if one))


def _before_the_user(runner: ModelRunner) -> list[int]:
    """Return the tokens of the chat template up to the user's first word."""
    start = []
    first, second = (runner.text.encode_chat(word) for word in ("Apples", "the river"))
    for one, other in zip_longest(first, second):
        if one != other:
            break
        start.append(one)
    return start
