"""generation_config.json: what would change the text and is not built into the model is named."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from checkpoint_files import NAMES, RANDOM
from huggingface_files import tokenizer_json, write_config, write_shards
from kvctl.models import compile_model
from kvctl.models.checkpoints.generation_config import unused_settings


def write(directory, **fields):
    (directory / "generation_config.json").write_text(json.dumps(fields))


def test_only_what_changes_the_text_is_named(tmp_path):
    assert unused_settings(None) == [] and unused_settings(tmp_path) == []
    write(tmp_path, eos_token_id=[2, 7], temperature=0.6, top_p=0.9, do_sample=True, max_length=9)
    assert unused_settings(tmp_path) == []
    write(tmp_path, suppress_tokens=None, bad_words_ids=[], repetition_penalty=1.0, num_beams=1)
    assert unused_settings(tmp_path / "model.safetensors") == []
    write(tmp_path, suppress_tokens=[5], repetition_penalty=1.05, min_new_tokens=3)
    assert unused_settings(tmp_path / "model.safetensors") == [
        "suppress_tokens",
        "min_new_tokens",
        "repetition_penalty",
    ]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        unused_settings(tmp_path)


def test_compile_says_so(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_config(source)
    write_shards(source, {"model.safetensors": {name: RANDOM.tensor(name) for name in NAMES}})
    (source / "tokenizer.json").write_text(tokenizer_json(256))
    write(source, suppress_tokens=[5], eos_token_id=7)
    notes = []
    compile_model(source, tmp_path / "model", note=notes.append)
    assert any("generation_config.json sets suppress_tokens" in note for note in notes)
