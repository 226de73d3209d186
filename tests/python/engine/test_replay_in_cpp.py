"""A C++ program runs tokens again where Python does, and gets the same bits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from cmake_project import build_project
from recurrent_models import KINDS

SOURCE = Path(__file__).parents[2] / "cpp" / "replay"
TREE = ([5, 6, 7, 8], [-1, 0, 0, 2])


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    build = tmp_path_factory.mktemp("replay")
    build_project(SOURCE, build)
    return build / "replay"


def in_cpp(replay, model, keep_steps, operations):
    text = "\n".join(" ".join(map(str, operation)) for operation in operations)
    ran = subprocess.run(
        [replay, model, str(int(keep_steps))],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


class InPython:
    """The same operations through kvctl.ModelRunner of Python."""

    def __init__(self, model, keep_steps):
        self.runner = kvctl.ModelRunner.load(
            model,
            prefill_chunk_size=16,
            page_size=4,
            max_history=8,
            max_sequences=6,
            keep_steps=keep_steps,
        )
        self.cache = self.runner.cache
        self.points = {}

    def line(self, operation):
        name, seq_id, *rest = operation
        try:
            found = getattr(self, name)(seq_id, *rest) or ""
            result = f"{found}ok"
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            text = error.args[0]
            result = f"{type(error).__name__}: {text}"
        return f"{result} replayed {getattr(self.cache, 'replayed_tokens', 0)}"

    @staticmethod
    def lists(numbers):
        numbers, lists = list(numbers), []
        while numbers:
            count = numbers[0]
            lists.append(numbers[1 : 1 + count])
            numbers = numbers[1 + count :]
        return lists

    @staticmethod
    def bits(logits):
        words = np.from_dlpack(logits).view(np.uint32).ravel()
        return "".join(f"{word:08x}" for word in words) + " "

    def add(self, seq_id):
        self.cache.add_sequence(seq_id)

    def remove(self, seq_id):
        self.cache.remove_sequence(seq_id)

    def fork(self, seq_id, child, position):
        self.cache.fork_sequence(seq_id, child, position)

    def prefill(self, seq_id, *numbers):
        return self.bits(self.runner.prefill([seq_id], self.lists(numbers)))

    def decode(self, seq_id, *numbers):
        return self.bits(self.runner.decode([seq_id], self.lists(numbers)[0]))

    def verify(self, seq_id, *numbers):
        tree = kvctl.TokenTree(*self.lists(numbers))
        return self.bits(self.runner.verify([seq_id], [tree]))

    def window(self, seq_id, *numbers):
        tokens = self.lists(numbers)
        return self.bits(self.runner.forward([seq_id], tokens, mask=kvctl.Mask.window(3)))

    def commit(self, seq_id, *numbers):
        self.cache.commit([seq_id], self.lists(numbers))

    def drop(self, seq_id):
        self.cache.abort([seq_id])

    def popn(self, seq_id, n):
        self.cache.popn(seq_id, n)

    def checkpoint(self, seq_id):
        self.points[seq_id] = self.cache.checkpoint(seq_id)

    def rollback(self, seq_id):
        self.cache.rollback(seq_id, self.points[seq_id])

    def length(self, seq_id):
        return f"{self.cache.sequence_length(seq_id)} {self.cache.pending_length(seq_id)} "


def counted(*lists):
    return [number for one in lists for number in (len(one), *one)]


def program(rng, *, trees):
    """Random operations on three sequences; some of them are refused."""
    prompt = rng.integers(0, 64, 21).tolist()
    operations = [("add", 0), ("prefill", 0, *counted(prompt)), ("checkpoint", 0), ("add", 1)]
    operations += [("prefill", 1, *counted(prompt[:9])), ("checkpoint", 1)]
    for _ in range(40):
        seq_id = int(rng.integers(0, 2))
        tokens = rng.integers(0, 64, rng.integers(1, 6)).tolist()
        chain = [*range(-1, len(tokens) - 1)]
        kept = [*range(rng.integers(0, len(tokens) + 1))]
        branched = ("verify", seq_id, *counted(*TREE))
        operations += {
            0: [("decode", seq_id, *counted(tokens[:1]))],
            1: [("verify", seq_id, *counted(tokens, chain)), ("commit", seq_id, *counted(kept))],
            2: [branched, ("commit", seq_id, *counted([0, 2, 3]))] if trees else [],
            3: [("verify", seq_id, *counted(tokens, chain)), ("popn", seq_id, len(kept))],
            4: [("verify", seq_id, *counted(tokens, chain)), ("drop", seq_id)],
            5: [("popn", seq_id, int(rng.integers(0, 20)))],
            6: [("fork", seq_id, 5, int(rng.integers(-1, 12))), ("length", 5), ("remove", 5)],
            7: [("prefill", seq_id, *counted(tokens))],
            8: [("rollback", seq_id)],
            9: [("window", seq_id, *counted(tokens))],
        }[int(rng.integers(0, 10))]
        operations += [("drop", seq_id), ("length", seq_id)]
    return [*operations, ("decode", 0, 1, 7), ("decode", 1, 1, 7), ("decode", 9, 1, 7)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["snapshot", "replay", "steps not kept"])
def test_the_same_bits_as_in_python(replay, recurrent_models, kind, mode):
    model = recurrent_models(kind, emit_steps=mode != "replay")
    keep_steps = mode != "steps not kept"
    replayed, refused = 0, 0
    for seed in range(4):
        operations = program(np.random.default_rng(seed), trees=mode != "replay")
        there = in_cpp(replay, model, keep_steps, operations)
        here = InPython(model, keep_steps)
        for operation, found in zip(operations, there, strict=True):
            assert found == here.line(operation), operation
        replayed += here.cache.replayed_tokens
        refused += sum("ValueError" in line for line in there)
    assert replayed > 0
    assert refused > 0


def test_models_without_recurrent_layers(replay, tiny_model):
    operations = program(np.random.default_rng(4), trees=True)
    there = in_cpp(replay, tiny_model, True, operations)
    here = InPython(tiny_model, True)
    assert there == [here.line(operation) for operation in operations]
