"""Answers in Spec-Bench's own format, one file for each configuration."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

from .result import Result


def save_answers(result: Result, directory: str | Path) -> list[Path]:
    """Write the answers as Spec-Bench's scripts read them.

    A line is a question: ``question_id``, ``category``, ``model_id`` and one of ``choices``, which
    has the turns' texts, ``decoding_steps``, ``new_tokens`` and ``wall_time`` by turn, and
    ``accept_lengths``, the tokens of every round. The prefill's token is in no round. The times
    are those of the fastest pass, the prefill included. Answers of a batch share its time.

    Returns
    -------
    list of Path
        One for each configuration, in their order.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, name in enumerate(map(file_name, result.names)):
        path = directory / f"{name}.jsonl"
        if path in paths:  # a character that was replaced was all the difference
            path = directory / f"{name}-{number}.jsonl"
        lines = []
        for id, group in groupby(result.of(number), key=lambda one: one.question_id):
            turns = list(group)
            choice = {
                "index": 0,
                "turns": [one.text for one in turns],
                "decoding_steps": [len(one.rounds) for one in turns],
                "new_tokens": [len(one.tokens) for one in turns],
                "wall_time": [one.least_seconds for one in turns],
                "accept_lengths": [one.emitted for turn in turns for one in turn.rounds],
            }
            line = {
                "question_id": id,
                "category": turns[0].category,
                "model_id": f"{Path(result.model).name}-{path.stem}",
                "choices": [choice],
            }
            lines.append(json.dumps(line) + "\n")
        path.write_text("".join(lines), encoding="utf-8")
        paths.append(path)
    return paths


def file_name(name: str) -> str:
    """Return a configuration's name with the characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.=-]+", "-", name).strip("-")
