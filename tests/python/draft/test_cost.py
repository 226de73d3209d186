import math
import random

import pytest

from kvctl.draft import RoundCost

TRUE_SHAPE = {1: 1.0, 2: 1.1, 3: 1.15, 5: 1.3, 9: 1.5, 17: 2.4}


def test_uncalibrated_promises_nothing():
    cost = RoundCost(max_rows=9)
    assert not cost.calibrated and math.isnan(cost.seconds_per_step)
    assert [cost(n) for n in (1, 2, 9, 12)] == [1.0, 2.0, 9.0, 12.0]


def test_calibration_finds_the_shape_and_interpolates():
    cost = RoundCost(max_rows=17)
    asked = []

    def measure(rows):
        asked.append(rows)
        return 0.02 * TRUE_SHAPE[rows]

    cost.calibrate(measure)
    assert set(asked) == set(TRUE_SHAPE)
    for rows, value in TRUE_SHAPE.items():
        assert cost(rows) == pytest.approx(value)
    assert cost(7) == pytest.approx(1.4)
    assert cost.seconds_per_step == pytest.approx(0.02)


def test_a_slow_machine_moves_the_scale_and_not_the_shape():
    cost = RoundCost(max_rows=17)
    cost.calibrate(lambda rows: 0.02 * TRUE_SHAPE[rows])
    before = cost.shape
    for _ in range(20):
        cost.observe(9, 0.06 * TRUE_SHAPE[9])
    assert cost.seconds_per_step == pytest.approx(0.06)
    assert cost.shape == pytest.approx(before, rel=0.05)


def test_recovers_from_a_wrong_calibration():
    cost = RoundCost(max_rows=17)
    cost.calibrate(lambda rows: 0.02)  # "rows are free"
    for _ in range(10):
        for rows in (1, 9, 1):
            cost.observe(rows, 0.02 * TRUE_SHAPE[rows])
    assert cost(9) == pytest.approx(TRUE_SHAPE[9], rel=0.1)  # 17 rows still say "free"


def test_outliers_do_not_matter():
    cost = RoundCost(max_rows=17)
    cost.calibrate(lambda rows: 0.02 * TRUE_SHAPE[rows])
    rng = random.Random(1)
    for _ in range(200):
        rows = rng.choice(list(TRUE_SHAPE))
        disturbed = 5.0 if rng.random() < 0.1 else 1.0
        cost.observe(rows, disturbed * 0.02 * TRUE_SHAPE[rows])
    for rows, value in TRUE_SHAPE.items():
        assert cost(rows) == pytest.approx(value, rel=0.1)


def test_never_falls_with_more_rows_and_never_below_a_step():
    cost = RoundCost(max_rows=17)
    cost.calibrate(lambda rows: {2: 0.05, 9: 0.01}.get(rows, 0.02 * TRUE_SHAPE[rows]))
    shape = cost.shape[1:]
    assert shape == sorted(shape) and shape[0] == 1.0


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        RoundCost(max_rows=0)


def test_the_prefill_and_the_first_steps_say_what_rows_cost():
    cost = RoundCost(max_rows=17)
    cost.observe_prefill(101, 0.06)
    assert cost(17) == 17.0  # nothing is known of a step yet
    for seconds in (0.05, 0.02, 0.02, 0.02, 0.02):  # the first one made what is made once
        cost.observe(1, seconds)
    assert cost(17) == pytest.approx(1 + 1.5 * 2.0 * 16 / 100)
    settled = cost.shape
    for _ in range(20):
        cost.observe(1, 0.04)  # a machine that slows down, long after the prefill
    assert cost.shape == settled


def test_a_prefill_that_cost_as_much_as_its_tokens_promises_nothing():
    cost = RoundCost(max_rows=17)
    cost.observe_prefill(50, 50 * 0.2)
    cost.observe(1, 0.2)
    assert [cost(n) for n in (2, 9, 17)] == pytest.approx([2.0, 9.0, 17.0])


