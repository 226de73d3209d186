"""Trained heads learn, are what is compiled, and go on where they were interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'kvctl[torch]'")
pytestmark = pytest.mark.torch

import kvctl
from drafters import Always
from kvctl import Mask
from kvctl.draft import HeadDrafter
from kvctl.heads import load
from kvctl.heads.compile import compile_head
from kvctl.heads.training.dataset import Collection
from kvctl.heads.training.eagle3 import Eagle3
from kvctl.heads.training.files import write_head
from kvctl.heads.training.medusa import Medusa
from kvctl.heads.training.shared import Shared, cross_entropy
from kvctl.heads.training.train import Training, train
from kvctl.models.checkpoints.safetensors_file import SafetensorsFile
from kvctl.models.checkpoints.safetensors_writer import write_safetensors

STATE = "state/training.safetensors"
QUICK = {"vocabulary": 60, "steps": 3, "epochs": 30, "tokens": 400, "rate": 4e-3, "every": 20}


@pytest.fixture(scope="module")
def texts(collection):
    return Collection(collection)


@pytest.fixture(scope="module")
def shared(checkpoint, texts):
    return Shared.of(checkpoint, texts.frequent_tokens(60))


def rounded(model):
    """Round a model's weights to bfloat16, as they are saved."""
    with torch.no_grad():
        for one in model.by_name.values():
            one.copy_(one.bfloat16().float())
    return model


def compiled(model, kind, shared, checkpoint, folder):
    head = folder / "head"
    head.mkdir()
    write_head(head, kind, model, shared, [1, 3, 4, 7])
    return load(compile_head(head, folder / "compiled", target_model=checkpoint))


@pytest.mark.parametrize("rope_scale", [1.0, 0.25])
def test_training_sees_what_a_draft_sees(shared, checkpoint, texts, tmp_path, rope_scale):
    """At step s, each entry has the feature of the s-th node of a draft that is a chain.

    The scale of RoPE was left out of the files once: a head was compiled without it.
    """
    torch.manual_seed(1)
    shared = replace(shared, config=replace(shared.config, rope_scale=rope_scale))
    model = rounded(Eagle3(shared, steps=3))
    head = compiled(model, "eagle3", shared, checkpoint, tmp_path)
    batch = texts.batch([texts.training[3]])
    tokens, hidden = batch.tokens[0].tolist(), batch.hidden[0]
    with torch.no_grad():
        trained = [
            one[0].numpy()
            for one in model.features(
                torch.from_numpy(batch.tokens), torch.from_numpy(batch.hidden)
            )
        ]
    features = head.features(hidden[:, :3])
    for entry in range(2, len(trained[0])):
        head.cache.add_sequence(0)
        true = entry - 2  # the last entry of a true feature, at step 0
        after = head.forward([0], [tokens[1 : true + 2]], features[: true + 1])
        np.testing.assert_allclose(after, trained[0][: true + 1], atol=2e-4)
        last = after[-1:]
        for step in (1, 2):
            parent = [Mask.tree([step - 2])]
            last = head.forward([0], [[tokens[true + step + 1]]], last, mask=parent)
            np.testing.assert_allclose(last[0], trained[step][true + step], atol=5e-4)
        head.cache.remove_sequence(0)


