"""Whether logits are the same bits: a model that keeps its promise, and models that do not."""

import numpy as np
import pytest

from command_line import run
from fake_runner import FakeRunner
from kvctl import ModelRunner, OutOfPagesError
from kvctl.checks.bitwise import _first_layer, _given_layers, check_bitwise
from kvctl.checks.threads import check_threads
from tiny_model import compile_tiny_model


class DeviousRunner(FakeRunner):
    """Logits that depend on how many rows a forward has, beyond `most`."""

    def __init__(self, most, by):
        super().__init__()
        self.abilities = frozenset()
        self._most, self._by = most, by

    def _rows(self, contexts):
        rows = super()._rows(contexts)
        if len(contexts) > self._most:
            rows[-1] += np.float32(self._by) * np.sign(np.arange(rows.shape[1]) - 20)
        return rows


def test_the_tiny_model_keeps_its_promise(tiny_model):
    runner = ModelRunner.load(tiny_model)
    found = list(check_bitwise(runner, rows=9, batch=3))
    assert [one.what for one in found][-4:] == [
        "9 rows",
        "a tree of 17 rows",
        "2 sequences",
        "3 sequences",
    ]
    assert all(one.same and one.where == "" for one in found)
    assert not any(id in runner.cache for id in range(3))


def test_masked_tokens_hide_no_difference():
    class Masked(DeviousRunner):
        def _rows(self, contexts):
            rows = super()._rows(contexts)
            rows[:, 7] = -np.inf
            return rows

    found = {one.what: one for one in check_bitwise(Masked(4, 1e-3), rows=8, batch=2)}
    assert found["4 rows"].same and not found["5 rows"].same
    assert found["5 rows"].difference == pytest.approx(1e-3, rel=0.01)


def test_a_difference_is_found_and_measured():
    found = {one.what: one for one in check_bitwise(DeviousRunner(4, 1e-3), rows=8, batch=2)}
    assert [what for what, one in found.items() if not one.same] == [
        "5 rows",
        "6 rows",
        "7 rows",
        "8 rows",
        "a tree of 15 rows",
    ]
    one = found["6 rows"]
    assert one.where == "row 5" and one.difference == pytest.approx(1e-3, rel=0.01)
    assert one.flips == 0


def test_changed_choices_are_counted():
    found = list(check_bitwise(DeviousRunner(1, 100.0), rows=4, batch=1))
    assert found[0].same and max(one.flips for one in found) >= 1


def test_threads_and_the_command(tiny_model):
    [finding] = check_threads(str(tiny_model), [1, 2], rows=3)
    assert finding.same
    with pytest.raises(RuntimeError, match="the process with 1 threads failed"):
        list(check_threads("no/such/model", [1]))
    done = run("check", "bitwise", tiny_model, "--rows", 3, "--batch", 2, "--threads", 1)
    assert done.returncode == 0 and "All logits are the same bits." in done.stdout
    done = run("check", "bitwise", tiny_model, "--threads", "x")
    assert done.returncode == 1 and "--threads takes positive numbers" in done.stderr


class LayeredRunner(DeviousRunner):
    """Returns hidden states of three layers; those from layer 1 on depend on the rows."""

    def __init__(self):
        super().__init__(2, 1e-3)
        self.abilities = frozenset(["hidden"])
        self.cache.num_layers = 3

    def forward(self, seq_ids, tokens, hidden):
        [new] = tokens
        begin = len(self.cache.committed[seq_ids[0]])
        self.cache.append(seq_ids[0], list(new))
        places = np.arange(begin, begin + len(new), dtype=np.float32)
        states = np.tile(places[:, None, None], (1, len(hidden), 4))
        if len(new) > self._most:
            states[-1, 1:] += np.float32(1e-3)
        return np.zeros((len(new), 40), np.float32), states


def test_the_first_layer_that_differs_is_named():
    found = {one.what: one for one in check_bitwise(LayeredRunner(), rows=4, batch=1)}
    assert found["3 rows"].where == "row 2, layer 1"
    assert found["2 rows"].same


def test_layers_of_a_compiled_model(tmp_path):
    directory = compile_tiny_model(
        tmp_path / "m", changes={"num_hidden_layers": 3}, hidden_layers=[0, 2]
    )
    runner = ModelRunner.load(directory)
    assert _given_layers(runner, [1, 2]) == [0, 2]
    assert _first_layer(runner, list(range(60)), 5) is None


def test_sequences_go_where_one_finds_no_room():
    runner = FakeRunner(pages=3)  # too few for a batch
    with pytest.raises(OutOfPagesError):
        list(check_bitwise(runner, rows=2, batch=4))
    assert not runner.cache.committed
