"""Write tests/python/text/fixtures/chat.json: conversations as transformers renders them.

Not a part of the tests, which read what this wrote: transformers is no dependency. In an
environment of its own: ``pip install transformers jinja2 && python scripts/make_chat_fixtures.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "tests/python/text/fixtures/templates"
OUTPUT = ROOT / "tests/python/text/fixtures/chat.json"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather; <b>für</b> heute & morgen.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [USER]},
    {"messages": [{"role": "system", "content": "Be kind."}, USER]},
    {"messages": [{"role": "system", "content": ""}, USER]},
    {"messages": [USER, ANSWER, {"role": "user", "content": " two\n lines \n"}]},
    {"messages": [USER, ANSWER], "add_generation_prompt": False},
    {"messages": [USER, {"role": "assistant", "content": "<think>\nso\n</think>\n\nYes"}, USER]},
    {
        "messages": [
            {"role": "user", "content": "{{ 1 }} {% if %} \u6f22\u5b57 \U0001f600 <|im_end|>"}
        ]
    },
    {"messages": [ANSWER, ANSWER, USER]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [USER], "tools": [TOOL]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}]}]},
    {
        "messages": [
            {"role": "user", "content": "x", "name": None},
            {"role": "assistant", "content": None},
        ]
    },
    {"messages": [USER, {"role": "assistant", "content": "a", "reasoning": "why"}, USER]},
]


def random_template(rng: random.Random) -> str:
    """Return a template of loops, conditions, filters and whitespace control at random."""

    def dash() -> str:
        return rng.choice(["", "", "-"])

    def tag(text: str) -> str:
        return f"{{%{dash()} {text} {dash()}%}}"

    def space() -> str:
        return rng.choice(["", "", "\n", " ", "\n\n  ", "\t\n"])

    def value(depth: int = 0) -> str:
        plain = [
            "message.content",
            "message['role']",
            "bos_token",
            "eos_token",
            "pad_token",
            "loop.index0",
            "loop.last",
            "messages|length",
            "'lit\\n'",
            "message.get('content', 'none')",
            "messages[0].role",
            "ns.x",
            "nothing",
        ]
        if depth > 2 or rng.random() < 0.5:
            return rng.choice(plain)
        inner = value(depth + 1)
        return rng.choice(
            [
                f"({inner})|trim",
                f"({inner})|upper",
                f"({inner})|string|replace('i', 'j')",
                f"({inner})|tojson",
                f"({inner})|default('d')",
                f"({inner}) ~ ({value(depth + 1)})",
                f"({inner}) if loop.first else ({value(depth + 1)})",
                f"({inner})|string|length",
                f"({inner}).split('l')[-1]",
                f"({inner})[:3]",
                f"({inner})|string|capitalize",
                f"shout({inner})",
                f"({inner})|list|join('+')",
                f"({inner}) + ({value(depth + 1)})",
                f"'%s!' % ({inner})",
                f"({inner}).strip().lstrip('H')",
                f"{{'a': ({inner}), 'b': [1, true, none]}}|tojson(indent=2)",
                f"({inner})|e",
            ]
        )

    def test() -> str:
        return rng.choice(
            [
                "message.role == 'user'",
                "loop.first",
                "not loop.last",
                "message.content is string",
                "message.content is defined and message.content",
                "'l' in message.content",
                "tools",
                "tools is not none and loop.first",
                "add_generation_prompt",
                "loop.index0 % 2 == 0",
                "ns.x > 1",
                "documents is none",
                "message.content is mapping",
                "(message.role == 'user') != (loop.index0 % 2 == 0)",
            ]
        )

    def body(depth: int = 0) -> str:
        parts = []
        for _ in range(rng.randrange(1, 5)):
            kind = rng.random()
            if kind < 0.35:
                parts.append(f"{{{{{dash()} {value()} {dash()}}}}}")
            elif kind < 0.5:
                parts.append(rng.choice(["<|im_start|>", "[INST] ", "text", "<|end|>"]))
            elif kind < 0.7 and depth < 3:
                rest = f"{tag('else')}{space()}{body(depth + 1)}" if rng.random() < 0.5 else ""
                parts.append(f"{tag('if ' + test())}{space()}{body(depth + 1)}{rest}{tag('endif')}")
            elif kind < 0.76:
                parts.append(tag(f"set ns.x = ns.x + {rng.randrange(3)}"))
            elif kind < 0.82:
                parts.append(f"{tag('generation')}{body(depth + 1)}{tag('endgeneration')}")
            elif kind < 0.86:
                parts.append(
                    f"{tag('if ' + test())}{tag(rng.choice(['continue', 'break']))}{tag('endif')}"
                )
            elif kind < 0.88:
                parts.append(f"{tag('if ' + test())}{{{{ raise_exception('no') }}}}{tag('endif')}")
            elif kind < 0.94 and depth < 2:
                parts.append(f"{tag('for part in [1, 2]')}{{{{ part }}}}{space()}{tag('endfor')}")
            else:
                parts.append("{# a comment #}")
            parts.append(space())
        return "".join(parts)

    head = tag("set ns = namespace(x=0)") + space()
    head += tag("macro shout(text)") + "{{ text|upper }}!" + tag("endmacro") + space()
    loop = tag("for message in messages") + space() + body() + tag("endfor") + space()
    tail = tag("if add_generation_prompt") + "{{ '<|a|>\\n' }}" + tag("endif") + space()
    return head + loop + tail


def main() -> None:
    """Render everything, write the fixtures."""
    import transformers
    from tokenizers import Tokenizer, models

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=250, help="how many random templates")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    library = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<unk>": 2}, []))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library, **SPECIAL)

    def render(template: str, conversation: dict[str, Any]) -> str | None:
        try:
            text: str = tokenizer.apply_chat_template(
                conversation["messages"],
                chat_template=template,
                tools=conversation.get("tools"),
                add_generation_prompt=conversation.get("add_generation_prompt", True),
                tokenize=False,
            )
        except Exception:
            return None
        return text

    rng = random.Random(20)
    files = sorted(TEMPLATES.glob("*.jinja"))
    cases = [(file.stem, file.read_text(encoding="utf-8"), CONVERSATIONS) for file in files]
    for number in range(options.random):
        chosen = rng.sample(CONVERSATIONS, 2)
        cases.append((f"random{number}", random_template(rng), chosen))
    fixtures = [
        {
            "name": name,
            # A style's text is in its file.
            "template": None if name in {file.stem for file in files} else template,
            "renderings": [
                {
                    "conversation": CONVERSATIONS.index(conversation),
                    "text": render(template, conversation),
                }
                for conversation in conversations
            ],
        }
        for name, template, conversations in cases
    ]
    content = {
        "transformers": transformers.__version__,
        "special_tokens": SPECIAL,
        "conversations": CONVERSATIONS,
        "templates": fixtures,
    }
    lines = ",\n".join(json.dumps(fixture) for fixture in fixtures)
    head = json.dumps({**content, "templates": []}).removesuffix("]}")
    OUTPUT.write_text(f"{head}\n{lines}\n]}}\n", encoding="utf-8")
    texts = [r["text"] for f in fixtures for r in f["renderings"]]
    print(
        f"{len(texts)} renderings of {len(cases)} templates, {texts.count(None)} of them refusals"
    )


if __name__ == "__main__":
    main()