def test_medusas_heads_are_those_that_are_compiled(shared, checkpoint, texts, tmp_path):
    torch.manual_seed(2)
    model = Medusa(shared, steps=2)
    with torch.no_grad():
        for one in model.by_name.values():
            one.normal_(std=0.1)
    head = compiled(rounded(model), "medusa", shared, checkpoint, tmp_path)
    batch = texts.batch(texts.held_out[:2])
    rows = torch.from_numpy(batch.hidden[0, :5, -1])
    normed = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-5) * shared.norm
    logits = head.logits(batch.hidden[0, :5, -1:])
    known = shared.token_ids.numpy()
    for k in range(2):
        w, b = (model.by_name[f"{k}.0.linear.{name}"].detach() for name in ("weight", "bias"))
        x = normed + torch.nn.functional.silu(normed @ w.T + b)
        expected = (x @ shared.output.float().T).numpy()
        np.testing.assert_allclose(logits[:, k][:, known], expected, atol=2e-3)
        assert np.isneginf(np.delete(logits[:, k], known, axis=1)).all()


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_the_loss_is_the_cross_entropy(rows):
    """In blocks, with a gradient of its own: as torch computes both for all rows at once."""
    torch.manual_seed(3)
    output, teacher = torch.randn(50, 16), torch.randn(rows, 50).softmax(-1)
    mine = torch.randn(rows, 16, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    loss, best = cross_entropy(mine, output, teacher)
    logits = theirs @ output.T
    expected = torch.nn.functional.cross_entropy(logits, teacher, reduction="sum")
    expected = expected / max(1, rows)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert best.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
def test_a_head_learns(kind, collection, checkpoint, runner, prompts, tmp_path):
    record = train(
        collection, tmp_path / "head", target=checkpoint, training=Training(kind=kind, **QUICK)
    )
    first, last = record["losses"][:5], record["losses"][-5:]
    assert np.mean(last) < np.mean(first) - 0.2
    gained = [one["expected_tokens"] for one in record["held_out"]]
    assert max(gained) > gained[0]
    assert json.loads((tmp_path / "head" / "loss.json").read_text()) == record
    assert (tmp_path / "head" / "loss.svg").read_text().startswith("<svg")
    head = load(compile_head(tmp_path / "head", tmp_path / "out", target_model=checkpoint))
    options = {"max_new_tokens": 30, "sampling": kvctl.Sampling(temperature=0.3), "seed": 0}
    plain = kvctl.generate(runner, prompts, **options)
    texts = kvctl.generate(runner, prompts, drafter=_verified(head, kind), **options)
    assert [one.tokens for one in texts] == [one.tokens for one in plain]
    assert sum(sum(one.statistics.accepted) for one in texts) > 40


def _verified(head, kind):
    return (
        HeadDrafter(head, length=3)
        if kind == "eagle3"
        else Always(head.drafter(nodes=3, adapt=False))
    )


class Interrupted(Exception):
    pass


def between_saves(monkeypatch):
    def stop(at, of, loss):
        if at == 9:
            raise Interrupted

    return stop


def within_the_third_save(monkeypatch):
    """A save was two files once: between them it left a state that was refused."""
    replace, saves = Path.replace, []

    def stop(path, target):
        if Path(target).parent.name == "state":
            saves.append(target)
            if len(saves) == 3:
                raise Interrupted
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)


@pytest.mark.parametrize("interrupted", [between_saves, within_the_third_save])
def test_an_interrupted_training_goes_on(
    collection, checkpoint, tmp_path, monkeypatch, interrupted
):
    training = Training(**{**QUICK, "epochs": 3, "every": 4, "patience": 99})
    whole = train(collection, tmp_path / "whole", target=checkpoint, training=training)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop = interrupted(patch)
        train(collection, tmp_path / "parts", target=checkpoint, training=training, progress=stop)
    parts = train(collection, tmp_path / "parts", target=checkpoint, training=training)
    assert parts["losses"] == whole["losses"] and parts["held_out"] == whole["held_out"]
    name = "model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [SafetensorsFile(tmp_path / one / STATE) for one in ("parts", "whole")]
    assert states[0].names == states[1].names
    for name in states[0].names:
        np.testing.assert_array_equal(states[0].tensor(name), states[1].tensor(name))
    with pytest.raises(ValueError, match=r"the state of another training \(training"):
        train(collection, tmp_path / "parts", target=checkpoint, training=Training(**QUICK))


def test_a_damaged_state_is_refused(collection, checkpoint, tmp_path):
    training = Training(**{**QUICK, "epochs": 1})
    train(collection, tmp_path, target=checkpoint, training=training)
    state = SafetensorsFile(tmp_path / STATE)
    record = json.loads(state.metadata["record"])
    tensors = {name: state.tensor(name) for name in state.names}
    del record["batch"]
    for damaged in ({}, {"record": "["}, {"record": json.dumps(record)}):
        write_safetensors(tmp_path / STATE, tensors, metadata=damaged)
        with pytest.raises(ValueError, match=r"state/training\.safetensors is (damaged|no JSON)"):
            train(collection, tmp_path, target=checkpoint, training=training)


def test_what_does_not_belong_together(collection, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="kvctl trains eagle3 and medusa, not 'eagle'"):
        train(collection, tmp_path, target=checkpoint, training=Training(kind="eagle"))
    other = SimpleNamespace(config=SimpleNamespace(vocab_size=7, num_hidden_layers=8))
    with pytest.raises(ValueError, match="a model with 96 tokens, and the target has 7"):
        train(collection, tmp_path, target=other)
    other.config = SimpleNamespace(vocab_size=96, num_hidden_layers=10)
    with pytest.raises(ValueError, match=r"on layers \[1, 4, 6, 9\], and the collection has"):
        train(collection, tmp_path, target=other)
