"""The functions that compiled models call: kvctl.model.*, on kvctl's kernels and on oneDNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tvm_ffi

import kvctl  # noqa: F401

RNG = np.random.default_rng(1)


def model_op(name):
    return tvm_ffi.get_global_func(f"kvctl.model.{name}")


def tensor(array):
    return tvm_ffi.from_dlpack(np.ascontiguousarray(array))


def random(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def check_linear():
    """Products of several shapes, with and without residual, against float64."""
    for m, n, k in [(1, 1, 1), (1, 96, 64), (8, 200, 300), (3, 576, 1536), (200, 33, 65)]:
        weight, x, residual = random(n, k), random(m, k), random(m, n)
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        bound = k * 2.0**-23 * (np.abs(x) @ np.abs(weight.T))
        packed, out = model_op("pack_linear")(tensor(weight)), np.full((m, n), np.nan, np.float32)
        model_op("linear")(tensor(x), packed, tensor(out))
        assert np.all(np.abs(out - exact) <= bound)
        model_op("linear_add")(tensor(x), packed, tensor(residual), tensor(out))
        assert np.all(np.abs(out - exact - residual) <= bound + 1e-6 * np.abs(out))
        model_op("linear_add")(tensor(x), packed, tensor(out), tensor(out))  # in place
        assert np.all(np.abs(out - 2 * exact - residual) <= 3 * bound + 1e-6 * np.abs(out))


def test_linear():
    check_linear()


def check_linear_in_a_process(environment):
    """Return the backend of a new process whose linear layers are right."""
    program = "import test_model_ops as t; t.check_linear(); print(t.model_op('backend')())"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "backend"),
    [
        ({"KVCTL_LINEAR": "onednn"}, "onednn"),
        ({"KVCTL_LINEAR": "own", "KVCTL_ISA": "baseline"}, "own baseline"),
    ],
)
def test_linear_on_other_backends(environment, backend):
    used = check_linear_in_a_process(environment)
    if backend == "onednn" and used != "onednn":
        pytest.skip("oneDNN is not installed")
    assert used == backend


@pytest.mark.parametrize("backend", ["own", "onednn"])
@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "1"},
        {"OMP_NUM_THREADS": "8", "OMP_THREAD_LIMIT": "3"},
        {"OMP_NUM_THREADS": "8", "OMP_DYNAMIC": "true"},
        {"OMP_NUM_THREADS": "4", "OMP_MAX_ACTIVE_LEVELS": "0"},
    ],
)
def test_linear_is_whole_with_fewer_threads_than_promised(backend, environment):
    """oneDNN leaves out what threads should do that OpenMP does not start."""
    check_linear_in_a_process({"KVCTL_LINEAR": backend, **environment})


@pytest.mark.parametrize("variable", ["KVCTL_ISA", "KVCTL_LINEAR"])
def test_a_setting_that_is_none_is_refused(variable):
    """A slip of the keyboard would measure something else than was meant."""
    program = "import test_model_ops as t; t.check_linear()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, variable: "bseline", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"the environment variable {variable} must be" in run.stderr
    assert "not 'bseline'" in run.stderr


def test_leading_axes_are_rows():
    weight, x = random(5, 7), random(2, 3, 7)
    out = np.empty((1, 6, 5), np.float32)
    model_op("linear")(tensor(x), model_op("pack_linear")(tensor(weight)), tensor(out))
    np.testing.assert_allclose(out.reshape(2, 3, 5), x @ weight.T, rtol=1e-5, atol=1e-5)


def check_slices():
    """A weight's rows packed alone give the bits that they give in the whole, wherever they lie."""

    def pack(weight, dtype):
        if dtype == "float32":
            return model_op("pack_linear")(tensor(weight))
        if dtype == "bfloat16":
            return model_op("pack_linear_bf16")(tensor(weight))
        blocks = model_op("quantize")(tensor(weight), int(dtype.removeprefix("int")))
        return model_op("pack_quantized")(blocks)

    n, k = 331, 416  # no multiple of a panel's width, nor of the inputs that are read together
    weight = random(n, k)
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        whole = pack(weight, dtype)
        for m in (1, 2, 7, 13, 50, 65):
            x, residual = random(m, k), random(m, n)
            wanted, added = np.empty((2, m, n), np.float32)
            model_op("linear")(tensor(x), whole, tensor(wanted))
            model_op("linear_add")(tensor(x), whole, tensor(residual), tensor(added))
            np.testing.assert_array_equal(added, wanted + residual)
            for begin, end in ((0, 166), (166, 331), (83, 166), (249, 331), (5, 6), (40, 57)):
                out = np.empty((m, end - begin), np.float32)
                model_op("linear")(tensor(x), pack(weight[begin:end], dtype), tensor(out))
                np.testing.assert_array_equal(out, wanted[:, begin:end])


