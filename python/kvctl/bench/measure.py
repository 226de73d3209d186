"""Plain and speculative decoding measured in turns, question after question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._ffi.untrusted import reading
from ..draft import make_drafter
from ..engine.costs import new_cost, with_cost
from ..verification import Sampling
from .conversation import answer_text, encode_turn, fits
from .progress import Progress
from .questions import MAX_QUESTIONS, Question
from .recording import RecordingDrafter, plain_rounds, times_of
from .result import Answer, Configuration, answer_from_json
from .settings import Settings

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.protocol import Runner

_WARM_UP_TOKENS = 8


class Measurement:
    """Generates the answers of every configuration, in turns, and times them.

    Plain decoding is measured for every batch size, and is not named among the configurations. The
    conversations go on from plain decoding's answers, so that all configurations answer the same
    prompts.

    Nothing that one configuration learns reaches another one, so that its figures do not depend on
    the others: each pass makes new drafters, and each configuration learns on its own what rounds
    cost, beginning with its warm-up.

    Attributes
    ----------
    configurations : list of Configuration
        Those asked for, and plain decoding of each batch size before them.
    answers : list of Answer
        What was measured so far.
    skipped : list of dict
        Turns that have no room in the model's context.
    trees : dict
        By configuration, question and turn: the trees of the rounds.
    run_seconds : float
        What everything took but warming up and making the drafters.
    """

    def __init__(
        self,
        runner: Runner,
        questions: Sequence[Question],
        configurations: Sequence[Configuration],
        settings: Settings,
        *,
        progress: Progress | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._runner = runner
        self._questions = list(questions)
        self._places = {question.id: place for place, question in enumerate(questions)}
        self._settings = settings
        self._progress = progress
        self._advance = advance
        self.configurations: list[Configuration] = []
        for one in configurations:
            for new in (one.plain, one):
                if new not in self.configurations:
                    self.configurations.append(new)
        for one in self.configurations:
            if one.batch < 1:
                raise ValueError(f"a batch must be at least 1, got {one.batch}")
        self._costs = {one: new_cost() for one in self.configurations}
        self.answers: list[Answer] = []
        self.skipped: list[dict[str, Any]] = []
        self.trees: dict[tuple[int, int | str, int], list[Any]] = {}
        self.run_seconds = 0.0
        self._done: set[tuple[int, int, int]] = set()
        self._known: dict[tuple[int, int | str, int], Answer] = {}
        self._said: dict[int | str, list[str]] = {}

    @property
    def parts(self) -> int:
        """How many parts are noted: the groups of questions of every batch size and pass."""
        batches = {one.batch for one in self.configurations}
        groups = (-(-len(self._questions) // batch) for batch in batches)
        return self._settings.passes * sum(groups)

    def take_up(self, parts: Sequence[dict[str, Any]]) -> None:
        """Take the parts of an interrupted measurement, which `progress` returned, as done.

        Drafters that learn begin anew behind them.

        Raises
        ------
        ValueError
            If a part is damaged.
        """
        with reading("what was interrupted"):
            for part in parts:
                for content in part["answers"]:
                    answer = answer_from_json(content, len(self.configurations))
                    key = (answer.configuration, answer.question_id, answer.turn)
                    self.trees[key], answer.trees = answer.trees, []
                    self._known[key] = answer
                self._said.update({question: list(said) for question, said in part["said"]})
                self.skipped = list(part["skipped"])
                self.run_seconds += float(part["seconds"])
                self._done.add((int(part["pass"]), int(part["batch"]), int(part["group"])))

    def run(self) -> None:
        """Measure everything that is not done."""
        self._warm_up()
        for number in range(self._settings.passes):
            drafters = [self._make(one) for one in self.configurations]
            mark = perf_counter()
            # The smallest batch first: a conversation goes on from its plain answers.
            for batch in sorted({one.batch for one in self.configurations}):
                numbers = [i for i, one in enumerate(self.configurations) if one.batch == batch]
                for place, begin in enumerate(range(0, len(self._questions), batch)):
                    group = self._questions[begin : begin + batch]
                    if (number, batch, place) not in self._done:
                        self._group(group, _rotated(numbers, place), drafters)
                        seconds, mark = perf_counter() - mark, perf_counter()
                        self.run_seconds += seconds
                        self._note((number, batch, place), group, numbers, seconds)
                    for _ in numbers:
                        self._advance()
        self.answers = [self._known[key] for key in self._ordered()]

    def _note(
        self,
        place: tuple[int, int, int],
        group: Sequence[Question],
        numbers: Sequence[int],
        seconds: float,
    ) -> None:
        """Write down what a group's questions were answered."""
        if self._progress is None:
            return
        ids = [question.id for question in group]
        answers = [
            {**asdict(self._known[key]), "trees": self.trees[key]}
            for key in self._known
            if key[0] in numbers and key[1] in ids
        ]
        self._progress.add(
            dict(zip(("pass", "batch", "group"), place, strict=True))
            | {"seconds": seconds, "answers": answers, "skipped": self.skipped}
            | {"said": [(id, self._said[id]) for id in ids if id in self._said]}
        )

    def _ordered(self) -> list[tuple[int, int | str, int]]:
        return sorted(self._known, key=lambda key: (self._places[key[1]], key[2], key[0]))

    def _make(self, configuration: Configuration) -> RecordingDrafter | None:
        """Return a new drafter: one for all texts of a pass, which may lose what others gained."""
        if configuration.drafter is None:
            return None
        return RecordingDrafter(make_drafter(configuration.drafter, self._runner))

    def _warm_up(self) -> None:
        """Run every configuration for a few tokens: what is made once is not timed.

        Each with a drafter of its own, which goes again: one that holds a model is large.
        """
        prompt = encode_turn(self._runner.text, self._questions[0], [], raw=self._settings.raw)
        if not fits(self._runner, len(prompt), _WARM_UP_TOKENS):
            return
        for one in self.configurations:
            ids = range(one.batch)
            self._generate(one, self._make(one), [prompt] * one.batch, _WARM_UP_TOKENS, ids)

    def _group(
        self,
        group: Sequence[Question],
        numbers: Sequence[int],
        drafters: Sequence[RecordingDrafter | None],
    ) -> None:
        """Answer questions that belong together, turn by turn, by every configuration."""
        for turn in range(max(len(question.turns) for question in group)):
            asked, prompts = [], []
            for question in group:
                said = self._said.setdefault(question.id, [])
                if turn >= len(question.turns) or len(said) < turn:
                    continue
                prompt = encode_turn(
                    self._runner.text, question, said[:turn], raw=self._settings.raw
                )
                if fits(self._runner, len(prompt), self._settings.max_new_tokens):
                    asked.append(question)
                    prompts.append(prompt)
                else:
                    self._skip(question, turn, len(prompt))
            if not asked:
                continue
            # Plain decoding's answers come first where the next turn waits for them, whatever the
            # order in which the times are taken.
            for number in numbers:
                self._turn(number, drafters[number], asked, prompts, turn)
            for question in asked:
                plain = self._known[self._plain_of(numbers), question.id, turn]
                if len(self._said[question.id]) == turn:
                    self._said[question.id].append(plain.text)

    def _plain_of(self, numbers: Sequence[int]) -> int:
        return next(i for i in numbers if self.configurations[i].drafter is None)

    def _skip(self, question: Question, turn: int, tokens: int) -> None:
        entry = {"question_id": question.id, "turn": turn, "prompt_tokens": tokens}
        if entry not in self.skipped:
            self.skipped.append(entry)

    def _turn(
        self,
        number: int,
        drafter: RecordingDrafter | None,
        questions: Sequence[Question],
        prompts: Sequence[list[int]],
        turn: int,
    ) -> None:
        """Time one configuration on one turn of a group."""
        configuration = self.configurations[number]
        ids = [self._places[question.id] + turn * MAX_QUESTIONS for question in questions]
        begin = perf_counter()
        generations = self._generate(
            configuration, drafter, prompts, self._settings.max_new_tokens, ids
        )
        seconds = perf_counter() - begin
        times = [times_of(one) for one in generations]
        whole = sum(map(sum, times))
        for i, question in enumerate(questions):
            # Answers that were generated together have their parts of the time.
            share = seconds * sum(times[i]) / whole
            key = (number, question.id, turn)
            answer = self._known.get(key)
            if answer is not None and share >= answer.least_seconds:
                answer.seconds.append(share)
                continue
            generation = generations[i]
            self._known[key] = Answer(
                number,
                question.id,
                question.category,
                turn,
                len(prompts[i]),
                generation.tokens,
                answer_text(self._runner.text, generation.tokens),
                generation.finish_reason,
                [*(answer.seconds if answer is not None else []), share],
                times[i],
                plain_rounds(generation) if drafter is None else drafter.rounds(ids[i]),
            )
            self.trees[key] = [] if drafter is None else drafter.trees(ids[i])
        if drafter is not None:
            drafter.clear()

    def _generate(
        self,
        configuration: Configuration,
        drafter: Any,
        prompts: Sequence[list[int]],
        new_tokens: int,
        request_ids: Sequence[int],
    ) -> list[Generation]:
        from ..engine.generate import generate

        text, temperature = self._runner.text, self._settings.temperature
        with with_cost(self._runner, self._costs[configuration]):
            return generate(
                self._runner,
                prompts,
                max_new_tokens=new_tokens,
                drafter=drafter,
                rule=configuration.rule,
                sampling=Sampling(temperature=temperature) if temperature > 0 else None,
                seed=self._settings.seed,
                request_id=request_ids,
                stop=text.stop_tokens,
                stop_when=[text.stop_check() for _ in prompts],
                max_batch=configuration.batch,
            )


def _rotated(numbers: Sequence[int], by: int) -> list[int]:
    by %= len(numbers)
    return [*numbers[by:], *numbers[:by]]
