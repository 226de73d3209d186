"""Plots of masks, trees and acceptance: read back from what matplotlib was told to draw."""

import numpy as np
import pytest

from kvctl import Mask, PagedKVCache, TokenTree
from kvctl.draft import RoundCost
from kvctl.verification import AcceptanceStats

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib: pip install kvctl[plot]")


@pytest.fixture(autouse=True)
def _no_display():
    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def stats(reached, accepted):
    rounds = np.array([0, reached[0] - accepted[0], *accepted])
    return AcceptanceStats(np.array(reached), np.array(accepted), rounds)


def cache():
    """Three sequences: 1 is forked from 0 and goes on with pending drafts, 2 is alone."""
    made = PagedKVCache.create(
        num_layers=1, num_qo_heads=1, num_kv_heads=1, head_dim=8, max_total_tokens=64, page_size=4
    )
    qkv = np.zeros((10, 3, 8), np.float32)
    for id, length in ((0, 10), (2, 3)):
        made.add_sequence(id)
        with made.forward([id], [length]):
            made.attention(0, qkv[:length])
    made.fork_sequence(0, 1, 8)
    with made.forward([1], [2], mask=Mask.tree([-1, 0])):
        made.attention(0, qkv[:2])
    return made


def cost():
    learnt = RoundCost()
    for rows, seconds in ((1, 1.0), (2, 1.1), (4, 1.5)) * 3:
        learnt.observe(rows, seconds)
    return learnt


DRAW = [
    lambda **options: cache().plot(**options),
    lambda **options: cost().plot(**options),
    lambda **options: Mask.causal().plot(2, 5, **options),
    lambda **options: TokenTree.chain([1, 2]).plot(**options),
    lambda **options: stats([9, 4], [4, 1]).plot(**options),
]


@pytest.mark.parametrize("draw", DRAW)
def test_everything_that_draws_takes_axes_and_returns_them(draw):
    from matplotlib.figure import Figure

    given = Figure().add_subplot()
    assert draw(ax=given) is given
    new = draw()
    assert new is not given
    for axes in (given, new):
        axes.figure.canvas.draw()


def test_plot_draws_the_matrix():
    mask = Mask.window(3, 1)
    drawn = mask.plot(5, 12).images[0].get_array()
    assert (np.asarray(drawn, bool) == mask.to_numpy(5, 12)).all()


def ticks(axis):
    low, high = axis.get_view_interval()
    return [tick for tick in axis.get_ticklocs() if low <= tick <= high]


@pytest.mark.parametrize("num_new, num_columns", [(1, 1), (2, 3), (6, 4000), (700, 900)])
def test_ticks_are_rows_and_keys(num_new, num_columns):
    axes = Mask.causal().plot(num_new, num_columns)
    for axis, size in ((axes.xaxis, num_columns), (axes.yaxis, num_new)):
        locations = axis.get_ticklocs()
        assert all(location == int(location) for location in locations)
        assert 1 <= len(locations) <= 12 and 0 <= min(locations) and max(locations) < size


def test_sinks_before_a_long_past_are_seen():
    axes = Mask.window(1000, sinks=4).plot(6, 4000)
    shades = np.asarray(axes.images[0].get_array())
    assert shades.shape[1] <= 128  # a cell is wide enough to be seen
    assert (shades[:, 0] >= 0.4).all() and (shades[:, 1:50] == 0).all()
    assert (shades[:, 100:120] == 1).all()
    assert axes.get_xlim()[0] < -1  # the frame does not hide the first cell
    assert "32 to a cell" in axes.get_xlabel()


def test_the_last_cell_counts_its_own_keys():
    shades = np.asarray(Mask.full(np.ones((1, 131), bool)).plot(1, 131).images[0].get_array())
    assert shades.shape == (1, 66) and (shades == 1).all()


def test_masks_per_layer_and_head_are_drawn_below_each_other():
    heads = Mask.per_head([Mask.window(4), Mask.prefix_lm(30)], [0, 1, 1, 1])
    masks = [Mask.causal(), Mask.window(8, 2), heads]
    mask = Mask.per_layer(masks, [0, 1, 1, 1, 2, 0])
    axes = mask.plot(4, 40)
    titles = [text.get_text() for text in axes.texts]
    assert titles[:2] == ["layers 0, 5", "layers 1-3"]
    assert titles[2:4] == ["layer 4, KV head 0", "layer 4, KV heads 1-3"]
    expected = [Mask.causal(), Mask.window(8, 2), Mask.window(4), Mask.prefix_lm(30)]
    tops = []
    for image, part in zip(axes.images, expected, strict=True):
        assert (np.asarray(image.get_array(), bool) == part.to_numpy(4, 40)).all()
        _, _, bottom, top = image.get_extent()
        assert bottom - top == 4
        tops.append(top)
    assert np.all(np.diff(tops) > 4)  # none covers another
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2"] * 4


