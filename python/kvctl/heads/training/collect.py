"""Answers of the target to prompts, with its hidden states, in shards on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._ffi.replace_file import replacing
from ..._ffi.untrusted import read_json_object
from ...engine.compiled.runner import ModelRunner
from ...engine.generate import generate
from ...models.checkpoints.safetensors_file import SafetensorsFile
from ...models.checkpoints.safetensors_writer import write_safetensors
from ...verification import Sampling
from .recorder import Recorder

MANIFEST = "collection.json"
_SHARD = "answers_{:05d}.safetensors"


@dataclass(frozen=True)
class Prompt:
    """What a text begins with.

    Attributes
    ----------
    tokens
        Its tokens.
    turns
        Turns of the conversation that the model writes, each up to a stop token: two where it
        begins with the user's.
    """

    tokens: Sequence[int]
    turns: int = 1


def collect(
    runner: ModelRunner,
    prompts: Sequence[Prompt],
    output: str | Path,
    *,
    layers: Sequence[int],
    max_new_tokens: int = 224,
    temperature: float = 0.8,
    seed: int = 0,
    shard_size: int = 192,
    enough: Callable[[], bool] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> int:
    """Generate the target's answers in batches, and save them with the hidden states.

    A shard is written when all its answers are there, so a call that was interrupted goes on where
    it stopped; it must be given the same prompts and settings.

    Parameters
    ----------
    runner
        The target, compiled with these layers as hidden layers.
    prompts
        What the texts begin with.
    output
        The directory of the shards.
    layers
        Layers whose outputs are saved, ascending: those that the head reads, and the last one.
    max_new_tokens, temperature, seed
        Of the answers. Each prompt has its own random stream.
    shard_size
        Prompts of a shard. Fewer of them are answered at once, so that only the last ones of a
        shard run in smaller batches.
    enough
        Asked before each shard; True ends the collection.
    progress
        Called with the prompts done, all prompts, and the tokens so far.

    Returns
    -------
    int
        Tokens in the collection, prompts included.

    Raises
    ------
    ValueError
        If the directory holds a collection of other prompts, settings or weights, or the runner
        gives no hidden states.
    """
    if "hidden" not in runner.abilities:
        names = ",".join(map(str, layers))
        raise ValueError(
            f"the model gives no hidden states: compile it with --hidden-layers {names}"
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(
        folder,
        {
            "layers": list(layers),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "shard_size": shard_size,
            "prompts": _digest(prompts),
            "vocab_size": runner.vocab_size,
            "model": runner.weights_digest,
        },
    )
    total = 0
    for shard, first in enumerate(range(0, len(prompts), shard_size)):
        path = folder / _SHARD.format(shard)
        some = prompts[first : first + shard_size]
        if path.exists():
            total += SafetensorsFile(path).shape("tokens")[0]
        elif enough is not None and enough():
            break
        else:
            total += _collect_shard(
                runner, some, path, layers, max_new_tokens, temperature, seed, first
            )
        if progress is not None:
            progress(first + len(some), len(prompts), total)
    return total


def _collect_shard(
    runner: ModelRunner,
    prompts: Sequence[Prompt],
    path: Path,
    layers: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    first: int,
) -> int:
    """Generate the answers of a shard and write it; returns its tokens."""
    recorder = Recorder(layers)
    texts = generate(
        runner,
        [list(prompt.tokens) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        drafter=recorder,
        sampling=Sampling(temperature=temperature),
        stop_when=[_Turns(runner.stop_tokens, prompt.turns).are_over for prompt in prompts],
        seed=seed,
        request_id=first,
    )
    tokens, hidden, lengths, starts = [], [], [], []
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if len(text.tokens) < 2:  # it ended at once: nothing was recorded, or next to nothing
            recorder.hidden.pop(first + i, None)
            continue
        states = recorder.take(first + i)
        row = [*prompt.tokens, *text.tokens][: len(states) + 1]
        tokens += row
        # The last token has none: it was never read.
        hidden.append(np.concatenate([states, np.zeros_like(states[:1])])[: len(row)])
        lengths.append(len(row))
        starts.append(len(prompt.tokens))
    if not hidden:  # all of them ended at once: the shard says so, and the next ones follow
        width = int(runner.config["model_config"]["hidden_size"])
        hidden.append(np.zeros((0, len(layers), width), np.uint16))
    arrays: dict[str, npt.NDArray[Any]] = {
        "tokens": np.array(tokens, np.int32),
        "lengths": np.array(lengths, np.int32),
        "prompt_lengths": np.array(starts, np.int32),
        "hidden": np.concatenate(hidden),
    }
    write_safetensors(path, arrays, bfloat16=frozenset(["hidden"]))
    return len(tokens)


class _Turns:
    """The turns that are left in a text."""

    def __init__(self, stop: frozenset[int], count: int) -> None:
        self._stop, self._left = stop, count

    def are_over(self, token: int) -> bool:
        """Return whether a token ends the last turn."""
        self._left -= token in self._stop
        return self._left <= 0


def _digest(prompts: Sequence[Prompt]) -> str:
    """Return a number that tells prompts from others."""
    text = json.dumps([[prompt.turns, *map(int, prompt.tokens)] for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()


def _check_manifest(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the collection is of, or check that it is of the same."""
    path = folder / MANIFEST
    if not path.exists():
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=1))
        return
    check_same(folder, read_json_object(path), settings)


def check_same(folder: Path, before: dict[str, Any], asked: dict[str, Any]) -> None:
    """Make sure that a collection goes on with the settings that it began with.

    Raises
    ------
    ValueError
        If a setting is another one.
    """
    other = [name for name in asked if before.get(name) != asked[name]]
    if other:
        raise ValueError(
            f"{folder} holds a collection with another {', '.join(other)}: give it the same "
            "settings to go on, or another directory"
        )