def test_the_first_timing_of_a_row_count_is_not_believed_alone():
    cost = RoundCost(max_rows=17)
    cost.observe_prefill(101, 0.06)
    cost.observe(1, 0.02)
    before = cost(9)
    cost.observe(9, 0.5)  # something was made once
    assert cost(9) <= 1.25 * before + 1e-9
    cost.observe(9, 0.03)
    assert cost(9) == pytest.approx(1.5, rel=0.2)


def test_a_batch_learns_the_ratios_and_a_later_single_text_its_own():
    """Rows were timed from eight on; then one text is alone, whose step costs half of eight."""
    cost = RoundCost(max_rows=64)
    for _ in range(20):
        cost.observe(8, 0.04)
        cost.observe(16, 0.05)
    assert cost(16) / cost(8) == pytest.approx(1.25, rel=0.02)
    for _ in range(20):
        cost.observe(1, 0.02)
    assert cost(1) == 1.0 and cost.seconds_per_step == pytest.approx(0.02, rel=0.02)
    assert cost(8) == pytest.approx(2.0, rel=0.02)
    assert cost(16) == pytest.approx(2.5, rel=0.02)


def test_what_was_learnt_is_recalled_and_then_corrected():
    first = RoundCost(max_rows=64)
    for _ in range(4):
        for rows, value in TRUE_SHAPE.items():
            first.observe(rows, 0.02 * value)
    points = first.points
    assert [rows for rows, _ in points] == [2, 3, 5, 9, 16]  # 17 counts as 16
    second = RoundCost(max_rows=64)
    second.recall(points)
    assert not second.calibrated  # it has no scale
    assert second(9) == pytest.approx(1.5, rel=0.02)
    assert [rows for rows, _ in second.points] == [rows for rows, _ in points]
    assert [c for _, c in second.points] == pytest.approx([c for _, c in points], rel=1e-6)
    for _ in range(20):
        second.observe(1, 0.02)
        second.observe(9, 0.02 * 4)
    assert second(9) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    "points",
    [
        [(1, 2.0)],
        [(0, 2.0)],
        [(-3, 2.0)],
        [(65, 2.0)],
        [(2, 0.5)],
        [(2, math.nan)],
        [(2, math.inf)],
    ],
)
def test_points_that_mean_nothing_are_left_out(points):
    cost = RoundCost(max_rows=64)
    cost.recall(points)
    assert cost.points == [] and cost(2) == 2.0


def test_many_row_counts_share_samples():
    cost = RoundCost(max_rows=256)
    rng = random.Random(2)
    for _ in range(3000):
        rows = rng.randint(1, 256)
        cost.observe(rows, 0.02 * (1 + 0.01 * (rows - 1)))
    assert len(cost.points) <= 40
    for rows in (1, 7, 30, 100, 256):
        assert cost(rows) == pytest.approx(1 + 0.01 * (rows - 1), rel=0.05)


def cost_of_a_batch(rows):
    """Seconds of a round: rows are cheap up to 16, and dear from there on."""
    return 0.05 + 0.0005 * min(rows, 16) + 0.002 * max(rows - 16, 0)


@pytest.mark.parametrize("remembered", [[], [(2, 1.1), (4, 1.2)], [(3, 1.3)]])
def test_a_batch_learns_what_its_rounds_cost_whatever_single_texts_left(remembered):
    """No round of a batch has a row count that single texts have timed."""
    cost = RoundCost(max_rows=128)
    cost.recall(remembered)
    cost.observe_prefill(512, 20 * cost_of_a_batch(1))
    for rows in [8] * 4 + [16, 32, 64, 8, 16, 32, 64, 8, 16, 32, 64]:
        cost.observe(rows, cost_of_a_batch(rows))
    for rows in (16, 32, 64):
        real = cost_of_a_batch(rows) / cost_of_a_batch(8)
        assert cost(rows) / cost(8) == pytest.approx(real, rel=0.02)


def test_nothing_remembered_is_nothing_known():
    cost = RoundCost()
    cost.recall([])
    assert not cost.points and not cost.calibrated
    cost.observe(8, 1.0)
    assert cost.seconds_per_step == pytest.approx(1.0 / 8)
