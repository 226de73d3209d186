"""The model of what a sharded step takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from tiny_model import tiny_config


@pytest.fixture
def model(monkeypatch):
    """The driver as a module."""
    monkeypatch.syspath_prepend(
        str(Path(__file__).parents[3] / "benchmarks" / "python" / "distributed")
    )
    import step_time

    return step_time


def test_weights_of_a_worker_are_those_of_its_parameters(model):
    """One worker reads every matrix but the embedding; four read a quarter each."""
    whole = model.worker_weights(model.LLAMA_3_70B, 1)
    assert whole == 80 * 8192 * (80 * 128 + 64 * 128 + 3 * 28672) + 8192 * 128256
    assert model.worker_weights(model.LLAMA_3_70B, 4) == pytest.approx(whole / 4, rel=0.01)


def test_parts(model):
    config = tiny_config()
    machine = model.Machine(1e9, 1e12, latency=1e-3, link=1e8, layer=1e-4, step=1e-5)
    work = model.Work(rows=3, context=100, weight_bytes=4, kv_bytes=4, activation_bytes=4)
    one = model.step_time(config, 1, work, machine)
    assert (one.latency, one.transfer, one.logits) == (0, 0, 0)
    assert one.kv == pytest.approx(100 * 2 * 2 * 32 * 2 * 4 / 1e9)
    two = model.step_time(config, 2, work, machine)
    assert two.latency == pytest.approx(2 * 2 * 1e-3)
    assert two.transfer == pytest.approx(4 * 2 * 0.5 * 3 * 64 * 4 / 1e8)
    assert two.logits == pytest.approx(1e-3 + 0.5 * 3 * 256 * 4 / 1e8)
    assert two.rest == one.rest == pytest.approx(2e-4 + 1e-5)
    apart = model.step_time(config, 2, replace(work, gathers=False), machine)
    assert apart.logits == pytest.approx(2e-3)
    whole = model.step_time(config, 2, replace(work, sums="whole"), machine)
    assert whole.latency == pytest.approx(2 * two.latency)
    assert whole.transfer == pytest.approx(2 * 0.5 * 3 * (4 * 32 + 96 + 2 * 64) * 4 / 1e8)
    slow = replace(machine, flops=1e3)
    assert model.step_time(config, 2, work, slow).total > 2 * 3 * 1e4 / 1e3


def test_prediction_of_llama_70b(model):
    """The figures of docs/machines/tensor_parallel.md, with its assumptions."""
    step = {
        workers: model.step_time(model.LLAMA_3_70B, workers, model.Work(1, 4096), model.H100)
        for workers in (2, 8)
    }
    assert 1e3 * step[8].total == pytest.approx(11, abs=1.0)
    assert step[8].latency > step[8].transfer
    work = model.Work(1, 4096, sums="whole")
    whole = model.step_time(model.LLAMA_3_70B, 8, work, model.H100)
    assert 1e3 * whole.total == pytest.approx(14.1, abs=0.1)
    assert step[2].weights == pytest.approx(4 * step[8].weights, rel=0.01)
    assert "| 8 | 1 |" in model.table(model.LLAMA_3_70B, model.H100, [model.Work(1)])
