"""What `kvctl bench spec` measured: everything, and its JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from .._ffi.replace_file import replacing
from .._ffi.untrusted import parse_json_object, read_text, reading

#: Changes when a field changes its meaning or goes; new fields alone do not change it.
SCHEMA = "kvctl.bench.spec/1"
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Configuration:
    """One way to generate.

    Attributes
    ----------
    drafter : str or None
        As `kvctl.draft.make_drafter` takes it; None decodes plainly.
    rule : str
        As `kvctl.generate` takes it.
    batch : int
        How many questions are answered at once.
    """

    drafter: str | None
    rule: str = "auto"
    batch: int = 1

    @property
    def name(self) -> str:
        """All that tells it from others, in words."""
        parts = [self.drafter or "plain"]
        if self.rule != "auto":
            parts.append(self.rule)
        if self.batch > 1:
            parts.append(f"batch {self.batch}")
        return " / ".join(parts)

    @property
    def short_name(self) -> str:
        """The name with the last part alone of each directory."""
        if self.drafter is None:
            return self.name
        return replace(self, drafter=re.sub(r"=[^,+]*/(?=[^,+/])", "=", self.drafter)).name

    @property
    def plain(self) -> Configuration:
        """What it is compared with: the same batch without drafts."""
        return Configuration(None, "auto", self.batch)


class Round(NamedTuple):
    """One round of one text."""

    nodes: int
    """Drafted nodes that were verified; 0 in a plain step."""
    depth: int
    """Of the deepest of them."""
    reached: int
    """Depths at which a draft was up for acceptance: all before it on its path were accepted."""
    accepted: int
    """Accepted drafts."""
    emitted: int
    """New tokens: the accepted drafts and, unless the text ended, the one behind them."""


class Times(NamedTuple):
    """Seconds of one answer by part; see `kvctl.engine.stats.Statistics`."""

    prefill: float
    start: float
    draft: float
    forward: float
    verify: float
    commit: float
    replay: float = 0.0

    @property
    def behind_prefill(self) -> float:
        """All but the prefill."""
        return sum(self) - self.prefill


@dataclass
class Answer:
    """One turn of one question, as one configuration answered it.

    Attributes
    ----------
    configuration : int
        Index in `Result.configurations`.
    question_id, category, turn
        Whose answer it is; turns count from 0.
    prompt_tokens : int
        Tokens of the conversation so far.
    tokens : list of int
        The answer.
    text : str
        The same as text, without what ended it.
    finish_reason : str
        See `kvctl.Generation`.
    seconds : list of float
        Of each pass, the prefill included. Answers that were generated together share the time.
    times : Times
        Of the fastest pass.
    rounds : list of Round
        Of the fastest pass.
    trees : list
        For the one question that the report looks at closely: of each round the tokens and parents
        of the drafted tree and its accepted nodes, else empty.
    """

    configuration: int
    question_id: int | str
    category: str
    turn: int
    prompt_tokens: int
    tokens: list[int]
    text: str
    finish_reason: str
    seconds: list[float]
    times: Times
    rounds: list[Round]
    trees: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)

    @property
    def least_seconds(self) -> float:
        """Of the fastest pass: what disturbs a timing only makes it longer."""
        return min(self.seconds)


@dataclass
class Difference:
    """A text that is not plain decoding's, at its first different token."""

    configuration: int
    question_id: int | str
    turn: int
    index: int
    before: str
    """The end of what is the same."""
    plain: str
    drafted: str
    gap: float | None
    """How far the two tokens' logits are apart; None where that was not asked."""


@dataclass
class Result:
    """A whole measurement; answers are ordered by question, turn and configuration."""

    model: str
    questions: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    configurations: list[Configuration]
    answers: list[Answer]
    differences: list[Difference] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, str] = field(default_factory=dict)
    """The text of every token of the trees, by its number."""

    @property
    def names(self) -> list[str]:
        """What tables call the configurations: their short names, where these tell them apart."""
        short = [one.short_name for one in self.configurations]
        return [
            one.name if short.count(name) > 1 else name
            for one, name in zip(self.configurations, short, strict=True)
        ]

    def of(self, configuration: int) -> list[Answer]:
        """Return the answers of one configuration."""
        return [one for one in self.answers if one.configuration == configuration]

    def save(self, path: str | Path, *, answers: bool = True, **more: Any) -> None:
        """Write everything as JSON, an answer a line; `more` are fields to add, such as figures.

        Without its `answers` a result is small; `Result.load` reads it as one that has none.
        """
        with replacing(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            file.writelines(self._lines(answers, more))

    def _lines(self, answers: bool, more: dict[str, Any]) -> Iterator[str]:
        yield f'{{\n"schema": {json.dumps(SCHEMA)}'
        fields = {
            "model": self.model,
            "questions": self.questions,
            "settings": self.settings,
            "machine": self.machine,
            "configurations": [asdict(one) for one in self.configurations],
            "differences": [asdict(one) for one in self.differences],
            "skipped": self.skipped,
            "tokens": self.tokens if answers else {},
        }
        for name, value in (fields | more).items():
            yield f",\n{json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
        yield ',\n"answers": [\n'
        lines = [
            json.dumps(asdict(one), allow_nan=False) for one in (self.answers if answers else [])
        ]
        yield ",\n".join(lines) + "\n]\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is no such file, of another schema, or damaged.
        """
        content = parse_json_object(read_text(Path(path), max_bytes=MAX_BYTES), str(path))
        schema = content.get("schema")
        if schema != SCHEMA:
            raise ValueError(f"{path} is no result of kvctl bench spec: {schema!r}, not {SCHEMA!r}")
        with reading(str(path)):
            return _from_json(content)


def answer_from_json(content: dict[str, Any], configurations: int) -> Answer:
    """Return the answer that `asdict` made JSON values of; there are so many configurations."""
    answer = Answer(
        **{
            **content,
            "times": Times(*map(float, content["times"])),
            "rounds": [Round(*map(int, values)) for values in content["rounds"]],
            "trees": [tuple(values) for values in content["trees"]],
        }
    )
    if not 0 <= answer.configuration < configurations:
        raise ValueError(f"an answer is of configuration {answer.configuration}")
    if not answer.seconds or not all(second > 0 for second in answer.seconds):
        raise ValueError("an answer has no positive seconds")
    return answer


def _from_json(content: dict[str, Any]) -> Result:
    configurations = [Configuration(**one) for one in content["configurations"]]
    answers = [answer_from_json(one, len(configurations)) for one in content["answers"]]
    return Result(
        content["model"],
        dict(content["questions"]),
        dict(content["settings"]),
        dict(content["machine"]),
        configurations,
        answers,
        [Difference(**one) for one in content["differences"]],
        list(content["skipped"]),
        dict(content["tokens"]),
    )
