"""The training of a head: batches, AdamW, held-out texts, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import torch

from ...models.checkpoints.weights import Checkpoint
from ..config import default_layers
from .curve import write_curve
from .dataset import Collection
from .eagle3 import Eagle3
from .files import load_state, save_state, write_head
from .medusa import Medusa
from .shared import Shared

_WARM = 0.05  # of the training, in which the rate rises
KINDS: dict[str, Callable[..., Any]] = {"eagle3": Eagle3, "medusa": Medusa}


@dataclass(frozen=True)
class Training:
    """How a head is trained.

    Attributes
    ----------
    kind : str
        "eagle3" or "medusa".
    vocabulary : int
        Tokens of the draft vocabulary: the most frequent ones of the answers.
    steps : int
        Steps of training-time test, or heads.
    epochs : int
        Passes over the texts.
    tokens : int
        Of a batch, with its padding.
    rate : float
        The largest learning rate; it rises for a twentieth of the batches and falls to a tenth.
    patience : int
        Measurements of the held-out texts without a better one, after which training ends.
    every : int
        Batches between two of them.
    seed : int
        Of the first weights and of the order of batches.
    """

    kind: str = "eagle3"
    vocabulary: int = 8192
    steps: int = 4
    epochs: int = 4
    tokens: int = 2048
    rate: float = 1e-3
    patience: int = 4
    every: int = 200
    seed: int = 0


def train(
    collection: str | Path,
    output: str | Path,
    *,
    target: Checkpoint,
    training: Training | None = None,
    minutes: float | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """Train a head on collected answers, and write it as it would be published.

    ``config.json`` and ``model.safetensors`` (bfloat16) of the weights that were best on held-out
    texts, ``loss.json`` and ``loss.svg`` are in `output`. So is ``state``, from which the same call
    goes on if it was interrupted.

    Parameters
    ----------
    collection
        The directory that `collect` wrote.
    output
        The directory to write.
    target
        The target's files, as `kvctl.models.open_checkpoint` gives them.
    training
        How.
    minutes
        End after so much time, with what is best by then. The rate then falls by the time where
        that is over before the batches are, and another machine trains another head.
    progress
        Called with the batch, how many there are at most, and its loss.

    Returns
    -------
    dict
        What ``loss.json`` holds: the settings, the losses, and for each measurement of the held-out
        texts the loss, the acceptance by depth and the expected tokens of a round.

    Raises
    ------
    ValueError
        If the collection has not the layers that the head reads, or is of another vocabulary, or
        `output` holds the state of another training.
    """
    training = training or Training()
    if training.kind not in KINDS:
        raise ValueError(f"kvctl trains {' and '.join(KINDS)}, not {training.kind!r}")
    texts = Collection(collection)
    _check(texts, target, training.kind)
    torch.manual_seed(training.seed)
    shared = Shared.of(target, texts.frequent_tokens(training.vocabulary))
    model = KINDS[training.kind](shared, steps=training.steps)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(training, folder, model, optimizer, texts, shared, minutes)
    run.go(progress)
    return run.record


class _Run:
    """A training under way."""

    def __init__(
        self,
        training: Training,
        folder: Path,
        model: Any,
        optimizer: Any,
        texts: Collection,
        shared: Shared,
        minutes: float | None,
    ) -> None:
        self.minutes = minutes
        self.training, self.folder, self.texts = training, folder, texts
        self.model, self.optimizer, self.shared = model, optimizer, shared
        self.order = [
            batch
            for epoch in range(training.epochs)
            for batch in texts.batches(
                texts.training, most=training.tokens, seed=training.seed + epoch
            )
        ]
        self.held_out = list(texts.batches(texts.held_out, most=training.tokens, seed=0))
        self.record: dict[str, Any] = {
            "training": asdict(training),
            "texts": len(texts.training),
            "tokens": texts.num_tokens,
            "seconds": 0.0,
            "losses": [],
            "held_out": [],
        }
        self.at = load_state(folder, model, optimizer, self.record)

    def go(self, progress: Callable[[int, int, float], None] | None) -> None:
        begin, before = perf_counter(), self.record["seconds"]
        if self.at == 0:
            self._measure()
        while self.at < len(self.order) and not self._is_over():
            loss = self._step(self.order[self.at])
            self.at += 1
            self.record["losses"].append(round(loss, 5))
            self.record["seconds"] = round(before + perf_counter() - begin, 2)
            if progress is not None:
                progress(self.at, len(self.order), loss)
            if self.at % self.training.every == 0 or self.at == len(self.order):
                self._measure()
            if self.minutes is not None and self.record["seconds"] > 60 * self.minutes:
                break
        if self.record["held_out"][-1]["batch"] != self.at:
            self._measure()

    def _step(self, indices: list[int]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.rate * _share(self._fraction())
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = self.model.loss(self._batch(indices))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _fraction(self) -> float:
        """Return how much of the training is over, by batches or by the time that there is."""
        done = self.at / len(self.order)
        if self.minutes is not None:
            done = max(done, self.record["seconds"] / (60 * self.minutes) if self.minutes else 1.0)
        return min(done, 1.0)

    def _measure(self) -> None:
        """Measure the held-out texts, save the state, and the head if it is the best so far."""
        loss, counts = 0.0, torch.zeros(self.training.steps, 2, dtype=torch.long)
        for indices in self.held_out:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                one, hits = self.model.loss(self._batch(indices))
            loss, counts = loss + float(one), counts + hits
        acceptance = [right / max(1, reached) for right, reached in counts.tolist()]
        expected = 1.0 + sum(math.prod(acceptance[: i + 1]) for i in range(len(acceptance)))
        held_out = self.record["held_out"]
        best = max((one["expected_tokens"] for one in held_out), default=0.0)
        held_out.append(
            {
                "batch": self.at,
                "loss": round(loss / max(1, len(self.held_out)), 5),
                "acceptance": [round(one, 4) for one in acceptance],
                "expected_tokens": round(expected, 4),
            }
        )
        if held_out[-1]["expected_tokens"] > best:
            write_head(self.folder, self.training.kind, self.model, self.shared, self.texts.layers)
        save_state(self.folder, self.model, self.optimizer, self.at, self.record)
        (self.folder / "loss.json").write_text(json.dumps(self.record, indent=1))
        write_curve(self.folder / "loss.svg", self.record)

    def _is_over(self) -> bool:
        """Whether the held-out texts have not gained for long."""
        figures = [one["expected_tokens"] for one in self.record["held_out"]]
        return len(figures) - 1 - figures.index(max(figures)) >= self.training.patience

    def _batch(self, indices: list[int]) -> Any:
        batch = self.texts.batch(indices)
        return SimpleNamespace(
            tokens=torch.from_numpy(batch.tokens),
            hidden=torch.from_numpy(batch.hidden),
            answers=torch.from_numpy(batch.answers),
        )


def _share(fraction: float) -> float:
    """Return the share of the largest rate at a fraction of the training."""
    if fraction < _WARM:
        return max(0.01, fraction / _WARM)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (fraction - _WARM) / (1 - _WARM)))


def _check(texts: Collection, target: Checkpoint, kind: str) -> None:
    """Make sure that a collection is one of the target, with what the head reads."""
    config = target.config
    if texts.vocab_size != config.vocab_size:
        raise ValueError(
            f"the collection is of a model with {texts.vocab_size} tokens, and the target has "
            f"{config.vocab_size}"
        )
    last = config.num_hidden_layers - 1
    read = default_layers(config.num_hidden_layers) if kind == "eagle3" else ()
    if texts.layers[-1] != last or (read and texts.layers != [*read, last]):
        raise ValueError(
            f"{kind} is trained on layers {[*read, last]}, and the collection has {texts.layers}"
        )
