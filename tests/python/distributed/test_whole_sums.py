"""Whole sums: several workers give the logits of one process, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tvm_ffi

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from family_files import Family
from kvctl.distributed import ModelRunner, WorkerError
from kvctl.models import compile_model
from kvctl.models.build.asked import compare_with, default_sums
from kvctl.models.build.library import make_target
from kvctl.models.graph.export import export
from kvctl.models.graph.tensor_parallel import TensorParallel
from shards import shards
from tiny_model import compile_tiny_model, tiny_config

OPTIONS = {"max_sequences": 6, "prefill_chunk_size": 24}
GATHER = "kvctl.model.gather_columns"


def same(found, wanted):
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def compare(one, group, tokens):
    """Prompts of several lengths, decodes, chains, trees; commits, popn, forks between them."""

    def both(method, *arguments):
        same(group.call(method, *arguments), getattr(one, method)(*arguments))

    def on_caches(act):
        act(one.cache)
        group.on_all(lambda rank: act(group.runners[rank].cache))

    for seq_id in range(4):
        on_caches(lambda cache, seq_id=seq_id: cache.add_sequence(seq_id))
    tree = kvctl.TokenTree([tokens[9], 5, *tokens[10:14]], [-1, 0, 0, 2, 3, 3])
    both("prefill", [0, 1, 2], [tokens[:30], tokens[:7], tokens[3:4]])
    both("prefill", [3], [tokens[:17]])
    both("decode", [1, 0], [tokens[7], tokens[30]])
    both("verify", [1], [tree])
    on_caches(lambda cache: cache.commit([1], [[0, 2, 3]]))
    both("verify", [1], [kvctl.TokenTree.chain(tokens[12:20])])
    on_caches(lambda cache: cache.commit([1], [[0, 1, 2]]))
    on_caches(lambda cache: cache.popn(0, 9))
    both("decode", [0], [tokens[1]])
    on_caches(lambda cache: cache.fork_sequence(0, 4, 5))
    both("decode", [4, 0, 2, 3], tokens[2:6])
    both("verify", [4, 3], [tree, kvctl.TokenTree.chain(tokens[2:5])])
    on_caches(lambda cache: cache.abort())
    both("forward", [2, 4], [tokens[4:21], tokens[5:8]])


FAMILIES = [
    ("qwen2", 2),  # biases
    ("qwen2", 4),
    ("gemma2", 2),  # norms on both sides, soft caps, a tied head
    ("phi3_longrope", 4),  # LongRoPE
    ("gpt2", 2),  # biases behind the gathering, no gate, learned positions
]


@pytest.mark.parametrize(("case", "workers"), FAMILIES)
def test_families(tmp_path, case, workers):
    family = Family(case)
    source = family.write(tmp_path / "source")
    one = kvctl.ModelRunner.load(compile_model(source, tmp_path / "one"), **OPTIONS)
    directory = compile_model(
        source, tmp_path / "several", tensor_parallel=workers, tensor_parallel_sums="whole"
    )
    with shards(workers) as group:
        compare(one, group.load(directory, **OPTIONS), family.tokens)


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_types_of_weights(tmp_path, dtype, workers):
    """Nothing divides; groups of weights with one scale stay whole along the inputs."""
    changes = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 32}
    changes |= {"hidden_size": 96 if dtype.startswith("int") else 94, "vocab_size": 259}
    changes |= {"intermediate_size": 160 if dtype.startswith("int") else 101}
    options = {"dtype": dtype, "changes": changes}
    one = kvctl.ModelRunner.load(compile_tiny_model(tmp_path / "one", **options), **OPTIONS)
    several = compile_tiny_model(
        tmp_path / "several", tensor_parallel=workers, tensor_parallel_sums="whole", **options
    )
    tokens = np.random.default_rng(0).integers(0, 259, 40).tolist()
    with shards(workers) as group:
        compare(one, group.load(several, **OPTIONS), tokens)
        assert group.collectives % 8 == 0  # four for each of two layers


def test_hidden_states_and_exits(tmp_path):
    options = {"hidden_layers": [0], "exit_layers": [1]}
    one = kvctl.ModelRunner.load(compile_tiny_model(tmp_path / "one", **options))
    several = compile_tiny_model(
        tmp_path / "several", tensor_parallel=2, tensor_parallel_sums="whole", **options
    )
    chain = kvctl.TokenTree.chain([3, 1, 4, 1, 5])
    with shards(2) as group:
        group.load(several).add_sequence(0)
        one.cache.add_sequence(0)
        for arguments in ({"hidden": [0]}, {"hidden": True, "layers": range(1)}):
            logits, hidden = one.verify([0], [chain], **arguments)
            for rank, found in enumerate(group.every("verify", [0], [chain], **arguments)):
                same(found[1], hidden)
                if rank == 0:
                    same(found[0], logits)
            if "layers" in arguments:
                same(group.call("complete", [0]), one.complete([0]))
            one.cache.abort()
            group.on_all(lambda rank: group.runners[rank].cache.abort())


@pytest.fixture(scope="module")
def demo(gloo, tmp_path_factory):
    """What loads a tiny model over so many processes; one process alone, of the same model."""
    folder, running = tmp_path_factory.mktemp("whole"), []
    changes = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 515}
    one = kvctl.ModelRunner.load(compile_tiny_model(folder / "one", changes=changes), **OPTIONS)

    def load(workers):
        directory = folder / str(workers)
        options = {"tensor_parallel": workers, "tensor_parallel_sums": "whole"}
        compile_tiny_model(directory, changes=changes, **options)
        running.append(ModelRunner.load(directory, workers=workers, threads=1, **OPTIONS))
        return running[-1]

    yield one, load
    for runner in running:
        runner.close()


@pytest.mark.parametrize("workers", [2, 4])
def test_processes(demo, workers):
    """Logits of trees and forks, and texts, greedy and sampled, are those of one process."""
    one, load = demo
    several, tokens = load(workers), np.random.default_rng(1).integers(0, 515, 60).tolist()
    one.cache.clear()
    tree = kvctl.TokenTree([3, 4, 5, 6, 7], [-1, 0, 0, 1, 1])

    def both(act):
        found, wanted = (act(runner) for runner in (several, one))
        if wanted is not None:
            np.testing.assert_array_equal(np.from_dlpack(found), np.from_dlpack(wanted))

    both(lambda r: r.cache.add_sequence(0))
    both(lambda r: r.prefill([0], [tokens[:41]]))
    both(lambda r: r.cache.fork_sequence(0, 1, 20))
    both(lambda r: r.decode([1], [9]))
    both(lambda r: r.verify([0, 1], [tree, kvctl.TokenTree.chain(tokens[:6])]))
    both(lambda r: r.cache.commit([1, 0], [[0, 1], [0, 1, 4]]))
    both(lambda r: r.cache.popn(0, 5))
    both(lambda r: r.verify([0], [tree]))
    both(lambda r: r.cache.clear())
    prompts = [tokens[i : i + 9] * 2 for i in range(4)]
    for sampling in (None, kvctl.Sampling(temperature=0.8)):
        options = {"max_new_tokens": 24, "sampling": sampling, "seed": 3}
        found, wanted = (
            [one.tokens for one in kvctl.generate(r, prompts, drafter=drafter, **options)]
            for r, drafter in ((several, kvctl.draft.LookupDrafter()), (one, None))
        )
        assert found == wanted


def test_a_worker_with_other_kernels_is_refused(gloo, tmp_path, monkeypatch):
    """It would sum in another order than the one process that it is compared with."""
    backend = tvm_ffi.get_global_func("kvctl.model.backend")()  # this process has chosen already
    if not backend.startswith("own ") or backend == "own baseline":
        pytest.skip(f"this process has {backend!r}, so no other worker can differ from it")
    directory = compile_tiny_model(tmp_path / "m", tensor_parallel=2)
    monkeypatch.setenv("KVCTL_ISA", "baseline")  # of the workers that start now
    with pytest.raises(WorkerError, match=f"worker 1 has 'own baseline, .*controller '{backend}, "):
        ModelRunner.load(directory, workers=2, threads=1, **OPTIONS)
    partial = {"tensor_parallel": 2, "tensor_parallel_sums": "partial"}
    directory = compile_tiny_model(tmp_path / "partial", **partial)
    with ModelRunner.load(directory, workers=2, threads=1, **OPTIONS) as runner:
        runner.cache.add_sequence(0)
        assert np.isfinite(np.from_dlpack(runner.prefill([0], [[1, 2, 3]]))).all()


def test_gathered_columns():
    """The parts of each row lie side by side, without what fills up the shares."""
    parts = [np.arange(12, dtype=np.float32).reshape(3, 4) + 100 * rank for rank in range(2)]
    residual = np.full((3, 7), 0.5, np.float32)
    wanted = np.concatenate([parts[0], parts[1][:, :3]], axis=1)
    gather, add = map(tvm_ffi.get_global_func, (GATHER, GATHER + "_add"))

    def tensor(array):
        return tvm_ffi.from_dlpack(np.ascontiguousarray(array))

    with shards(2) as group:

        def act(rank, rows=3, columns=(4, 3), width=7, addend=None):
            out = np.full((rows, width), np.nan, np.float32)
            arguments = [tensor(parts[rank][:rows]), tensor(np.array(columns))]
            if addend is None:
                gather(*arguments, tensor(out))
            else:
                add(*arguments, tensor(addend), tensor(out))
            return out

        for found in group.on_all(act):
            np.testing.assert_array_equal(found, wanted)
        for found in group.on_all(lambda rank: act(rank, addend=residual)):
            np.testing.assert_array_equal(found, wanted + 0.5)
        row = group.on_all(lambda rank: act(rank, rows=1, columns=(4, 4), width=8))[1]
        np.testing.assert_array_equal(row[0], [0, 1, 2, 3, 100, 101, 102, 103])
    with pytest.raises(ValueError, match=r"has 4 columns, and columns\[1\] is 5"):
        act(0, columns=(2, 5))
    with pytest.raises(ValueError, match="the 6 columns of all workers, not 7"):
        act(0, columns=(4, 2))
    with pytest.raises(ValueError, match="residual must be 3 rows of 7, not 2 of 7"):
        act(0, addend=residual[:2])


def test_what_has_no_whole_sums(tmp_path):
    with pytest.raises(ValueError, match="one of partial, whole, not 'half'"):
        compile_tiny_model(tmp_path / "m", tensor_parallel=2, tensor_parallel_sums="half")
    config = tiny_config()
    parallel = TensorParallel(config, 2, sums="whole")
    with pytest.raises(ValueError, match="'whole' is for the CPU"):
        export(config, dtype="float16", target=make_target("cuda"), parallel=parallel)


def test_kept_with_the_model(tmp_path):
    """The sums are kept, and no others replace them; whole ones are the default on the CPU."""
    assert (default_sums("cpu"), default_sums("cuda:sm_90")) == ("whole", "partial")
    directory = compile_tiny_model(tmp_path / "m", tensor_parallel=2)
    kept = json.loads((directory / "mlc-chat-config.json").read_text())["kvctl"]["asked"]
    assert kept["tensor_parallel_sums"] == "whole"
    assert compare_with(directory, {**kept, "tensor_parallel_sums": None})
    with pytest.raises(FileExistsError, match="with tensor_parallel_sums whole, not partial"):
        compare_with(directory, {**kept, "tensor_parallel_sums": "partial"})
    program = f"import kvctl; kvctl.ModelRunner.load({str(directory)!r}, shard=0)"
    backend = "import tvm_ffi, kvctl; print(tvm_ffi.get_global_func('kvctl.model.backend')())"
    environment = {**os.environ, "KVCTL_LINEAR": "onednn"}
    used, refused = (
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for code in (backend, program)
    )
    if used.stdout.strip() != "onednn":
        pytest.skip("oneDNN is not installed")
    assert "ValueError" in refused.stderr
    assert "need kvctl's own kernels: KVCTL_LINEAR=onednn" in refused.stderr
