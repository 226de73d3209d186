"""Libraries that MLC-LLM compiled for several workers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from kvctl.models import RandomCheckpoint
from mlc_shards import compile_mlc_shards
from relax_library import metadata_says
from shards import shards
from tiny_model import tiny_config

TOKENS = list(range(40))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory, what its library says of itself, and the same model of one worker."""
    folder = tmp_path_factory.mktemp("mlc")
    checkpoint = RandomCheckpoint(tiny_config())
    with shards(2):
        metadata = compile_mlc_shards(folder / "two", checkpoint, 2)
    from kvctl.models import compile_model

    one = kvctl.ModelRunner.load(compile_model(checkpoint, folder / "one"))
    one.cache.add_sequence(0)
    wanted = [one.prefill([0], [TOKENS[:30]]).numpy()]
    wanted.append(one.verify([0], [kvctl.TokenTree([7, 8, 9], [-1, 0, 0])]).numpy())
    return folder / "two", metadata, wanted


def check(directory, wanted):
    """Logits are whole on every worker."""
    with shards(2) as group:
        group.load(directory)
        group.add_sequence(0)
        tree = kvctl.TokenTree([7, 8, 9], [-1, 0, 0])
        for rank, found in enumerate(group.every("prefill", [0], [TOKENS[:30]])):
            np.testing.assert_allclose(found.numpy(), wanted[0], atol=1e-4, err_msg=str(rank))
        for found in group.every("verify", [0], [tree]):
            np.testing.assert_allclose(found.numpy(), wanted[1], atol=1e-4)


def test_its_functions_cut_parameters(model):
    directory, metadata, wanted = model
    metadata_says(metadata)
    check(directory, wanted)


def test_shares_that_it_saved(model, tmp_path):
    """Files with the shares of every worker, as ``name_shard-0``: nothing is cut at load."""
    from kvctl.models.build.params import ParamWriter

    directory, metadata, wanted = model
    metadata_says(metadata)
    with shards(2) as group:
        group.load(directory)
        shares = [
            {
                one["name"]: param.numpy()
                for one, param in zip(metadata["params"], runner.params, strict=True)
            }
            for runner in group.runners
        ]
    for file in ("model-cpu.so", "mlc-chat-config.json"):
        (tmp_path / file).write_bytes((directory / file).read_bytes())
    writer = ParamWriter(tmp_path)
    for one in metadata["params"]:
        name = one["name"]
        for rank in range(2) if one["preprocs"] else ():
            writer.add(f"{name}_shard-{rank}", shares[rank][name])
        if not one["preprocs"]:
            writer.add(name, shares[0][name])
    writer.finish({})
    check(tmp_path, wanted)


def cut_otherwise(metadata):
    step = next(one["preprocs"] for one in metadata["params"] if one["preprocs"])[0]
    step["out_shape"][0] = 4


def other_function(metadata):
    step = next(one["preprocs"] for one in metadata["params"] if one["preprocs"])[0]
    step["func_name"] = "_shard_nothing"


def other_input(metadata):
    step = next(one["preprocs"] for one in metadata["params"] if one["preprocs"])[0]
    step["in_shape"][0] += 1


def split(changes):
    """What kvctl's own metadata says, in part wrong."""

    def change(metadata):
        good = {"axis": 0, "local": [128], "ranges": [[[0, 128]], [[128, 256]]], "fill": "zero"}
        metadata["kvctl"] = {
            "tensor_parallel": {
                "columns": 256,
                "splits": [{**good, **changes}],
                "params": {"lm_head.weight": 0},
            }
        }

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (cut_otherwise, "cuts parameter .* for 2 workers that take"),
        (other_function, "does not export '_shard_nothing'"),
        (other_input, "parameter .* is float32 .* in .* takes float32"),
        (split({"ranges": [[[0, 300]]] * 2}), "has a part of 128 whose range is"),
        (split({"ranges": [[[1, 0]]] * 2}), "has a part of 128 whose range is"),
        (split({"ranges": [[[0, 128]]]}), "has 1 workers, and this is worker 1"),
        (split({"ranges": [[0, 128]] * 2}), "must hold lists of ranges"),
        (split({"ranges": [[["a", 2]]] * 2}), "must hold integers"),
        (split({"axis": 4}), "along axis 4 of parameter lm_head"),
        (split({"axis": -1}), "along axis -1 of parameter lm_head"),
        (split({"local": [900], "ranges": [[[0, 900]]] * 2}), "takes elements 0 to 900"),
        (split({"fill": 3}), "'fill' is missing or has the wrong type"),
    ],
)
def test_metadata_that_contradicts_the_files(model, change, match):
    directory, metadata, _ = model
    wrong = copy.deepcopy(metadata)
    change(wrong)
    metadata_says(json.dumps(wrong))
    with shards(2), pytest.raises((ValueError, NotImplementedError), match=match):
        kvctl.ModelRunner.load(directory, shard=1)
