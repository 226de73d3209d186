"""`kvctl heads compile`, and the drafter that it makes by name."""

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from command_line import run
from head_checkpoint import Target, write_head
from kvctl.cli.model_drafter import register_drafters
from kvctl.draft import HeadDrafter, SuffixDrafter, make_drafter
from kvctl.models import LlamaConfig, RandomCheckpoint, compile_model
from kvctl.models.checkpoints.weight_names import weight_names


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A target's own files, and a compiled one."""
    from huggingface_files import encode, write_config

    folder = tmp_path_factory.mktemp("target")
    config = Target(num_key_value_heads=4, head_dim=16).config
    checkpoint = RandomCheckpoint(LlamaConfig(**vars(config)), seed=1)
    (folder / "files").mkdir()
    sizes = {
        name: getattr(config, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
        )
    }
    write_config(folder / "files", **sizes, max_position_embeddings=128)
    tensors = {name: checkpoint.tensor(name) for name in weight_names(config)}
    (folder / "files" / "model.safetensors").write_bytes(encode(tensors))
    compile_model(checkpoint, folder / "compiled", hidden_layers=[1, 3, 4])
    return folder


def test_a_head_is_compiled_and_drafts(files, tmp_path):
    head = write_head(tmp_path / "head", "eagle3")
    output = tmp_path / "out"
    arguments = ("--target-model", files / "files", "--output", output)
    done = run("heads", "compile", head, *arguments)
    assert done.returncode == 0, done.stderr
    assert "--hidden-layers 1,3,4" in done.stdout
    again = run("heads", "compile", head, *arguments)
    assert again.returncode == 1 and "holds a compiled model" in again.stderr

    register_drafters()
    runner = kvctl.ModelRunner.load(files / "compiled")
    drafter = make_drafter(f"head:directory={output},nodes=6", runner)
    assert str(output) in drafter.identity
    assert isinstance(drafter, HeadDrafter)
    text = kvctl.generate(runner, [1, 2, 3], drafter=drafter, max_new_tokens=12)
    assert text.tokens == kvctl.generate(runner, [1, 2, 3], max_new_tokens=12).tokens
    mixed = make_drafter(f"head:directory={output}+suffix:max_length=8", runner)
    assert [type(one) for one in mixed.drafters] == [HeadDrafter, SuffixDrafter]
    assert mixed.hidden_layers == (1, 3, 4) and str(output) in mixed.identity
    both = kvctl.generate(runner, [1, 2, 3], drafter=mixed, max_new_tokens=12)
    assert both.tokens == text.tokens
    drawn = make_drafter(f"head:directory={output},how=independent,length=2", runner)
    text = kvctl.generate(runner, [1, 2, 3], drafter=drawn, max_new_tokens=12)
    assert text.statistics.speculative_rounds > 0


def test_a_head_of_another_model_is_refused(files, tmp_path):
    head = write_head(tmp_path / "head", "eagle", fields={"vocab_size": 95})
    arguments = ("--target-model", files / "files", "--output", tmp_path / "out")
    done = run("heads", "compile", head, *arguments)
    assert done.returncode == 1
    assert "trained for a vocabulary of 95 tokens, and the target has 96" in done.stderr


def test_collecting_wants_hidden_states_and_training_answers(files, tmp_path):
    plain = tmp_path / "plain"
    assert run("compile", files / "files", "--output", plain).returncode == 0
    done = run("heads", "collect", plain, "--output", tmp_path / "answers")
    assert done.returncode == 1 and "compile it with --hidden-layers" in done.stderr
    assert not (tmp_path / "answers").exists()
    pytest.importorskip("torch", reason="needs torch: pip install 'kvctl[torch]'")
    arguments = ("--target-model", files / "files", "--output", tmp_path / "head")
    done = run("heads", "train", tmp_path, *arguments)
    assert done.returncode == 1 and "'kvctl heads collect' makes one" in done.stderr
