"""Generation: plain and speculative, greedy and sampled, over one text or many."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy.typing as npt

from ..draft import Budget
from ..draft.savings import savings_of
from ..verification import RULES, Sampling
from ..verification.enumeration import Rule
from .arguments import text_arguments
from .batch import Batch
from .costs import cost_of, keep_costs
from .decide import Decider
from .drafting import Drafting
from .generation import Generation
from .grammar.arguments import restored_if_raises, text_grammars
from .loop_checks import room_for
from .rounds import Rounds
from .sole_use import SoleUse
from .text_state import TextState

if TYPE_CHECKING:
    from ..draft import Drafter
    from .grammar import Grammar
    from .protocol import Runner


@overload
def generate(
    runner: Runner,
    prompts: Sequence[int],
    *,
    max_new_tokens: int = ...,
    drafter: Drafter | None = ...,
    rule: str | Rule = ...,
    sampling: Sampling | None = ...,
    seed: int = ...,
    request_id: int = ...,
    stop: Collection[int] = ...,
    stop_strings: Sequence[str] = ...,
    stop_when: Callable[[int], bool] | None = ...,
    on_tokens: Callable[[list[int]], None] | None = ...,
    log_probs: bool = ...,
    grammar: Grammar | Callable[[], Grammar | None] | None = ...,
    seq_id: int = ...,
    max_batch: int | None = ...,
) -> Generation: ...


@overload
def generate(
    runner: Runner,
    prompts: Sequence[Sequence[int]] | Sequence[npt.NDArray[Any]],
    *,
    max_new_tokens: int | Sequence[int] = ...,
    drafter: Drafter | None = ...,
    rule: str | Rule = ...,
    sampling: Sampling | Sequence[Sampling | None] | None = ...,
    seed: int | Sequence[int] = ...,
    request_id: int | Sequence[int] = ...,
    stop: Collection[int] = ...,
    stop_strings: Sequence[str] = ...,
    stop_when: Sequence[Callable[[int], bool] | None] | None = ...,
    on_tokens: Callable[[int, list[int]], None] | None = ...,
    log_probs: bool = ...,
    grammar: Sequence[Grammar | None] | Callable[[], Grammar | None] | None = ...,
    seq_id: int = ...,
    max_batch: int | None = ...,
) -> list[Generation]: ...


def generate(
    runner: Runner,
    prompts: Any,
    *,
    max_new_tokens: Any = 256,
    drafter: Drafter | None = None,
    rule: str | Rule = "auto",
    sampling: Any = None,
    seed: Any = 0,
    request_id: Any = 0,
    stop: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    stop_when: Any = None,
    on_tokens: Any = None,
    log_probs: bool = False,
    grammar: Any = None,
    seq_id: int = 0,
    max_batch: int | None = None,
) -> Any:
    """Continue a prompt, or many at once.

    With rule "auto" a drafter changes no token, the text only comes sooner: greedily because
    verification compares with the target's own choice; sampled because the draw at each position
    uses the same random numbers with and without drafts. Nor do the other texts of a batch change
    any. Both presume equal logits: a model whose logits depend on the number of rows of a forward
    can choose differently near a tie.

    Many prompts share rounds, one forward for all. They enter in their order as there is room in
    the cache, and leave when they end. Where the cache is full, the text that entered last waits,
    and its tokens are forwarded again when it comes back.

    Parameters
    ----------
    runner
        The model and its cache.
    prompts
        (n,) at least one token; or a list of such prompts, of any lengths.
    max_new_tokens
        Stop after this many, or when the model's context window or the cache is full. A model
        with a sliding window goes on: it evicts old tokens. One for all, or one for each.
    drafter
        Where drafts come from; None decodes plainly.
    rule
        "auto": "greedy" at temperature 0, else "target_only". Or another rule of `kvctl.verify`, or
        a function as it takes. Their text has the target's distribution too, if they are lossless
        for what the drafter declares, but it is another text than plain sampling's.
    sampling
        How tokens are drawn; None takes the most probable one. Its stop tokens end the text too.
        One for all, or one for each.
    seed, request_id
        Name the random numbers. One for all, or one for each; with one `request_id` for many, the
        i-th prompt has ``request_id + i``.
    stop
        Tokens that end the text. What was drafted behind one is neither counted nor learnt from.
    stop_strings
        Strings that end the text, at the token that completes one. The runner needs a tokenizer.
    stop_when
        Called with each new token in order, a stop token too; true ends the text with that token.
        It must not depend on the round that a token came in. For many prompts one for each, since
        a text's end depends on what it has seen. Where it ends the text at a token that is not one
        of `stop`, the finish reason is "stop_string".
    on_tokens
        Called with the new tokens of each round as they come; for many prompts, with the index of
        the prompt before them.
    log_probs
        Also return the log-probability of every new token. Not for a rule of your own.
    grammar
        What the text must follow: an ``xgrammar.GrammarMatcher`` or another
        `kvctl.engine.Grammar`. A matcher follows one text, so many prompts need a list of them (an
        entry may be None), or a function that returns a new one for each. Tokens that it does not
        allow have probability 0 everywhere; tokens that it leaves no choice of are drafted without
        the drafter. The text ends where the grammar does. The matcher then stands behind the text.
    seq_id
        The sequences' ids are this and, for many, the numbers that follow; the cache must not have
        them. They are removed again when this returns or raises.
    max_batch
        The most texts that run at once; by default as many as the cache takes.

    Returns
    -------
    Generation, or list of Generation
        For each prompt the tokens, why the text ended, and what it took to make them.
        `Statistics.merge` adds up a batch.

    Raises
    ------
    ValueError
        If a prompt is empty, has a token outside the vocabulary or does not fit the model's context
        window or the cache; if an id is taken; if there is not one entry for each prompt; if the
        rule would be biased for the drafts (the message names one that is not); if a tree of the
        drafter has another root than the last token of its text, more nodes than its limit, or
        tokens outside the vocabulary; if texts would share a grammar's matcher, or a grammar allows
        no token, or refuses one.
    TypeError
        If the drafter proposes something else than a list of `kvctl.draft.Draft`, or a matcher
        lacks a method.
    RuntimeError
        If another thread generates on this runner; nothing has changed then.

    Notes
    -----
    Whatever is raised, by the drafter or a callback too, or a keyboard interrupt: all sequences of
    this call are removed, and the cache is as it was before; matchers take back what they accepted.
    """
    if isinstance(rule, str) and rule not in ("auto", *RULES):
        raise ValueError(f"rule must be auto, {', '.join(RULES)}, or a function; got {rule!r}")
    if log_probs and callable(rule):
        raise ValueError("a rule of your own gives no log_probs")
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    with SoleUse(runner):
        asked, one = text_arguments(
            runner,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            request_id=request_id,
            seq_id=seq_id,
            stop=stop,
            stop_strings=stop_strings,
            stop_when=stop_when,
            on_tokens=on_tokens,
        )
        grammars = text_grammars(grammar, len(asked), runner.vocab_size)
        texts = []
        for i, text in enumerate(asked):
            room, limit = room_for(runner, text.prompt, text.max_new_tokens)
            if text.seq_id in runner.cache:
                raise ValueError(f"sequence {text.seq_id} exists already")
            texts.append(TextState(i, text, room, limit, grammars[i], log_probs=log_probs))
        budget = Budget(cost_of(runner), savings=savings_of(drafter))
        decider = Decider(rule, log_probs=log_probs)
        drafting = Drafting(runner, drafter, budget, decider)
        rounds = Rounds(runner, drafting, budget, decider)
        with restored_if_raises(grammars):
            Batch(runner, rounds, drafting, texts, max_batch).run()
        generations = [text.generation() for text in texts]
        keep_costs(runner, sum(one.statistics.speculative_rounds for one in generations))
        return generations[0] if one else generations
