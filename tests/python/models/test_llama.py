"""The graph of a compiled model against a NumPy model, on kvctl's cache and on TVM's own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from kvctl.models import RandomCheckpoint, export
from llama_reference import ReferenceLlama
from tiny_model import compile_tiny_model, tiny_config
from vm_model import VMModel

TOKENS = np.random.default_rng(7).integers(0, 256, 40).tolist()


def run_all(model):
    """Prefill, decode and verify two sequences; returns logits and the row of TOKENS of each."""
    model.add_sequence(0)
    model.add_sequence(1)
    logits = [model.prefill(0, TOKENS[:20])[None], model.prefill(1, TOKENS[:10])[None]]
    logits.append(model.decode([0, 1], [TOKENS[20], TOKENS[10]]))
    logits.append(model.verify([1, 0], [3, 8], TOKENS[11:14] + TOKENS[21:29]))
    return np.concatenate(logits), [19, 9, 20, 10, *range(11, 14), *range(21, 29)]


@pytest.mark.parametrize("model", ["tiny_model", "tiny_model_tvm"])
def test_prefill_decode_and_verify_agree_with_the_reference(model, request):
    logits, rows = run_all(VMModel(request.getfixturevalue(model)))
    reference = ReferenceLlama(RandomCheckpoint(tiny_config())).logits(TOKENS)
    np.testing.assert_allclose(logits, reference[rows], atol=2e-5)


def test_verifying_gives_the_very_bits_of_decoding(tiny_model):
    model = VMModel(tiny_model)
    model.add_sequence(0)
    model.add_sequence(1)
    model.prefill(0, TOKENS[:7])
    model.prefill(1, TOKENS[:3])
    decoded = np.concatenate([model.decode([0], [token]) for token in TOKENS[7:19]])
    model.popn(0, 12)
    verified = model.verify([0, 1], [12, 2], TOKENS[7:19] + TOKENS[3:5])
    np.testing.assert_array_equal(verified[:12], decoded)


def test_tied_embeddings_and_bfloat16_weights(tmp_path):
    changes = {"tie_word_embeddings": True}
    directory = compile_tiny_model(tmp_path / "tied", changes=changes, dtype="bfloat16")
    logits, rows = run_all(VMModel(directory))
    checkpoint = RandomCheckpoint(tiny_config(**changes))
    exact = ReferenceLlama(checkpoint).logits(TOKENS)[rows]
    # Rounding the weights moves the logits, and by no more than bfloat16's eight bits explain.
    error = np.abs(logits - exact).max()
    assert 1e-4 < error < 0.1, error


def test_a_token_outside_the_vocabulary_is_an_index_error(tiny_model):
    model = VMModel(tiny_model)
    model.add_sequence(0)
    with pytest.raises(IndexError, match=r"index 256 at position 1 .* 256 rows"):
        model.prefill(0, [3, 256])


def test_a_plain_weight_in_place_of_a_packed_one_is_refused(tiny_model):
    model = VMModel(tiny_model)
    model.params = model.plain
    with pytest.raises(Exception, match="uint8"):
        model.add_sequence(0) or model.prefill(0, [3])


def test_parameters_are_described_as_they_are_saved():
    config = tiny_config()
    _, params = export(config)
    by_name = {param.name: param for param in params}
    qkv = by_name["model.layers.1.self_attn.qkv_proj.weight"]
    assert (qkv.shape, qkv.dtype, qkv.packed) == ((256, 64), "float32", "kvctl.model.pack_linear")
    assert by_name["model.embed_tokens.weight"].packed is None
    assert len(params) == 3 + 6 * config.num_hidden_layers


@pytest.mark.parametrize("option", [{"cache": "paged"}, {"dtype": "float16"}])
def test_unknown_options_are_refused(option):
    with pytest.raises(ValueError, match="must be"):
        export(tiny_config(), **option)