@pytest.mark.parametrize("isa", ["", "baseline", "avx2", "avx2vnni", "avx512"])
def test_a_slice_of_the_outputs_has_the_same_bits(isa):
    """Workers whose sums are whole rely on it, on every instruction set."""
    program = "import test_model_ops as t; t.check_slices()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KVCTL_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_bfloat16_weights_take_half_the_memory():
    weight = random(64, 128)
    packed = [model_op(name)(tensor(weight)) for name in ("pack_linear", "pack_linear_bf16")]
    assert 1.9 < packed[0].shape[0] / packed[1].shape[0] < 2.1


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 8)])
def test_quantized_weights(bits, steps):
    weight, x = random(70, 96), random(9, 96)
    blocks = model_op("quantize")(tensor(weight), bits)
    assert blocks.shape == (70, 3, 34 if bits == 8 else 18)
    out = np.empty((9, 70), np.float32)
    packed = model_op("pack_quantized")(blocks)
    model_op("linear")(tensor(x), packed, tensor(out))
    error = np.abs(out - x @ weight.T).max() / np.abs(x @ weight.T).std()
    assert error < 8 / steps
    one = np.empty((1, 70), np.float32)
    model_op("linear")(tensor(x[4:5]), packed, tensor(one))
    np.testing.assert_array_equal(one[0], out[4])


def test_blocks_leave_no_holes_between_packed_weights():
    quantize, pack = model_op("quantize"), model_op("pack_quantized")
    packed = [pack(quantize(tensor(random(64, 64)), 8)) for _ in range(8)]
    starts = [np.from_dlpack(one).ctypes.data for one in packed]
    whole = -(-packed[0].shape[0] // 64) * 64
    assert np.count_nonzero(np.diff(starts) == whole) >= 6  # one may begin a slab


def test_weights_from_gguf_keep_their_blocks():
    """Its quantized weights, read as floats, become the same scales and integers again."""
    for quantization, bits in (("Q8_0", 8), ("Q4_0", 4)):
        kind = gguf.GGMLQuantizationType[quantization]
        blocks = gguf.quants.quantize(random(40, 128), kind)
        weight = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        ours = np.from_dlpack(model_op("quantize")(tensor(weight), bits))
        np.testing.assert_array_equal(ours.reshape(blocks.shape), blocks)


def test_the_other_layers():
    x, gain, ids = random(3, 20), random(20), np.array([2, 0], np.int32)
    out = np.empty_like(x)
    model_op("rms_norm")(tensor(x), tensor(gain), 1e-5, tensor(out))
    wanted = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain
    np.testing.assert_allclose(out, wanted, rtol=1e-5)
    half = np.empty((3, 10), np.float32)
    model_op("silu_mul")(tensor(x), tensor(half))
    np.testing.assert_allclose(half, x[:, :10] / (1 + np.exp(-x[:, :10])) * x[:, 10:], rtol=1e-5)
    rows = np.empty((2, 20), np.float32)
    model_op("take_rows")(tensor(x), tensor(ids), tensor(rows))
    np.testing.assert_array_equal(rows, x[ids])


PACKED = model_op("pack_linear")(tensor(random(4, 6)))
BYTES = np.zeros(160, np.uint8)
IDS = np.array([1, -1], np.int32)
OUT = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("op", "arguments", "kind", "message"),
    [
        ("linear", (random(2, 5), PACKED, OUT), ValueError, "x must be 2 rows of 6, not 2 of 5"),
        ("linear", (random(3, 6), PACKED, OUT), ValueError, "out must be 3 rows of 4, not 2 of 4"),
        ("linear", (random(2, 6), random(4, 6), OUT), TypeError, "must be uint8, not float32"),
        ("linear", (random(2, 6), BYTES, OUT), ValueError, "not a weight packed on this machine"),
        ("linear", (np.zeros((2, 6)), PACKED, OUT), TypeError, "x must be float32, not float64"),
        ("linear_add", (random(2, 6), PACKED, IDS, OUT), TypeError, "residual must be float32"),
        ("linear_add", (random(2, 6), PACKED, random(2, 3), OUT), ValueError, "2 rows of 4"),
        ("pack_linear", (random(3),), ValueError, "2 or more dimensions, not 1"),
        ("pack_linear", (random(0, 3),), ValueError, r"not \(0, 3\)"),
        ("quantize", (random(2, 40), 8), ValueError, "a multiple of 32 columns, not 40"),
        ("quantize", (random(2, 64), 5), ValueError, "bits must be 8 or 4, not 5"),
        ("pack_quantized", (np.zeros((2, 3, 20), np.uint8),), ValueError, "18 .int4., .*, not 20"),
        ("pack_quantized", (np.zeros((0, 3, 34), np.uint8),), ValueError, r"not \(0, 96\)"),
        ("silu_mul", (random(2, 3), random(2, 1)), ValueError, "two halves, not 3"),
        ("rms_norm", (OUT, OUT[0], -1.0, OUT), ValueError, "epsilon must be"),
        ("rms_norm", (OUT, OUT, 1e-5, OUT), ValueError, "weight must be 1 rows of 4, not 2"),
        ("take_rows", (random(2, 4), IDS, OUT), IndexError, "index -1 at position 1"),
    ],
)
def test_mistakes(op, arguments, kind, message):
    passed = [tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with pytest.raises(kind, match=message):
        model_op(op)(*passed)
