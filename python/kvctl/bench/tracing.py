"""Rounds of real generations recorded, for replays of every rule, tree and budget over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..verification import DraftedTree, Sampling, Trace
from .conversation import encode_turn, fits
from .questions import Question

if TYPE_CHECKING:
    from ..draft import Drafter
    from ..engine.protocol import Runner


class Recorder:
    """A rule that keeps every drafted tree with its distributions, and follows the target.

    Its text is plain sampling's, seed by seed, as under ``target_only``.

    Parameters
    ----------
    trace
        Where rounds go; plain steps are left out.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __call__(self, drafted: DraftedTree, rng: Any) -> tuple[int, int]:
        """Decide a round, and record it."""
        if len(drafted.tree) > 1:
            self.trace.add(
                drafted.tree,
                target_probs=drafted.target,
                draft_probs=drafted.draft,
                drawn=drafted.drawn,
            )
        node = depth = 0
        while not drafted.ends_at(node):
            token = rng.token(drafted.p(node), depth)
            holding = [c for c in drafted.children(node) if drafted.tree.tokens[c] == token]
            if not holding:
                return node, int(token)
            node, depth = holding[0], depth + 1
        return node, -1


def record(
    runner: Runner,
    questions: Sequence[Question],
    drafter: Drafter,
    *,
    rounds: int = 100,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    raw: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Trace:
    """Answer the first turns of questions, and record speculative rounds until there are enough.

    Parameters
    ----------
    runner, questions, drafter
        The model, what it is asked, and who drafts.
    rounds
        Stop after the question with which so many rounds are recorded. A round holds the
        vocabulary's distribution twice for each node, in float32.
    max_new_tokens, temperature, seed, raw
        As in `Settings`. The recorded distributions are those of the temperature.
    advance
        Called after each question.

    Raises
    ------
    ValueError
        If `rounds` or the temperature is not positive.
    """
    from ..engine.generate import generate

    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not temperature > 0:
        raise ValueError(f"a trace needs a temperature above 0, got {temperature}")
    recorder = Recorder(Trace())
    for place, question in enumerate(questions):
        if len(recorder.trace) >= rounds:
            break
        prompt = encode_turn(runner.text, question, [], raw=raw)
        if fits(runner, len(prompt), max_new_tokens):
            generate(
                runner,
                prompt,
                max_new_tokens=max_new_tokens,
                drafter=drafter,
                rule=recorder,
                sampling=Sampling(temperature=temperature),
                seed=seed,
                request_id=place,
                stop=runner.text.stop_tokens,
                stop_when=runner.text.stop_check(),
            )
        advance()
    return recorder.trace
