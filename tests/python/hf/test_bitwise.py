"""The operation of a transformers model whose bits depend on the number of rows is named."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'kvctl[hf]'")

import kvctl.hf
from hf_models import make_model
from kvctl.checks.bitwise import check_bitwise

pytestmark = pytest.mark.hf


def changing_the_last_row(module):
    """Let what a module gives depend on whether there are several rows."""
    own = module.forward

    def forward(*arguments, **options):
        found = own(*arguments, **options)
        if found.shape[1] > 1:
            found = found.clone()
            found[:, -1] += 1.0
        return found

    module.forward = forward


def row_by_row(model):
    """Have every product computed row by row: PyTorch's depend on the number of rows."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            own = module.forward
            module.forward = lambda x, own=own: torch.cat([own(row) for row in x.split(1, 1)], 1)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("model.layers.0.input_layernorm", "model.layers.0.input_layernorm (LlamaRMSNorm)"),
        ("model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj (Linear)"),
        ("model.layers.1", "before its "),
        ("lm_head", "lm_head (Linear)"),
    ],
)
def test_the_module_is_named(path, named):
    model = make_model("llama")
    row_by_row(model)
    runner = kvctl.hf.ModelRunner(model)
    assert all(one.same for one in check_bitwise(runner, rows=3, batch=1))
    changing_the_last_row(model.get_submodule(path))
    found = {one.what: one for one in check_bitwise(runner, rows=3, batch=1)}
    assert not found["3 rows"].same and named in found["3 rows"].where
    assert named in found["a tree of 5 rows"].where
    assert not any(module._forward_hooks for module in model.modules())
