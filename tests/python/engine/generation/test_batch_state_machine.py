"""The loop beside texts generated alone: whatever happened before, and whatever stops it."""

from __future__ import annotations

import gc
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hypothesis.stateful as hs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import kvctl
from fake_heads import SumHead, SumMedusa
from fake_runner import VOCABULARY, FakeRunner
from kvctl import Sampling, generate
from kvctl.draft import (
    Drafter,
    HeadDrafter,
    LookupDrafter,
    MedusaDrafter,
    ModelDrafter,
    TokenRecyclingDrafter,
)
from kvctl.engine import sole_use
from kvctl.text import Tokenizer
from line_interrupt import interrupt_at_line
from random_drafter import RandomDrafter

KVCTL = Path(kvctl.__file__).parent
FOLDERS = tuple(f"{KVCTL / name}/" for name in ("engine", "draft"))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
SAMPLINGS = (
    None,
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.2),
)
POINTS = ("start", "propose", "observe", "finish", "on_tokens", "prefill", "decode", "verify",
          "add_sequence", "commit", "remove_sequence")  # fmt: skip


@cache
def model_text():
    """A tokenizer whose tokens are letters."""
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(LETTERS)}, "merges": []}
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {"model": model, "decoder": {"type": "ByteLevel", **flags}}
    return SimpleNamespace(tokenizer=Tokenizer(json.dumps(content)))


def make_runner(**options):
    runner = FakeRunner(**options)
    runner.text = model_text()
    return runner


@cache
def alone(prompt, length, sampling, seed, request_id, stop, stop_strings):
    """What a prompt gives with a cache for itself, and why it ends."""
    one = generate(
        make_runner(),
        list(prompt),
        max_new_tokens=length,
        sampling=SAMPLINGS[sampling],
        seed=seed,
        request_id=request_id,
        stop=stop,
        stop_strings=stop_strings,
    )
    return one.tokens, one.finish_reason


class Broken(Exception):
    """What is thrown in."""


class Faulty(Drafter):
    """Another drafter, any of whose methods may raise, before or behind its work."""

    def __init__(self, inner, fault):
        self.inner, self.fault = inner, fault
        self.hidden_layers, self.wants_logits = inner.hidden_layers, inner.wants_logits

    def _call(self, name, *args):
        return self.fault.around(name, getattr(self.inner, name))(*args)

    def start(self, request):
        self._call("start", request)

    def propose(self, requests, budget):
        return self._call("propose", requests, budget)

    def observe(self, results):
        self._call("observe", results)

    def finish(self, request):
        self._call("finish", request)


class Fault:
    """Raises once, at the n-th call of what it was put around."""

    def __init__(self, point, at, error, behind):
        self.point, self.left, self.error, self.behind = point, at, error, behind
        self.raised = False

    def raises(self):
        self.raised = True
        raise self.error("here")

    def around(self, name, call):
        if name != self.point:
            return call

        def wrapped(*args, **options):
            self.left -= 1
            here = self.left == 0
            if here and not self.behind:
                self.raises()
            out = call(*args, **options)
            if here:
                self.raises()
            return out

        return wrapped


class Tolerant(RandomDrafter):
    """Checks the loop's calls, but not behind an interrupt: a text may finish twice, or unbegun."""

    def start(self, request):
        self.finish(request)
        super().start(request)

    def finish(self, request):
        self.texts.pop(request.id, None)
        self.proposed.pop(request.id, None)

    def propose(self, requests, budget):
        self.proposed.clear()
        return super().propose(requests, budget)


TEXTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30).map(tuple),
        st.sampled_from((1, 2, 7, 25, 50)),  # length
        st.integers(0, len(SAMPLINGS) - 1),
        st.integers(0, 2),  # seed
        st.integers(0, 3),  # request id
    ),
    min_size=1,
    max_size=6,
)
KINDS = ("none", "lookup", "chain", "random", "hidden", "model", "recycling", "head", "medusa",
         "head_and_lookup")  # fmt: skip
CALL = {
    "texts": TEXTS,
    "kind": st.sampled_from(KINDS),
    "stop": st.sets(st.integers(0, VOCABULARY - 1), max_size=2).map(lambda s: tuple(sorted(s))),
    "strings": st.sets(st.text(LETTERS, min_size=1, max_size=2), max_size=2).map(
        lambda s: tuple(sorted(s))
    ),
    "most": st.sampled_from((None, 1, 2, 4)),
}


