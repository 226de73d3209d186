"""GGUF's quantised tensors become blocks without rounding, whatever their type."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import gguf
import tvm_ffi

from checkpoint_files import write_gguf
from kvctl.models import compile_model
from kvctl.models.checkpoints.gguf.blocks import block_type, to_blocks
from kvctl.models.checkpoints.gguf.checkpoint import GGUFCheckpoint

RNG = np.random.default_rng(7)
SCALES = {  # where the float16 of a block lie
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
}
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")


def random_rows(kind, rows=6, inputs=512):
    """Rows of random bits whose scales are finite, as the file has them and as floats."""
    of = gguf.GGMLQuantizationType[kind]
    size, nbytes = gguf.GGML_QUANT_SIZES[of]
    raw = RNG.integers(0, 256, (rows, inputs // size, nbytes), dtype=np.uint8)
    for at in SCALES[kind]:
        halves = (RNG.standard_normal(raw.shape[:2]) / 64).astype(np.float16)
        raw[..., at : at + 2] = halves[..., None].view(np.uint8)
    raw = raw.reshape(rows, -1)
    return raw, gguf.quants.dequantize(raw, of).reshape(rows, inputs)


def halves(blocks, at):
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def dequantized(blocks):
    """Return the weights of blocks, as kernels/quantized_blocks.h defines them."""
    rows, blocks = len(blocks), blocks.reshape(-1, blocks.shape[-1])
    scale, step = halves(blocks, 0), halves(blocks, 2)
    if blocks.shape[1] == 22:
        scale = scale * blocks[:, 4:5].astype(np.float32)
        integers = np.concatenate([blocks[:, 6:] & 15, blocks[:, 6:] >> 4], axis=1)
        offset = step * blocks[:, 5:6].astype(np.float32)
    else:
        factors = np.ascontiguousarray(blocks[:, 4:6]).view(np.int8).astype(np.float32)
        scale = scale * np.repeat(factors, 16, axis=1)
        integers = np.ascontiguousarray(blocks[:, 8:]).view(np.int8)
        offset = step * blocks[:, 6:7].astype(np.float32)
    return (scale * integers.astype(np.float32) - offset).reshape(rows, -1)


@pytest.mark.parametrize("kind", SCALES)
def test_blocks_are_the_weights_that_the_gguf_package_reads_bit_for_bit(kind):
    raw, weight = random_rows(kind)
    for wanted in ("int4_offset", "int8_parts"):
        if wanted == "int8_parts" or kind in FOUR_BITS:
            np.testing.assert_array_equal(dequantized(to_blocks(raw, kind, wanted)), weight)


@pytest.mark.parametrize("kind", SCALES)
def test_a_product_is_that_of_the_weights_and_of_one_row_as_of_many(kind):
    raw, weight = random_rows(kind)
    x = RNG.integers(-127, 128, (19, 512)).astype(np.float32)
    x[:, ::32] = 127  # so that inputs are their own integers
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    allowed = 1e-5 * (np.abs(x) @ np.abs(weight).T) + 1e-5
    for wanted in ("int4_offset", "int8_parts"):
        if wanted == "int4_offset" and kind not in FOUR_BITS:
            continue
        pack, linear = (
            tvm_ffi.get_global_func(f"kvctl.model.{name}") for name in ("pack_quantized", "linear")
        )
        packed = pack(tvm_ffi.from_dlpack(to_blocks(raw, kind, wanted)))
        out, one = np.empty((19, 6), np.float32), np.empty((1, 6), np.float32)
        linear(tvm_ffi.from_dlpack(x), packed, tvm_ffi.from_dlpack(out))
        # A weight that is a difference of two far larger numbers has their error.
        slack = np.abs(x).sum(1, keepdims=True) * np.abs(weight).max() * 1e-4
        assert (np.abs(out - exact) <= allowed + slack).all()
        linear(tvm_ffi.from_dlpack(x[7:8].copy()), packed, tvm_ffi.from_dlpack(one))
        np.testing.assert_array_equal(one[0], out[7])


def test_a_scale_that_is_no_number_is_refused():
    raw, _ = random_rows("Q4_K")
    raw[2, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="not finite"):
        to_blocks(raw, "Q4_K", "int4_offset")


@pytest.mark.parametrize(
    ("kinds", "bits", "chosen"),
    [
        (["Q4_0", "Q4_0"], 4, "int4"),
        (["Q4_1"], 4, "int4_offset"),
        (["Q4_K", "Q4_0"], 4, "int4_offset"),
        (["Q4_K", "Q6_K"], 4, "int8_parts"),
        (["Q8_0"], 4, None),
        (["Q8_0"], 8, "int8"),
        (["Q8_0", "Q4_K"], 8, "int8_parts"),
        (["Q6_K"], 8, "int8_parts"),
        (["Q4_K", "F16"], 8, None),
        ([None], 8, None),
    ],
)
def test_the_blocks_that_keep_what_a_file_has(kinds, bits, chosen):
    assert block_type(kinds, bits) == chosen


@pytest.mark.parametrize(("dtype", "nbytes"), [("int4", 22), ("int8", 40)])
def test_a_model_of_q4_1_keeps_its_weights(tmp_path, dtype, nbytes):
    path = write_gguf(tmp_path / "model.gguf", kind="Q4_1")
    compiled = compile_model(path, tmp_path / "m", dtype=dtype)
    checkpoint = GGUFCheckpoint(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    blocks = checkpoint.blocks(name, {22: "int4_offset", 40: "int8_parts"}[nbytes])
    np.testing.assert_array_equal(dequantized(blocks), checkpoint.tensor(name))
    saved = b"".join(file.read_bytes() for file in sorted(compiled.glob("params_shard_*.bin")))
    assert blocks.shape[-1] == nbytes and blocks.tobytes() in saved


@pytest.mark.parametrize("kinds", [{"Q5_0"}, {"Q4_0", "Q5_0"}])
def test_int4_keeps_five_bits_without_an_offset_in_eight(tmp_path, monkeypatch, kinds):
    path = write_gguf(tmp_path / "model.gguf", kind="Q5_0")
    if len(kinds) > 1:  # as if every second layer had 4 bits
        of = lambda self, name: "Q4_0" if ".1." in name else "Q5_0"  # noqa: E731
        monkeypatch.setattr(GGUFCheckpoint, "kind", of)
    compiled = compile_model(path, tmp_path / "m", dtype="int4")
    saved = b"".join(file.read_bytes() for file in sorted(compiled.glob("params_shard_*.bin")))
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        weight = GGUFCheckpoint(path).tensor(f"model.layers.0.{part}.weight")
        quantize = tvm_ffi.get_global_func("kvctl.model.quantize")
        blocks = np.from_dlpack(quantize(tvm_ffi.from_dlpack(weight), 8))
        scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
        kept = scale * np.ascontiguousarray(blocks[..., 2:]).view(np.int8)
        np.testing.assert_array_equal(kept.reshape(weight.shape), weight)
        assert blocks.tobytes() in saved
