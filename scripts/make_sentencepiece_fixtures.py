"""Write small tokenizers that SentencePiece trained, as GGUF has them, and what they encode.

    python scripts/make_sentencepiece_fixtures.py

It needs sentencepiece, and writes ``tests/python/models/sentencepiece/{prefix,plain}.json``: one
that puts a space before every text, as Llama 2 and Phi-3 do, and one that does not, as Gemma.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece

OUTPUT = Path(__file__).resolve().parents[1] / "tests/python/models/sentencepiece"
WORDS = (
    "the a cat sat on mat and then it ran over to see what was there hello world when people "
    "speak they say something new every day naïve über 漢字 仮名 import def return value 12 345 "
    "6789"
).split()
TEXTS = [
    "",
    " ",
    "Hello world",
    " hello  world",
    "the cat sat on the mat.",
    "def f(x):\n    return x + 12\n",
    "naïve über 漢字 仮名 🙂",
    "  leading and trailing  ",
    "tabs\tand\r\nlines\n\n\nthree",
    "12345 6789, 3.14; it's",
    "<start>cat<end> the",
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def train(prefix: bool) -> Any:
    """Train one."""
    rng = random.Random(5)
    lines = [
        " ".join(rng.choice(WORDS) for _ in range(rng.randrange(3, 12))) + rng.choice(".,!?;")
        for _ in range(2000)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        control_symbols=["<start>", "<end>"],
        user_defined_symbols=[] if prefix else ["\n\n", "▁▁", "▁▁▁", "▁▁▁▁"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def describe(processor: Any, prefix: bool) -> dict[str, Any]:
    """Return its metadata, and the ids of all texts."""

    def kind(index: int) -> int:
        if processor.is_unknown(index):
            return UNKNOWN
        if processor.is_control(index):
            return CONTROL
        if processor.is_byte(index):
            return BYTE
        piece = processor.id_to_piece(index)
        return USER_DEFINED if piece in ("\n\n", "▁▁", "▁▁▁", "▁▁▁▁") and not prefix else NORMAL

    count = range(processor.get_piece_size())
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in count],
        "tokenizer.ggml.scores": [processor.get_score(index) for index in count],
        "tokenizer.ggml.token_type": [kind(index) for index in count],
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    # A control symbol in a text is text to SentencePiece: those texts are for programs that add it.
    texts = [text for text in TEXTS if "<start>" not in text]
    return {"metadata": metadata, "ids": {text: processor.encode(text) for text in texts}}


def main() -> None:
    """Write both."""
    for name, prefix in (("prefix", True), ("plain", False)):
        document = describe(train(prefix), prefix)
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        (OUTPUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: {len(text)} characters")


if __name__ == "__main__":
    main()
