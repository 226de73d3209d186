"""Prompts to collect a model's answers to: a small grammar, and texts of the user's own.

The grammar makes questions of the six categories that ``kvctl bench`` reports, from lists of
things. It is no collection of questions: none of them is one of the benchmark's, and a seed makes
any number of different ones. Answers, not prompts, are what a head learns from; prompts only lead
the model to where it will be used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

_PEOPLE = "Maria Jonas Amina Pavel Chloe Rashid Ingrid Tomas Yuki Diego Hanna Kofi Olga Wei".split()
_PLACES = (
    "a mountain village",
    "a busy airport",
    "an old library",
    "a fishing port",
    "a school in the desert",
    "a night train",
    "a market hall",
    "an island with a volcano",
    "a flooded valley",
    "a workshop for violins",
)
_THINGS = (
    "lanterns",
    "bicycles",
    "clay pots",
    "radios",
    "umbrellas",
    "maps",
    "kites",
    "keys",
    "candles",
    "telescopes",
    "blankets",
    "carrots",
    "tickets",
    "chairs",
    "batteries",
)
_TOPICS = (
    "volcanoes",
    "photosynthesis",
    "the water cycle",
    "gravity",
    "democracy",
    "vaccines",
    "inflation",
    "glaciers",
    "magnets",
    "the human heart",
    "earthquakes",
    "solar panels",
    "recycling",
    "black holes",
    "coral reefs",
    "electric cars",
    "sleep",
    "honey",
    "tides",
    "the printing press",
    "penguins",
    "the internet",
    "chess",
    "rice",
    "wind turbines",
    "the stock market",
    "migration of birds",
    "old castles",
    "the ozone layer",
    "salt",
)
_FORMS = (
    "a short story",
    "an email",
    "a letter",
    "a diary entry",
    "an advertisement",
    "a news report",
    "a list of tips",
    "a poem",
    "a speech",
    "a dialogue",
    "a review",
    "a recipe",
)
_TASKS = (
    "removes duplicates from a list",
    "checks whether a word is a palindrome",
    "finds the largest number in a list",
    "counts the vowels of a text",
    "merges two sorted lists",
    "converts Celsius to Fahrenheit",
    "reads a text file line by line",
    "computes the factorial of a number",
    "sorts a dictionary by its values",
    "splits a text into words",
    "finds all prime numbers below n",
    "flattens a nested list",
    "computes the average of numbers",
    "generates a random password",
    "transposes a matrix",
    "parses a date",
    "finds the common elements of two lists",
    "counts the lines of a file",
)
_LANGUAGES = ("Python", "JavaScript", "C", "Java", "SQL", "Bash", "Python", "Python")
_VERBS = ("bought", "sold", "found", "repaired", "lost", "packed", "counted", "painted")
_FACTS = (
    "was built in {year} by {person}",
    "is {number} metres long",
    "closes at {hour} in the evening",
    "has {number} {things}",
    "costs {small} euros to enter",
    "was closed for {small} years because of a fire",
    "is visited by {number} people every day",
    "belongs to {person}, who lives nearby",
    "is famous for its {things}",
    "stands beside {place}",
)


class PromptGrammar:
    """Makes prompts, the same ones for the same seed.

    Parameters
    ----------
    seed
        Of Python's generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._makers: list[Callable[[], str]] = [
            self._writing,
            self._coding,
            self._summary,
            self._question,
            self._mathematics,
            self._text_question,
        ]

    def __iter__(self) -> Iterator[str]:
        """Yield prompts without end, each once, the categories in turn."""
        seen: set[str] = set()
        while True:
            for make in self._makers:
                prompt = make()
                while prompt in seen:
                    prompt = make()
                seen.add(prompt)
                yield prompt

    def _one(self, some: tuple[str, ...] | list[str]) -> str:
        return self._random.choice(some)

    def _number(self, most: int) -> int:
        return self._random.randint(2, most)

    def _writing(self) -> str:
        form, topic, place = self._one(_FORMS), self._one(_TOPICS), self._one(_PLACES)
        return self._one(
            [
                f"Write {form} about {topic}.",
                f"Write {form} that is set in {place} and mentions {self._one(_THINGS)}.",
                f"{self._one(_PEOPLE)} lives in {place}. Write {form} for a friend about it.",
                f"Write {self._number(9)} sentences about {topic} for children.",
                f"Describe {place} where somebody sells {self._one(_THINGS)}.",
                f"Give {self._number(8)} reasons why {topic} can be interesting.",
            ]
        )

    def _coding(self) -> str:
        task, language = self._one(_TASKS), self._one(_LANGUAGES)
        name, other = self._random.sample(["value", "data", "items", "result", "count", "n"], 2)
        code = (
            f"def process({name}):\n    out = []\n    for one in {name}:\n"
            f"        if one > {self._number(40)}:\n            out.append(one * "
            f"{self._number(9)})\n    return out\n"
        )
        return self._one(
            [
                f"Write a function in {language} that {task}.",
                f"Show how to write code in {language} that {task}, and explain it.",
                f"Rename {name} to {other} in this code and print all of it:\n\n{code}",
                f"Add a comment to each line of this code:\n\n{code}",
                f"What does this code do?\n\n{code}",
                f"Write a test for a {language} function that {task}.",
            ]
        )

    def _facts(self, name: str, count: int) -> str:
        sentences = []
        for fact in self._random.sample(_FACTS, count):
            filled = fact.format(
                year=self._random.randint(1650, 2020),
                number=self._number(900),
                small=self._number(30),
                hour=self._random.randint(4, 11),
                person=self._one(_PEOPLE),
                things=self._one(_THINGS),
                place=self._one(_PLACES),
            )
            sentences.append(f"{name} {filled}.")
        return " ".join(sentences)

    def _name(self) -> str:
        kind = self._one(["bridge", "museum", "tower", "garden", "theatre", "mill", "hotel"])
        return f"The {kind} of {self._one(_PEOPLE)}stad"

    def _summary(self) -> str:
        text = self._facts(self._name(), self._random.randint(4, 7))
        ask = self._one(
            [
                "Summarize this text in one sentence",
                "Write a short summary of the following text",
                "List the facts of this text",
                "Say in your own words what this text says",
                "Correct the text where it needs it, and print it again",
            ]
        )
        return f"{ask}: {text}"

    def _question(self) -> str:
        topic, other = self._random.sample(_TOPICS, 2)
        return self._one(
            [
                f"What should one know about {topic}?",
                f"Explain {topic} to somebody who has never heard of it.",
                f"How are {topic} and {other} related?",
                f"What is the most common mistake about {topic}?",
                f"Name {self._number(7)} facts about {topic}.",
                f"Why is it useful to learn about {topic}?",
                f"Who discovered something important about {topic}, and when?",
                f"Compare {topic} with {other}.",
            ]
        )

    def _mathematics(self) -> str:
        person, things = self._one(_PEOPLE), self._one(_THINGS)
        a, b, c = self._number(90), self._number(20), self._number(12)
        step = self._one([" Show your steps.", " Think step by step.", ""])
        return (
            self._one(
                [
                    f"{person} {self._one(_VERBS)} {a} {things}, then {b} more. How many is that?",
                    f"{a} {things} are packed in boxes of {c}. How many boxes are full?",
                    f"A shop sells {things} for {b} dollars each. What do {c} of them cost?",
                    f"What is {a * b} divided by {b}?",
                    f"{person} walks {c} kilometres an hour for {b} hours. How far is that?",
                    f"Solve {c} * x + {b} = {c * a + b} for x.",
                    f"What is {a} percent of {b * 10}?",
                    f"{things.capitalize()} weigh {b} grams each. How much do {a} weigh?",
                ]
            )
            + step
        )

    def _text_question(self) -> str:
        name = self._name()
        text = self._facts(name, self._random.randint(3, 6))
        ask = self._one(
            [
                f"What is special about {name.lower()}?",
                f"How old is {name.lower()}, as far as one can tell?",
                f"What does the text say about {name.lower()}?",
                "Which numbers does the text mention, and what do they stand for?",
                f"Would you recommend {name.lower()} to a visitor?",
            ]
        )
        return f"Text: {text}\n\nQuestion: {ask} Use only the text."


def passages(paths: list[Path], *, words: int = 120) -> Iterator[str]:
    """Yield prompts about passages of text files: to summarise them, explain them or go on.

    Paragraphs are joined up to about so many words. Fenced code stays in.
    """
    asks = (
        "Summarize this text",
        "Explain this text in simple words",
        "Write down the most important points of this text",
        "Continue this text",
    )
    count = 0
    for path in paths:
        held: list[str] = []
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            held.append(paragraph)
            if sum(len(one.split()) for one in held) >= words:
                yield f"{asks[count % len(asks)]}:\n\n" + "\n\n".join(held)
                count, held = count + 1, []
