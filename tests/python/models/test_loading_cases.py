"""Checkpoints from public reports that were loaded wrongly, by their numbers; what is right now.

One file, since the cases are one numbered list.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from checkpoint_files import CONFIG, NAMES, RANDOM, write_gguf
from command_line import run
from gguf_files import byte_level_metadata, split
from huggingface_files import POINTER, cast, tokenizer_json, write_config, write_shards
from kvctl.models import compile_model, open_checkpoint
from kvctl.models.checkpoints.weights import load_parameter
from llama_reference import ReferenceLlama

WEIGHTS = {name: RANDOM.tensor(name) for name in NAMES}
Q_PROJ = "model.layers.0.self_attn.q_proj"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def halves(tensors=WEIGHTS):
    """Return the tensors as two shards."""
    names = list(tensors)
    middle = len(names) // 2
    return {
        "model-00001-of-00002.safetensors": {name: tensors[name] for name in names[:middle]},
        "model-00002-of-00002.safetensors": {name: tensors[name] for name in names[middle:]},
    }


def zeros(names=NAMES):
    return {name: np.zeros_like(WEIGHTS[name]) for name in names}


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    write_config(path)
    return path


def assert_whole(source, tmp_path):
    """Opened by that name, it is the random model; nothing is left of others."""
    checkpoint = open_checkpoint(source)
    for name in NAMES:
        np.testing.assert_array_equal(checkpoint.tensor(name), WEIGHTS[name], err_msg=name)


def assert_refused(source, tmp_path, message, kind=ValueError):
    """Neither the checkpoint is opened nor anything compiled or written."""
    seen = []
    with pytest.raises(kind, match=message):
        compile_model(source, tmp_path / "out" / "m", progress=lambda *step: seen.append(step))
    assert seen == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [f"{Q_PROJ}.weight_scale", f"{Q_PROJ}.SCB", None])
def test_l1_int8_weights_are_refused(directory, tmp_path, scale):
    tensors = {**WEIGHTS, f"{Q_PROJ}.weight": np.ones((128, 64), np.int8)}
    if scale is not None:
        tensors[scale] = np.ones((128, 1), np.float32)
    write_shards(directory, halves(tensors))
    assert_refused(directory, tmp_path, rf"weight '{Q_PROJ}\.weight' is I8; kvctl reads F64, F32")


@pytest.mark.parametrize("name", ["weight_scale", "SCB", "weight_format", "weight.absmax"])
def test_l1_a_scale_beside_float_weights_is_refused(directory, tmp_path, name):
    write_shards(directory, halves({**WEIGHTS, f"{Q_PROJ}.{name}": np.ones(4, np.float32)}))
    assert_refused(directory, tmp_path, rf"1 tensor \('{Q_PROJ}\.{name}'\) .* does not take")


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors", "gptq"])
def test_l1_any_quantization_config_is_refused(directory, tmp_path, method):
    write_config(directory, quantization_config={"quant_method": method})
    write_shards(directory, halves())
    assert_refused(directory, tmp_path, rf"config\.json: .* quantization_config .*{method}")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"])
def test_l2_other_dtypes_are_refused_first(directory, tmp_path, dtype):
    tensors = {**WEIGHTS, f"{Q_PROJ}.weight": (dtype, bytes(128 * 64), (128, 64))}
    write_shards(directory, halves(tensors))
    assert_refused(directory, tmp_path, f"is {dtype}; kvctl reads F64, F32, F16, BF16")


def test_l2_a_dtype_that_nobody_knows(directory, tmp_path):
    tensors = {**WEIGHTS, f"{Q_PROJ}.weight": ("F5_NEW", bytes(7), (128, 64))}
    write_shards(directory, halves(tensors))
    assert_refused(directory, tmp_path, "is F5_NEW; kvctl reads")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_l2_float_dtypes_load(directory, dtype):
    write_shards(directory, halves({name: cast(WEIGHTS[name], dtype) for name in NAMES}))
    checkpoint = open_checkpoint(directory)
    for name in NAMES:
        wanted = cast(WEIGHTS[name], dtype).astype(np.float32)
        np.testing.assert_array_equal(checkpoint.tensor(name), wanted)
        assert checkpoint.tensor(name).dtype == np.float32


def test_l3_old_shards_beside_the_index_are_ignored(directory, tmp_path):
    write_shards(directory, {f"model-0000{i}-of-00003.safetensors": zeros() for i in (1, 2, 3)})
    write_shards(directory, halves())
    assert_whole(directory, tmp_path)


@pytest.mark.parametrize("stray", ["adapter.safetensors", "zz.safetensors", "a.safetensors"])
def test_l3_an_auxiliary_file_that_repeats_a_name_is_ignored(directory, tmp_path, stray):
    write_shards(directory, {stray: {**zeros(NAMES[:2]), "other": np.ones(3, np.float32)}})
    write_shards(directory, halves())
    assert_whole(directory, tmp_path)


def test_l3_without_an_index_the_whole_file_counts(directory, tmp_path):
    write_shards(directory, {"old.safetensors": zeros()}, index=False)
    write_shards(directory, {"model.safetensors": WEIGHTS}, index=False)
    assert_whole(directory, tmp_path)


def test_l3_without_an_index_no_file_wins_over_another(directory, tmp_path):
    write_shards(directory, {"a.safetensors": WEIGHTS, "b.safetensors": zeros()}, index=False)
    assert_refused(directory, tmp_path, r"b\.safetensors and a\.safetensors both hold .* name one")


def test_l4_the_index_decides_between_two_shards(directory, tmp_path):
    shards = halves()
    for file, other in (list(shards), list(shards)[::-1]):
        wrong = {file: {**zeros(shards[other]), **shards[file]}, other: shards[other]}
        index = {name: where for where, tensors in shards.items() for name in tensors}
        write_shards(directory, wrong, index=index)
        assert_whole(directory, tmp_path)


def test_l4_the_index_names_a_tensor_that_the_shard_lacks(directory, tmp_path):
    shards = halves()
    _, second = shards
    index = write_shards(directory, shards)
    write_shards(directory, shards, index={**index, HEAD: second, TABLE: second})
    assert_refused(directory, tmp_path, rf"{second} lacks the tensor '{TABLE}', which .* gives it")


def test_l4_the_index_forgets_a_tensor(directory, tmp_path):
    index = write_shards(directory, halves())
    del index[HEAD]
    write_shards(directory, halves(), index=index)
    assert_refused(directory, tmp_path, rf"holds '{HEAD}', of which .*index\.json says nothing")


@pytest.mark.parametrize("where", ["../x.safetensors", "/etc/passwd", "", "..", 7, None])
def test_l4_the_index_names_files_beside_it(directory, tmp_path, where):
    index = write_shards(directory, halves())
    write_shards(directory, halves(), index={**index, HEAD: where})
    assert_refused(directory, tmp_path, rf"gives '{HEAD}' to .*, which is not the name of a file")


def test_l5_the_file_that_was_named_is_read(directory, tmp_path):
    write_shards(directory, {"best.safetensors": WEIGHTS, "last.safetensors": zeros()})
    assert_whole(directory / "best.safetensors", tmp_path)
    assert not open_checkpoint(directory / "last.safetensors").tensor(HEAD).any()


def test_l5_a_shard_that_was_named_is_not_the_model(directory, tmp_path):
    write_shards(directory, halves())
    assert_refused(
        directory / "model-00001-of-00002.safetensors", tmp_path, "lacks .* give the directory"
    )
    assert_whole(directory / "model.safetensors.index.json", tmp_path)


def test_l6_a_missing_shard_is_named(directory, tmp_path):
    write_shards(directory, halves())
    (directory / "model-00002-of-00002.safetensors").unlink()
    message = r"model-00002-of-00002\.safetensors is missing; model\.safetensors\.index\.json names"
    assert_refused(directory, tmp_path, message, FileNotFoundError)


POINTED = ("config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("name", [*POINTED, "tokenizer.json", "tokenizer_config.json"])
def test_l7_pointers_of_git_lfs_are_recognised(directory, tmp_path, name):
    write_shards(directory, halves())
    (directory / name).write_text(POINTER)
    assert_refused(directory, tmp_path, rf"{name} is a git-lfs pointer.* run 'git lfs pull' in")


@pytest.mark.parametrize("name", ["m.gguf", "tokenizer.json"])
def test_l7_pointers_beside_a_gguf(tmp_path, name):
    path = write_gguf(tmp_path / "m.gguf")
    (tmp_path / name).write_text(POINTER)
    assert_refused(path, tmp_path, rf"{name} is a git-lfs pointer")


def logits_of(runner, tokens):
    runner.cache.add_sequence(0)
    rows = np.stack([runner.prefill([0], [[token]]).numpy()[0] for token in tokens])
    runner.cache.remove_sequence(0)
    return rows


SCALED = [
    {"rope.scaling.factor": 4.0},
    {"rope.scale_linear": 4.0},
    {"rope.scaling.factor": 4.0, "rope.scale_linear": 8.0},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "rope.scaling.finetuned": True},
]


@pytest.mark.parametrize("keys", SCALED)
def test_l8_linear_scaling_is_read(tmp_path, keys):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", more=keys))
    assert checkpoint.config.rope_scale == 0.25


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rope.scaling.type": "linear"},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
        {"rope.scale_linear": 0.0},
        {"rope.scaling.original_context_length": 128},
    ],
)
def test_l8_what_llama_cpp_does_not_scale(tmp_path, keys):
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", more=keys)).config.rope_scale == 1.0


@pytest.mark.parametrize("kind", ["yarn", "longrope", "su"])
def test_l8_other_scalings_are_refused(tmp_path, kind):
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", more=keys)
    assert_refused(path, tmp_path, f"scaled RoPE of type '{kind}'")


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_l8_factors_that_are_none(tmp_path, factor):
    path = write_gguf(tmp_path / "m.gguf", more={"rope.scaling.factor": factor})
    assert_refused(path, tmp_path, r"rope\.scaling\.factor must be a positive number")


@pytest.mark.parametrize("cache", ["kvctl", "tvm"])
def test_l8_scaled_models_rotate_as_the_reference(tmp_path, cache):
    path = write_gguf(tmp_path / "m.gguf", more={"rope.scaling.factor": 4.0})
    tokens = np.random.default_rng(3).integers(0, 256, 40).tolist()
    wanted = ReferenceLlama(open_checkpoint(path)).logits(tokens)
    runner = kvctl.ModelRunner.load(compile_model(path, tmp_path / "m", cache=cache))
    found = logits_of(runner, tokens)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    plain = ReferenceLlama(RANDOM).logits(tokens)
    assert np.abs(plain - wanted).max() > 0.1  # and it matters


def test_l8_linear_scaling_of_hugging_face(directory):
    write_shards(directory, halves())
    for scaling in ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4}):
        write_config(directory, rope_scaling=scaling)
        assert open_checkpoint(directory).config.rope_scale == 0.25
    write_config(directory, rope_scaling={"factor": 4.0})
    with pytest.raises(ValueError, match=r"config\.json: rope_scaling .* has factor 4.0"):
        open_checkpoint(directory)


@pytest.mark.parametrize("named", [1, 2, 3])
def test_l9_a_split_gguf_is_read_whole(tmp_path, named):
    parts = split(write_gguf(tmp_path / "m.gguf"), last=["output.weight", "output_norm.weight"])
    assert_whole(parts[named - 1], tmp_path)
    assert not open_checkpoint(parts[named - 1]).config.tie_word_embeddings


@pytest.mark.parametrize("named", [1, 3])
def test_l9_missing_parts_are_named(tmp_path, named):
    parts = split(write_gguf(tmp_path / "m.gguf"), last=["output.weight"])
    parts[1].unlink()
    assert_refused(
        parts[named - 1], tmp_path, r"3 parts; missing: m-00002-of-00003\.gguf", FileNotFoundError
    )


def test_l9_parts_that_do_not_belong_together(tmp_path):
    parts = split(write_gguf(tmp_path / "m.gguf"), last=["output.weight"])
    other = tmp_path / "other"
    other.mkdir()
    foreign = split(write_gguf(other / "m.gguf", context_length=64), last=["output.weight"])
    shutil.copy(foreign[0], tmp_path / parts[0].name)
    shutil.copy(parts[1], parts[2])
    assert_refused(parts[0], tmp_path, r"00003-of-00003\.gguf says that it is part 1 of 3")
    parts[1].rename(tmp_path / "renamed.gguf")
    assert_refused(tmp_path / "renamed.gguf", tmp_path, "one of 3 parts, and its name does not say")


def test_l9_a_part_by_name_only(tmp_path):
    path = write_gguf(tmp_path / "m-00001-of-00002.gguf", tied=True)
    assert_refused(path, tmp_path, "is called part 1 of 2, and its metadata has no split.count")


def test_l9_tensors_that_are_missing_from_the_parts(tmp_path):
    parts = split(write_gguf(tmp_path / "m.gguf"), last=["output.weight"], count=24)
    assert_refused(parts[0], tmp_path, r"hold 21 tensors together, its split\.tensors\.count .* 24")


def test_l11_another_models_tokenizer_beside_a_gguf(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tokenizer=byte_level_metadata(256))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(300))
    assert_refused(path, tmp_path, r"tokenizer\.json is another model's: it has 300 tokens")
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(200))
    assert_refused(path, tmp_path, r"it has 200 tokens up to id 199, .* has 256 up to 255")
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(256))
    assert open_checkpoint(path).tokenizer_json() is not None


def test_l11_other_tokens_of_the_same_number(tmp_path):
    metadata = byte_level_metadata(256)
    metadata["tokenizer.ggml.tokens"] = [f"t{i}" for i in range(256)]
    path = write_gguf(tmp_path / "m.gguf", tokenizer=metadata)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(256))
    assert_refused(path, tmp_path, r"of its 256 tokens 0 are those of")


def test_l11_a_tokenizer_beyond_a_gguf_that_lists_no_tokens(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(300))
    assert_refused(path, tmp_path, "another model's: its ids go up to 299, the model has 256")


@pytest.fixture
def padded(directory):
    """A model whose padded rows would win every time."""
    tensors = dict(WEIGHTS)
    tensors[HEAD] = WEIGHTS[HEAD].copy()
    tensors[HEAD][100:] *= 50
    write_shards(directory, {"model.safetensors": tensors}, index=False)
    (directory / "tokenizer.json").write_text(tokenizer_json(100))
    write_config(directory, eos_token_id=99)
    return directory


def test_l12_padded_rows_are_never_sampled(padded, tmp_path):
    notes = []
    compiled = compile_model(padded, tmp_path / "m", note=notes.append)
    assert notes == [
        "156 of the model's 256 ids are no tokens of its tokenizer: they are masked, and never "
        "sampled"
    ]
    reference = ReferenceLlama(open_checkpoint(padded))
    tokens = np.random.default_rng(1).integers(0, 100, 12).tolist()
    wanted = reference.logits(tokens)
    assert (wanted.argmax(axis=-1) >= 100).any()  # the padded rows would have won
    runner = kvctl.ModelRunner.load(compiled)
    found = logits_of(runner, tokens)
    np.testing.assert_allclose(found[:, :100], wanted[:, :100], atol=2e-5)
    assert np.isneginf(found[:, 100:]).all()
    for temperature in (0.0, 1.0, 50.0):
        sampling = kvctl.Sampling(temperature=temperature)
        answer = kvctl.generate(runner, [5, 6, 7], max_new_tokens=200, sampling=sampling, seed=3)
        assert len(answer.tokens) == 200
        assert max(answer.tokens) < 100


def test_l12_the_command_line_says_so(padded, tmp_path):
    done = run("compile", padded, "-o", tmp_path / "m")
    assert "156 of the model's 256 ids are no tokens" in done.stdout


def test_l12_holes_are_masked_and_padding_of_gguf(tmp_path):
    metadata = byte_level_metadata(200, padding=range(120, 130))
    path = write_gguf(tmp_path / "m.gguf", tokenizer=metadata)
    runner = kvctl.ModelRunner.load(compile_model(path, tmp_path / "m"))
    masked = np.flatnonzero(np.isneginf(logits_of(runner, [1])[0]))
    assert masked.tolist() == [*range(120, 130), *range(200, 256)]


def test_l12_added_tokens_beyond_the_model_are_said(directory, tmp_path):
    write_shards(directory, halves())
    (directory / "tokenizer.json").write_text(tokenizer_json(256, added=1))
    notes = []
    compile_model(directory, tmp_path / "m", note=notes.append)
    assert len(notes) == 1 and "1 added tokens of the tokenizer are none of" in notes[0]


@pytest.mark.parametrize("name", [f"{Q_PROJ}.bias", "model.layers.1.self_attn.q_norm.weight"])
def test_s1_biases_and_norms_of_other_models_are_refused(directory, tmp_path, name):
    write_shards(directory, halves({**WEIGHTS, name: np.ones(128, np.float32)}))
    assert_refused(directory, tmp_path, rf"1 tensor \('{name}'\) .* does not take")


def test_s1_layers_that_the_configuration_leaves_out(directory, tmp_path):
    write_config(directory, num_hidden_layers=1)
    write_shards(directory, halves())
    assert_refused(directory, tmp_path, r"9 tensors \('model\.layers\.1\..* and 5 more\)")


def test_s1_tensors_of_gguf_that_nobody_takes(tmp_path):
    extra = {"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", extra=extra)
    assert_refused(path, tmp_path, r"1 tensor \('blk\.0\.attn_q_norm\.weight'\)")


def test_s1_buffers_that_are_computed_may_lie_there(directory, tmp_path):
    buffers = {
        "model.rotary_emb.inv_freq": np.ones(16, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32),
    }
    write_shards(directory, halves({**WEIGHTS, **buffers}))
    assert_whole(directory, tmp_path)


def test_s1_a_tied_output_layer_may_be_saved_twice(directory, tmp_path):
    write_config(directory, tie_word_embeddings=True)
    write_shards(directory, halves({**WEIGHTS, HEAD: WEIGHTS[TABLE]}))
    checkpoint = open_checkpoint(directory)
    np.testing.assert_array_equal(load_parameter(checkpoint, HEAD), WEIGHTS[TABLE])
    write_shards(directory, halves())
    assert_refused(directory, tmp_path, rf"'{HEAD}' is not '{TABLE}', to which tie_word_embeddings")


@pytest.mark.parametrize("head_dim", [20, 36, 264])
def test_s2_heads_that_kvctl_cannot_load_are_refused(directory, tmp_path, head_dim):
    write_config(directory, head_dim=head_dim)
    write_shards(directory, halves())
    assert_refused(directory, tmp_path, r"config\.json: head_dim must be .* not " + str(head_dim))
    assert CONFIG.head_dim == 32
