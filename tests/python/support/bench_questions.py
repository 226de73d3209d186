"""What the tests of benchmarks measure."""

from kvctl.bench import Question
from kvctl.bench.result import Configuration

QUESTIONS = [
    Question(81 + i, category, turns)
    for i, (category, turns) in enumerate(
        [
            ("writing", ("tell a story", "and again")),
            ("coding", ("write <b>code</b> & more",)),
            ("qa", ("what is it?",)),
            ("qa", ("who was it?",)),
            ("rag", ("read this", "and this", "and that")),
            ("rag", ("the last one",)),
        ]
    )
]
CONFIGURATIONS = [
    Configuration("lookup"),
    Configuration("lookup:length=3"),
    Configuration("lookup", batch=2),
]