def labels(axes):
    return [text.get_text() for text in axes.texts]


def test_a_tree_of_64_nodes_has_its_labels_apart():
    rng = np.random.default_rng(0)
    parents = [-1, *(int(rng.integers(max(0, i - 20), i)) for i in range(1, 64))]
    axes = TokenTree(rng.integers(0, 50000, 64), parents).plot()
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 64
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_tokens_are_shown_as_their_text():
    words = ["$x$", " the", "\n", "世"]
    tree = TokenTree([0, 1, 2, 3], [-1, 0, 0, 1])
    axes = tree.plot(decode=lambda tokens: words[tokens[0]], accepted=[1, 3])
    axes.figure.canvas.draw()  # "$" starts no formula, and a missing glyph warns of nothing
    assert labels(axes) == ["0:'$x$'", "1:' the'", "2:'\\n'", "3:'\\u4e16'"]
    assert [text.get_weight() for text in axes.texts] == ["bold", "bold", "normal", "bold"]
    with pytest.raises(ValueError, match="accepted names node 4 of a tree of 4"):
        tree.plot(accepted=[4])
    with pytest.raises(TypeError, match="decode must return the text"):
        tree.plot(decode=lambda tokens: tokens)


def test_curves_share_axes_with_a_label_and_a_style_each():
    axes = stats([100, 70, 40], [70, 40, 15]).plot(label="block")
    stats([90, 50], [50, 20]).plot(label="token_wise", ax=axes)
    stats([9, 5], [5, 2]).plot(ax=axes)
    names = [text.get_text() for text in axes.get_legend().texts]
    assert [name.split(":")[0] for name in names[:2]] == ["block", "token_wise"]
    assert names[2].endswith("tokens per round")
    lines = [container.lines[0] for container in axes.containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 3
    assert axes.get_xlim()[1] > 3  # the deepest curve is whole
    assert ticks(axes.xaxis) == [1, 2, 3]


def test_a_title_becomes_a_legend_with_a_second_curve():
    axes = stats([10, 5], [5, 2]).plot()
    assert "tokens per round" in axes.get_title() and axes.get_legend() is None
    axes.set_title("mine")
    stats([10, 5], [5, 2]).plot(ax=axes)
    assert axes.get_title() == "mine" and len(axes.get_legend().texts) == 2
    axes = stats([10, 5], [5, 2]).plot()
    stats([9, 5], [5, 2]).plot(ax=axes)
    assert axes.get_title() == ""


def test_nothing_counted_draws_nothing():
    axes = AcceptanceStats().plot()
    axes.figure.canvas.draw()
    assert axes.get_title() == "no rounds" and ticks(axes.xaxis) == [1]


def test_the_page_table_shows_who_shares():
    drawn = cache()
    assert drawn.page_ids(1)[:2] == drawn.page_ids(0)[:2] and len(drawn.page_ids(1)) == 3
    axes = drawn.plot()
    bold = sorted(text.get_text() for text in axes.texts if text.get_weight() == "bold")
    assert bold == sorted(2 * [str(page) for page in drawn.page_ids(0)[:2]])
    assert len(axes.texts) == sum(len(drawn.page_ids(id)) for id in (0, 1, 2))
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == 1 and hatched[0].get_width() == 0.5  # 2 pending tokens of a page of 4
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"sequence {id}" for id in (0, 1, 2)
    ]
    assert axes.get_title() == "5 pages held, 2 of them shared; 11 free"
    with pytest.raises(KeyError):
        drawn.page_ids(7)


def test_evicted_pages_have_no_number():
    from kvctl.drawing.page_plot import PageRow, draw_pages

    axes = draw_pages([PageRow(5, [3, -1, 4], 11, 0)], 4, 0, None)
    assert [text.get_text() for text in axes.texts] == ["3", "4"]
    assert draw_pages([], 4, 9, None).get_title() == "0 pages held, 0 of them shared; 9 free"


def test_the_cost_curve_is_the_cost():
    learnt = cost()
    axes = learnt.plot(max_rows=5)
    assert list(axes.lines[0].get_ydata()) == [learnt(rows) for rows in range(1, 6)]
    learnt.plot(label="again", ax=axes)
    assert axes.lines[0].get_linestyle() != axes.lines[3].get_linestyle()
    assert RoundCost().plot().lines  # before anything was timed
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        learnt.plot(max_rows=0)
