"""What a worker reads of a model's files, and what it says where they are wrong."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl.models import RandomCheckpoint, compile_model
from kvctl.models.build.asked import compare_with
from shards import shards
from tiny_model import compile_tiny_model, tiny_config


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A tiny model for two workers, and the same for one, with a tied head."""
    folder = tmp_path_factory.mktemp("sharded")
    changes = {"tie_word_embeddings": True, "vocab_size": 512, "hidden_size": 256}
    return [compile_tiny_model(folder / str(n), changes=changes, tensor_parallel=n) for n in (2, 1)]


def test_weights_are_saved_whole_and_read_in_part(sharded):
    several, one = sharded
    name = "params_shard_0.bin"
    assert (several / name).read_bytes() == (one / name).read_bytes()
    config = json.loads((several / "mlc-chat-config.json").read_text())
    assert config["tensor_parallel_shards"] == 2
    totals = []

    def load(rank):
        kvctl.ModelRunner.load(several, shard=rank, progress=lambda done, all: totals.append(all))

    with shards(2) as group:
        group.on_all(load)
    whole = json.loads((one / "tensor-cache.json").read_text())["records"]
    nbytes = sum(record["nbytes"] for shard in whole for record in shard["records"])
    table = 512 * 256 * 4  # the embedding, which every worker has
    assert len(set(totals)) == 1  # 48 inside, 2 heads, 256 logits
    assert table < totals[0] < table + (nbytes - table) * 0.55


def test_the_workers_check_all_sums_together(sharded, tmp_path):
    """A flipped bit in any file is found by one of them."""
    config = tiny_config(vocab_size=1 << 17)  # two matrices of 32 MB and the rest
    directory = compile_model(RandomCheckpoint(config), tmp_path / "m", tensor_parallel=2)
    files = sorted(directory.glob("params_shard_*.bin"))
    assert len(files) > 2
    for file in files[:2]:  # the largest: one for each worker
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        with (
            shards(2) as group,
            pytest.raises(ValueError, match=rf"{file.name} is damaged: its MD5 is"),
        ):
            group.load(directory)
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def test_workers_that_are_none(sharded):
    several, one = sharded
    with pytest.raises(NotImplementedError, match=r"distributed\.ModelRunner\.load\(directory, w"):
        kvctl.ModelRunner.load(several)
    with shards(2), pytest.raises(ValueError, match="shard must be from 0 to 1, not 2"):
        kvctl.ModelRunner.load(several, shard=2)
    with pytest.raises(ValueError, match="compiled for 1 workers, so shard must be from 0 to 0"):
        kvctl.ModelRunner.load(one, shard=1)


def test_another_number_of_workers_is_another_compilation(sharded):
    several, _ = sharded
    asked = json.loads((several / "mlc-chat-config.json").read_text())["kvctl"]["asked"]
    assert compare_with(several, asked)
    with pytest.raises(FileExistsError, match="with tensor_parallel 2, not 1"):
        compare_with(several, {**asked, "tensor_parallel": 1})