class Loop(hs.RuleBasedStateMachine):
    """Calls of generate on one runner, with drafters that live on, beside other sequences."""

    @hs.initialize(
        pages=st.integers(8, 24), sequences=st.integers(2, 8), chunk=st.sampled_from((8, 64))
    )
    def begin(self, pages, sequences, chunk):
        self.runner = make_runner(pages=pages, page_size=16, sequences=sequences, chunk=chunk)
        self.draft_model = FakeRunner(pages=12, sequences=4)
        self.head = SumHead(pages=12, sequences=4)
        self.foreign = {}
        self.drafters = {
            "none": None,
            "lookup": LookupDrafter(),
            "chain": LookupDrafter(length=5, branches=False),
            "random": Tolerant(1),
            "hidden": Tolerant(2, hidden_layers=(1, 4)),
            "model": ModelDrafter(self.draft_model, length=3),
            "recycling": TokenRecyclingDrafter(nodes=12),
            "head": HeadDrafter(self.head, branching=2, beam=2, length=3),
            "medusa": MedusaDrafter(SumMedusa(), nodes=12),
            "head_and_lookup": HeadDrafter(self.head) | LookupDrafter(),
        }

    @hs.rule(length=st.integers(1, 60))
    def occupy(self, length):
        """Somebody else takes room, but leaves enough for the longest text alone."""
        cache = self.runner.cache
        fits = cache.num_available_pages - -(-length // 16) >= 6
        if self.foreign or not fits:
            return
        cache.add_sequence(900)
        self.runner.prefill([900], [[1] * length])
        self.foreign = {900: [1] * length}

    @hs.rule()
    def vacate(self):
        for seq_id in self.foreign:
            self.runner.cache.remove_sequence(seq_id)
        self.foreign = {}

    @hs.rule(**CALL)
    def every_text_is_the_text_alone(self, texts, kind, stop, strings, most):
        self.check(texts, stop, strings, self.call(texts, kind, stop, strings, most))

    @hs.rule(
        **CALL,
        point=st.sampled_from(POINTS),
        at=st.integers(1, 12),
        error=st.sampled_from((Broken, KeyboardInterrupt)),
        behind=st.booleans(),
    )
    def something_raises(self, texts, kind, stop, strings, most, point, at, error, behind):
        # A drafter that raises before it forgets a text keeps it by its own fault.
        fault = Fault(point, at, error, behind or point == "finish")
        try:
            found = self.call(texts, kind, stop, strings, most, fault)
        except error:
            assert fault.raised
        else:
            assert not fault.raised
            self.check(texts, stop, strings, found)

    @hs.rule(**CALL, line=st.integers(1, 4000))
    def an_interrupt_at_any_line(self, texts, kind, stop, strings, most, line):
        try:
            with interrupt_at_line(line, FOLDERS, ("sole_use.py",)):
                found = self.call(texts, kind, stop, strings, most)
        except KeyboardInterrupt:
            pass
        else:
            self.check(texts, stop, strings, found)

    def call(self, texts, kind, stop, strings, most, fault=None):
        drafter, runner, options = self.drafters[kind], self.runner, {}
        undo = []
        if fault is not None:
            if drafter is not None:
                drafter = Faulty(drafter, fault)
            options["on_tokens"] = fault.around("on_tokens", lambda i, tokens: None)
            for owner in (runner, runner.cache):
                for name in POINTS:
                    if hasattr(owner, name):
                        setattr(owner, name, fault.around(name, getattr(owner, name)))
                        undo.append((owner, name))
        try:
            return generate(
                runner,
                [list(prompt) for prompt, *_ in texts],
                max_new_tokens=[length for _, length, *_ in texts],
                sampling=[SAMPLINGS[one] for _, _, one, *_ in texts],
                seed=[seed for *_, seed, _ in texts],
                request_id=[id for *_, id in texts],
                stop=stop,
                stop_strings=strings,
                drafter=drafter,
                max_batch=most,
                **options,
            )
        finally:
            for owner, name in undo:
                delattr(owner, name)

    def check(self, texts, stop, strings, found):
        for asked, one in zip(texts, found, strict=True):
            assert (one.tokens, one.finish_reason) == alone(*asked, stop, strings)

    @hs.invariant()
    def nothing_stays_behind(self):
        cache = self.runner.cache
        assert cache.committed == self.foreign
        assert not any(cache.pending.values())
        assert self.draft_model.cache.committed == self.head.cache.committed == {}
        for kind in ("random", "hidden"):
            assert self.drafters[kind].texts == {}
        gc.collect(0)
        now = sole_use._uses.get(self.runner)
        assert now is None or now() is None or now()._thread is None


Loop.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
TestLoop = Loop.TestCase
