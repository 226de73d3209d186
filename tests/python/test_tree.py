"""kvctl.TokenTree."""

import pickle

import numpy as np
import pytest

import kvctl


def test_arrays_are_int32_and_read_only():
    tree = kvctl.TokenTree([9, 5, 7, 5], [-1, 0, 0, 1])
    for name, expected in {
        "tokens": [9, 5, 7, 5],
        "parents": [-1, 0, 0, 1],
        "rows": [0, 1, 2, 3],
        "depths": [0, 1, 1, 2],
    }.items():
        array = getattr(tree, name)
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, expected)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert len(tree) == 4 and tree.num_rows == 4 and not tree.is_chain


def test_views_outlive_the_tree():
    tokens = kvctl.TokenTree.chain(np.arange(1000)).tokens
    np.testing.assert_array_equal(tokens, np.arange(1000))


@pytest.mark.parametrize(
    ("tokens", "parents", "rows", "message"),
    [
        ([], [], None, "at least its root"),
        ([1, 2], [-1], None, "needs 2 parents, got 1"),
        ([1, 2], [-1, -1], None, "parent of node 1"),
        ([1, 2], [-1, 1], None, "earlier node"),
        ([1, 2**31], [-1, 0], None, "does not fit 32 bits"),
        ([[1, 2]], [-1, 0], None, "one dimension"),
        ([1, 2], [-1, 0], [], "one entry per node"),
        ([1, 2], [-1, 0], [0, 0], "parent's row must come before"),
    ],
)
def test_malformed_trees(tokens, parents, rows, message):
    with pytest.raises(ValueError, match=message):
        kvctl.TokenTree(tokens, parents, rows=rows)


def test_floats_are_not_tokens():
    with pytest.raises(TypeError, match="tokens must be integers"):
        kvctl.TokenTree([1.5], [-1])


def test_prune_returns_tree_and_map():
    tree = kvctl.TokenTree([0, 1, 2, 3, 4], [-1, 0, 0, 1, 2])
    pruned, nodes = tree.prune([0, 0.3, 0.4, 0.3, 0.9], 3)
    np.testing.assert_array_equal(nodes, [0, 2, 4])
    assert pruned == kvctl.TokenTree.chain([0, 2, 4])
    with pytest.raises(TypeError, match=r"n must be an integer, got 1\.5"):
        tree.prune(np.zeros(len(tree)), 1.5)
    with pytest.raises(ValueError, match="between 1 and"):
        tree.prune(np.zeros(5), 0)


def test_text_equality_pickle():
    tree = kvctl.TokenTree([9, 5, 5], [-1, 0, 0], rows=[0, 1, 1])
    assert str(tree) == "0:9\n|- 1:5\n`- 2:5"
    assert repr(tree) == "TokenTree([9, 5, 5], [-1, 0, 0], rows=[0, 1, 1])"
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert hash(pickle.loads(pickle.dumps(tree))) == hash(tree)
    assert tree != kvctl.TokenTree([9, 5, 5], [-1, 0, 0])
    assert str(kvctl.TokenTree.chain(range(100))) == "TokenTree(100 nodes, depth 99)"


def test_text_of_trees_of_any_size():
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(max(0, i - 20), i)) for i in range(1, 64))]
    tokens = rng.integers(0, 50000, 64)
    small = kvctl.TokenTree(tokens[:20], parents[:20])
    assert small.to_text() == str(small)
    tree = kvctl.TokenTree(tokens, parents)
    lines = tree.to_text().splitlines()
    assert len(lines) == 64
    assert {line.lstrip("|`- ") for line in lines} == {f"{i}:{t}" for i, t in enumerate(tokens)}
    lines = tree.to_text(max_nodes=10).splitlines()
    left_out = [int(line.split()[-2]) for line in lines if line.endswith(" more")]
    assert len(lines) - len(left_out) == 10 and sum(left_out) == 54
    chain = kvctl.TokenTree.chain(range(5000))  # no recursion
    assert chain.to_text(max_nodes=2) == "0:0\n`- 1:1\n   `- ... 4998 more"


def test_text_with_the_tokens_decoded():
    tree = kvctl.TokenTree([0, 1, 1], [-1, 0, 0])
    words = ["a", " b\n"]
    text = tree.to_text(decode=lambda tokens: "".join(words[token] for token in tokens))
    assert text == "0:'a'\n|- 1:' b\\n'\n`- 2:' b\\n'"
    with pytest.raises(TypeError, match=r"decode must return the text of \[token\], got int"):
        tree.to_text(decode=lambda tokens: tokens[0])
    with pytest.raises(ValueError, match="max_nodes must be at least 1, got 0"):
        tree.to_text(max_nodes=0)


def test_trees_cross_as_one_buffer():
    tree = kvctl.TokenTree([9, 5, 5], [-1, 0, 0], rows=[0, 1, 1])
    code = tree.encode()
    assert code.dtype == np.int32
    assert code.tolist() == [3, 2, 9, 5, 5, -1, 0, 0, 0, 1, 1]
    assert kvctl.TokenTree.decode(code) == tree
    for wrong in ([], code[:-1], [*code, 1], [0, 1], [1, 0, 5, -1, 0], [2, 2, 1, 1, -1, 5, 0, 1]):
        with pytest.raises(ValueError, match=r"buffer|parent"):
            kvctl.TokenTree.decode(wrong)
    with pytest.raises(ValueError, match="has 2 rows, not 3"):
        kvctl.TokenTree.decode([code[0], 3, *code[2:]])
    with pytest.raises(ValueError, match="must hold one encoded token tree, got 2"):
        kvctl.TokenTree.decode([*code, *code])
