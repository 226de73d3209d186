"""kvctl.model.*: what models beyond Llama call between their linear layers, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm_ffi

import kvctl  # noqa: F401

RNG = np.random.default_rng(11)
ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def call(name, *arguments, shape):
    """Call an operation; returns its output, which starts as NaN."""
    out = np.full(shape, np.nan, np.float32)
    given = [tvm_ffi.from_dlpack(a) if isinstance(a, np.ndarray) else a for a in arguments]
    tvm_ffi.get_global_func(f"kvctl.model.{name}")(*given, tvm_ffi.from_dlpack(out))
    return out


def random(*shape):
    return RNG.standard_normal(shape, dtype=np.float32) * np.float32(2)


def rms(x, weight, epsilon):
    wide = x.astype(np.float64)
    return wide / np.sqrt(np.mean(wide * wide, -1, keepdims=True) + epsilon) * weight


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, rows):
    x = random(rows, 2 * 77)
    wide = ACTIVATIONS[name](x.astype(np.float64))
    np.testing.assert_allclose(call("activate", x, name, shape=x.shape), wide, atol=2e-6)
    gated = call("gated_activate", x, name, shape=(rows, 77))
    np.testing.assert_allclose(gated, wide[:, :77] * x[:, 77:], atol=2e-5)


def test_large_values_stay_finite():
    x = np.array([-1e30, -200.0, 200.0, 1e30], np.float32)
    for name in ACTIVATIONS:
        out = call("activate", x, name, shape=(4,))
        np.testing.assert_array_equal(out, np.maximum(x, 0))


def test_layer_norm():
    x, weight, bias = random(5, 33) + 100, random(33), random(33)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias
    found = call("layer_norm", x, weight, bias, 1e-5, shape=x.shape)
    np.testing.assert_allclose(found, wanted, atol=3e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_qk_norm(whole):
    q, k, group = 48, 24, 12
    qkv = random(3, q + 2 * k)
    weights = [random(q if whole else group), random(k if whole else group)]
    found = call("qk_norm", qkv, *weights, q, k, 1e-6, shape=qkv.shape)
    begin = 0
    for size, weight in zip((q, k), weights, strict=True):
        part = qkv[:, begin : begin + size].reshape(3, -1, len(weight))
        wanted = rms(part, weight, 1e-6).reshape(3, size)
        np.testing.assert_allclose(found[:, begin : begin + size], wanted, atol=5e-6)
        begin += size
    np.testing.assert_array_equal(found[:, q + k :], qkv[:, q + k :])


def test_elementwise():
    x, bias = random(4, 20), random(20)
    np.testing.assert_array_equal(call("add_bias", x, bias, shape=x.shape), x + bias)
    capped = call("soft_cap", x, 3.0, shape=x.shape)
    np.testing.assert_allclose(capped, 3 * np.tanh(x.astype(np.float64) / 3), atol=1e-6)
    np.testing.assert_array_equal(call("scale", x, 0.5, shape=x.shape), x * np.float32(0.5))
    added = call("scale_add", x, 0.5, x[::-1].copy(), shape=x.shape)
    np.testing.assert_array_equal(added, x * np.float32(0.5) + x[::-1])


@pytest.mark.parametrize("rotary", [8, 6])
def test_rotation(rotary):
    """Some elements of some heads, by frequencies of any kind."""
    positions = np.array([0, 1, 100_000], np.int32)
    frequencies = RNG.uniform(0, 1, rotary // 2)
    table = call("rope_table", positions, frequencies, 1.25, shape=(3, rotary))
    angle = positions[:, None] * frequencies
    wanted = 1.25 * np.concatenate([np.cos(angle), np.sin(angle)], -1)
    np.testing.assert_allclose(table, wanted, atol=1e-7)
    x = random(3, 5, 8)
    found = call("rotate", x, table, 3, shape=x.shape)
    wanted = x.astype(np.float64)
    half = rotary // 2
    a, b = x[:, :3, :half], x[:, :3, half:rotary]
    cosines, sines = table[:, None, :half], table[:, None, half:]
    wanted[:, :3, :half] = a * cosines - b * sines
    wanted[:, :3, half:rotary] = b * cosines + a * sines
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "message"),
    [
        ("activate", (random(3), "mish"), (3,), "silu, gelu, gelu_tanh or relu, not 'mish'"),
        ("gated_activate", (random(2, 3), "silu"), (2, 1), "two halves, not 3"),
        ("layer_norm", (random(2, 3), random(4), random(3), 1e-5), (2, 3), "weight must be 1 rows"),
        ("layer_norm", (random(2, 3), random(3), random(3), -1.0), (2, 3), "epsilon must be"),
        ("qk_norm", (random(2, 9), random(4), random(3), 3, 3, 1e-5), (2, 9), "do not divide 3"),
        ("qk_norm", (random(2, 5), random(3), random(3), 3, 3, 1e-5), (2, 5), "5 columns, fewer"),
        ("soft_cap", (random(3), 0.0), (3,), "cap must be finite and positive, not 0"),
        ("scale", (random(3), 1.0), (4,), "out must have 3 elements, not 4"),
        ("rotate", (random(1, 2, 4), random(1, 6), 2), (1, 2, 4), "cannot rotate 6 elements"),
        ("rotate", (random(1, 2, 4), random(1, 4), 3), (1, 2, 4), "of 3 heads in 2 heads of 4"),
        ("rotate", (random(2, 2, 4), random(1, 4), 2), (2, 2, 4), "table must be 2 rows of 4"),
    ],
)
def test_arguments_that_do_not_fit(name, arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        call(name, *arguments, shape=shape)
