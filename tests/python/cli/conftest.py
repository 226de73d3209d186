"""A model that talks, for the commands."""

import shutil

import pytest


@pytest.fixture(scope="session")
def talking_model(tiny_model, tmp_path_factory):
    """The tiny model with a tokenizer: its 256 tokens are the bytes."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("talking") / "model"
    shutil.copytree(tiny_model, directory)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
