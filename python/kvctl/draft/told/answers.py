"""The answers of texts, for drafters that are told them."""

from __future__ import annotations

from collections.abc import Sequence

from ..._ffi.integers import to_int32
from ..request import Request


class Answers:
    """The new tokens of each prompt, by the text's id."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._answers: list[list[int]] = [
            to_int32(answer, f"answers[{i}]").tolist() for i, answer in enumerate(answers)
        ]

    def ahead(self, request: Request, most: int) -> list[int]:
        """Return up to `most` tokens that follow; none where the text is another one.

        Raises
        ------
        ValueError
            If there is no answer for the text.
        """
        if not 0 <= request.id < len(self._answers):
            raise ValueError(
                f"there are {len(self._answers)} answers, and none for text {request.id}"
            )
        answer = self._answers[request.id]
        said = list(request.tokens[request.prompt_length :])
        if answer[: len(said)] != said:
            return []
        return answer[len(said) : len(said) + most]
