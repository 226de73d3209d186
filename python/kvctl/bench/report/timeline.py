"""One generation token by token: which tokens were drafted, and the tree of each round."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ...tree import TokenTree
from ..result import Answer, Result


def shown_answers(result: Result) -> list[Answer]:
    """Return the answers that the report looks at closely, plain decoding's first."""
    drafted = [one for one in result.answers if one.trees]
    if not drafted:
        return []
    asked = (drafted[0].question_id, drafted[0].turn)
    return [one for one in result.answers if (one.question_id, one.turn) == asked]


def timeline(result: Result, answer: Answer) -> str:
    """Return an answer as HTML, each token in a span of the kind that it was emitted as.

    ``first`` came from the prefill, ``a1`` to ``a4`` were accepted at that depth (and deeper),
    ``bonus`` stands behind the accepted drafts of a round, ``plain`` is a round without drafts.
    """
    return "".join(_spans(result, answer))


def _spans(result: Result, answer: Answer) -> Iterator[str]:
    tokens = iter(answer.tokens)
    yield _span(result, next(tokens), "first", "from the prefill", 0)
    for number, one in enumerate(answer.rounds, start=1):
        if one.nodes == 0:
            about = f"round {number}: a plain step"
        else:
            about = f"round {number}: {one.accepted} accepted, {one.nodes} drafted"
        for place in range(one.emitted):
            token = next(tokens, None)
            if token is None:
                return
            if place < one.accepted:
                kind = f"a{min(place + 1, 4)}"
            else:
                kind = "plain" if one.nodes == 0 else "bonus"
            yield _span(result, token, kind, about, number)


def _span(result: Result, token: int, kind: str, about: str, number: int) -> str:
    text = result.tokens.get(str(token), f"<{token}>")
    shown = escape(text).replace("\n", "&#8629;<br>")
    return f'<span class="{kind}" data-round="{number}" title="{escape(about)}">{shown}</span>'


def round_trees(result: Result, answer: Answer) -> list[str]:
    """Return the drafted tree of each round as text, accepted nodes marked; "" for plain steps."""
    texts = []
    for tokens, parents, accepted in answer.trees:
        if len(tokens) == 1:
            texts.append("")
            continue
        tree = TokenTree(tokens, parents)
        text = tree.to_text(decode=lambda part: "".join(result.tokens[str(t)] for t in part))
        path = " -> ".join(repr(result.tokens[str(tokens[node])]) for node in accepted)
        texts.append(f"{text}\naccepted: {path or 'nothing'}")
    return texts


def telling_round(answer: Answer) -> int | None:
    """Return the round to draw: the one that accepted most, and of those the one of most nodes."""
    rated = [
        ((len(accepted), len(tokens)), number)
        for number, (tokens, _, accepted) in enumerate(answer.trees)
        if len(tokens) > 1
    ]
    return max(rated, key=lambda entry: entry[0])[1] if rated else None
