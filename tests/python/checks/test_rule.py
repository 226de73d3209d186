"""A rule of the user's on random models."""

import numpy as np
import pytest

from command_line import run
from kvctl.checks.rule import check_rule, import_rule
from kvctl.referee import RandomModel

MINE = """
import numpy as np

def right(drafted, rng):
    node = depth = 0
    while True:
        token = rng.token(drafted.p(node), depth)
        holding = [c for c in drafted.children(node) if drafted.tree.tokens[c] == token]
        if not holding:
            return node, token
        node, depth = holding[0], depth + 1

def wrong(drafted, rng):
    return drafted.children(0)[0], 0

def broken(drafted, rng):
    raise KeyError("no")

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine_for_a_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_right_rule_passes(here):
    found = list(check_rule(import_rule("mine_for_a_test:right"), "independent", [RandomModel(1)]))
    assert len(found) == 3
    for one in found:
        assert one.verdict.lossless and one.error == ""
        assert one.verdict.mean_emitted == pytest.approx(one.ours["target_only"])
        assert one.ours["traversal"] >= one.ours["recursive"] - 1e-12


def test_the_command_tells_wrong_from_right(here):
    done = run("check", "rule", "mine_for_a_test:right", "--models", 1)
    assert done.returncode == 0 and done.stdout.count("lossless") == 3
    done = run("check", "rule", "mine_for_a_test:wrong", "--models", 1)
    assert done.returncode == 1 and "BIASED" in done.stdout and "instead of" in done.stdout
    done = run("check", "rule", "mine_for_a_test:broken", "--models", 1)
    assert done.returncode == 1 and "it raised KeyError" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("right", "module:function, not 'right'"),
        ("no_such_module_here:x", "cannot be imported"),
        ("mine_for_a_test:nobody", "cannot be imported"),
        ("mine_for_a_test:number", "is no function"),
    ],
)
def test_names_that_are_none(here, name, message):
    with pytest.raises(ValueError, match=message):
        import_rule(name)


def test_unknown_ways_of_drawing(here):
    with pytest.raises(ValueError, match=r"drawn must be independent.*got 'coupled'"):
        list(check_rule(np.add, "coupled", [RandomModel(0)]))
