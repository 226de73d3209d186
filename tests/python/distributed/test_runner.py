"""A model on two workers does what one does: its forwards, its cache, its drafters."""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from kvctl.distributed import ModelRunner
from runner_conformance import RunnerConformance

TEXT = np.random.default_rng(5).integers(0, 256, 90).tolist()


class TestTwoWorkers(RunnerConformance):
    pass


@pytest.fixture(scope="module")
def alone(tiny_model):
    return kvctl.ModelRunner.load(tiny_model, max_sequences=5, max_total_tokens=640)


@pytest.fixture
def both(runner, alone):
    """The same operations on two workers and on one."""
    alone.cache.clear()
    return runner, alone


def same(both, act):
    """Do something with either runner; what it returns is the same."""
    two, one = (np.from_dlpack(act(runner)).copy() for runner in both)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)


def each(both, act):
    for runner in both:
        act(runner)


def test_forks_checkpoints_trees_and_evictions(both):
    each(both, lambda r: r.cache.add_sequence(0))
    same(both, lambda r: r.prefill([0], [TEXT[:20]]))
    each(both, lambda r: r.cache.fork_sequence(0, 1, 11))
    points = {r: r.cache.checkpoint(0) for r in both}
    tree = kvctl.TokenTree([3, 4, 5, 6, 7], [-1, 0, 0, 1, 1])
    same(both, lambda r: r.verify([0, 1], [tree, tree]))
    each(both, lambda r: r.cache.commit([1, 0], [[0, 2], [0, 1, 4]]))
    same(both, lambda r: r.decode([0, 1], [8, 9]))
    each(both, lambda r: r.cache.rollback(0, points[r]))
    points.clear()
    same(both, lambda r: r.decode([0], [10]))
    each(both, lambda r: r.cache.popn(0, 3))
    each(both, lambda r: r.cache.evict(1, [0, 1, 5, 6, 7]))
    same(both, lambda r: r.decode([0, 1], [8, 9]))
    masks = [kvctl.Mask.window(4) & kvctl.Mask.causal(), None]
    same(both, lambda r: r.forward([0, 1], [TEXT[:5], TEXT[5:7]], mask=masks, pending=True))
    each(both, lambda r: r.cache.abort([0]))
    each(both, lambda r: r.cache.commit([1], [[0, 1]]))
    each(both, lambda r: r.cache.enable_sliding_window(0, 6, sinks=2))
    same(both, lambda r: r.prefill([0, 1], [TEXT[:30], TEXT[30:33]]))
    each(both, lambda r: r.cache.remove_sequence(1))
    same(both, lambda r: r.decode([0], [1]))
    assert both[0].cache.num_available_pages == both[1].cache.num_available_pages


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_generated_text(both, temperature):
    sampling = kvctl.Sampling(temperature=temperature) if temperature else None
    prompts = [TEXT[i : i + 7] * 2 for i in range(4)]
    two, one = (
        [
            g.tokens
            for g in kvctl.generate(
                r, prompts, max_new_tokens=24, sampling=sampling, seed=3, drafter=drafter
            )
        ]
        for r, drafter in zip(both, (kvctl.draft.LookupDrafter(), None), strict=True)
    )
    assert two == one


def test_out_of_pages_changes_nothing(both):
    each(both, lambda r: r.cache.add_sequence(0))
    same(both, lambda r: r.prefill([0], [TEXT[:20]]))
    runner = both[0]
    held = 0
    with pytest.raises(kvctl.OutOfPagesError):
        for held in range(1, 5):
            runner.cache.add_sequence(held)
            runner.prefill([held], [[1] * (runner.context_window_size - 1)])
    for seq_id in range(1, held + 1):
        runner.cache.remove_sequence(seq_id)
    same(both, lambda r: r.decode([0], [8]))


def test_what_one_worker_alone_cannot_do(runner):
    runner.cache.add_sequence(0)
    with pytest.raises(NotImplementedError, match="heads"):
        runner.cache.attention(0, np.zeros((1, 8, 32), "float32"))
    with pytest.raises(NotImplementedError, match="begin_forward"):
        runner.cache.begin_forward([0], [1])


def test_four_workers_with_the_whole_model_each(gloo, tiny_model, alone):
    with ModelRunner.load(tiny_model, workers=4, threads=1) as runner:
        alone.cache.clear()
        assert "workers=4" in repr(runner) and "workers=4" in runner.identity
        got = kvctl.generate(runner, TEXT[:9], max_new_tokens=12)
        assert got.tokens == kvctl.generate(alone, TEXT[:9], max_new_tokens=12).tokens


def test_mistakes_of_a_load(gloo, tiny_model, sharded_model, tmp_path):
    with pytest.raises(FileNotFoundError):
        ModelRunner.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"for 2 workers .* not 3"):
        ModelRunner.load(sharded_model, workers=3)
    with pytest.raises(ValueError, match="at least 1"):
        ModelRunner.load(tiny_model, workers=0)
    with pytest.raises(ValueError, match="come from gloo"):
        ModelRunner.load(tiny_model, collectives="smoke signals")
    with pytest.raises(ValueError, match="over nccl connect no workers on cpu"):
        ModelRunner.load(tiny_model, collectives="nccl")
    with pytest.raises(ValueError, match="the type alone"):
        ModelRunner.load(tiny_model, device="cuda:1")
