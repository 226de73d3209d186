"""Write what heads say: EAGLE's, EAGLE-3's, Medusa's, MTP modules; torch reads the papers.

    python scripts/make_head_fixtures.py

It needs torch (not kvctl), and writes ``tests/python/heads/outputs/CASE.npz``: hidden states and
tokens of a text, the features and logits of its entries, a tree behind it and its features and
logits, each of whose nodes reads the feature of its parent. The weights are seeded
(``tests/python/support/models/head_files.py``). The readings follow arXiv 2401.15077 (sections 3.1
and 3.2), 2503.01840 (section 3.1), 2401.10774 (section 2.1.1) and 2412.19437 (section 2.2).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import linear, silu

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/python/support/models"))

import head_files as files  # noqa: E402

OUTPUT = ROOT / "tests/python/heads/outputs"
LENGTH, PARENTS = 21, [-1, -1, 0, 0, 1, 2]  # of the tree, whose root is the last entry


class Weights:
    """Tensors by name; the target's where a head has none of its own."""

    def __init__(self, case: str) -> None:
        arrays = {**files.target_weights(), **files.head_weights(case)}
        self.tensors = {name: torch.from_numpy(np.array(one)) for name, one in arrays.items()}

    def __call__(self, *names: str) -> torch.Tensor:
        """Return the first of the tensors that is there, in float64."""
        return next(self.tensors[n] for n in names if n in self.tensors).double()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the RMSNorm of rows."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + files.EPS) * weight


def rotated(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Apply RoPE to (rows, heads, dim)."""
    half = files.DIM // 2
    angles = positions[:, None] * files.THETA ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def project(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return a linear layer of rows, with a bias where there is one."""
    return linear(x, w(f"{name}.weight"), w(f"{name}.bias") if f"{name}.bias" in w else None)


def decoder_layer(
    w: Weights,
    stem: str,
    x: torch.Tensor,
    residual: torch.Tensor,
    positions: torch.Tensor,
    sees: torch.Tensor,
) -> torch.Tensor:
    """Return a Llama's layer of rows whose attention reads `x`."""
    n, groups = len(x), files.HEADS // files.KEYS
    q, k, v = (
        project(w, f"{stem}.self_attn.{part}_proj", x).view(n, -1, files.DIM) for part in "qkv"
    )
    q, k = rotated(q, positions), rotated(k, positions)
    k, v = (one.repeat_interleave(groups, 1) for one in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * files.DIM**-0.5
    shares = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    attended = torch.einsum("hij,jhd->ihd", shares, v).reshape(n, -1)
    x = residual + linear(attended, w(f"{stem}.self_attn.o_proj.weight"))
    y = norm(x, w(f"{stem}.post_attention_layernorm.weight"))
    inside = silu(linear(y, w(f"{stem}.mlp.gate_proj.weight")))
    inside = inside * linear(y, w(f"{stem}.mlp.up_proj.weight"))
    return x + linear(inside, w(f"{stem}.mlp.down_proj.weight"))


def mtp_step(
    case: str,
    w: Weights,
    tokens: torch.Tensor,
    features: torch.Tensor,
    positions: torch.Tensor,
    sees: torch.Tensor,
) -> torch.Tensor:
    """Return what a module for multi-token prediction gives for all entries."""
    if case == "mtp_mimo":
        stem = files.MTP_MIMO
        token, feature, joins = "token_layernorm", "hidden_layernorm", "input_proj"
    else:
        stem, token, feature, joins = files.MTP_DEEPSEEK, "enorm", "hnorm", "eh_proj"
    table = w(f"{stem}.embed_tokens.weight", "model.embed_tokens.weight")
    rows = norm(table[tokens], w(f"{stem}.{token}.weight"))
    pair = [norm(features, w(f"{stem}.{feature}.weight")), rows]
    x = project(w, f"{stem}.{joins}", torch.cat(pair if case == "mtp_mimo" else pair[::-1], -1))
    read = norm(x, w(f"{stem}.input_layernorm.weight"))
    x = decoder_layer(w, stem, read, x, positions, sees)
    return norm(x, w(f"{stem}.final_layernorm.weight")) if case == "mtp_mimo" else x


def step(
    case: str,
    w: Weights,
    tokens: torch.Tensor,
    features: torch.Tensor,
    positions: torch.Tensor,
    sees: torch.Tensor,
) -> torch.Tensor:
    """Return the next features of all entries."""
    if case.startswith("mtp"):
        return mtp_step(case, w, tokens, features, positions, sees)
    embedded = w("embed_tokens.weight", "model.embed_tokens.weight")[tokens]
    if not case.startswith("eagle3"):
        fc = "fusion_fc" if "fusion_fc.weight" in w else "fc"
        stem = "transformer" if fc == "fusion_fc" else "layers.0"
        bias = w(f"{fc}.bias") if f"{fc}.bias" in w else None
        x = linear(torch.cat([embedded, features], -1), w(f"{fc}.weight"), bias)
        return decoder_layer(w, stem, x, x, positions, sees)
    stem = "midlayer" if case == "eagle3" else "layers.0"
    feature = norm(features, w(f"{stem}.hidden_norm.weight"))
    token = norm(embedded, w(f"{stem}.input_layernorm.weight"))
    residual = features if case == "eagle3" else feature  # speculators': norm_before_residual
    joined = torch.cat([token, feature], -1)
    return decoder_layer(w, stem, joined, residual, positions, sees)


def eagle(case: str, w: Weights, hidden: torch.Tensor, tokens: torch.Tensor) -> dict[str, object]:
    """Return what a head of EAGLE's says of a text, and of a tree behind it."""
    wide = case.startswith("eagle3")
    if wide:
        rows = hidden.flatten(1)
        if "input_norm.weight" in w:
            rows = norm(rows, w("input_norm.weight"))
        features = linear(rows, w("fc.weight"))
    else:
        features = norm(hidden[:, 0], w("model.norm.weight"))
    depths = []
    for parent in PARENTS:
        depths.append(1 + (depths[parent] if parent >= 0 else 0))
    total = LENGTH + len(PARENTS)
    positions = torch.tensor([*range(LENGTH), *(LENGTH - 1 + depth for depth in depths)]).double()
    sees = torch.zeros(total, total, dtype=torch.bool)
    sees[:LENGTH, :LENGTH] = torch.ones(LENGTH, LENGTH).tril().bool()
    for node, parent in enumerate(PARENTS):
        row = LENGTH + node
        sees[row] = sees[LENGTH + parent if parent >= 0 else LENGTH - 1]
        sees[row, row] = True
    # A node reads the feature that its parent gave, so each level needs the one above it.
    inputs = torch.cat([features, torch.zeros(len(PARENTS), features.shape[1]).double()])
    after = step(case, w, tokens, inputs, positions, sees)
    for _ in range(max(depths)):
        for node, parent in enumerate(PARENTS):
            inputs[LENGTH + node] = after[LENGTH + parent if parent >= 0 else LENGTH - 1]
        after = step(case, w, tokens, inputs, positions, sees)
    head, read = w(f"{files.MTP_DEEPSEEK}.shared_head.head.weight", "lm_head.weight"), after
    if wide:
        read = norm(after, w("norm.weight"))
    elif case == "mtp_deepseek":
        read = norm(after, w(f"{files.MTP_DEEPSEEK}.shared_head.norm.weight"))
    logits = linear(read, head)
    return {
        "parents": np.array(PARENTS),
        "features": features.float().numpy(),
        "after": after.float().numpy(),
        "logits": logits.float().numpy(),
    }


def medusa(w: Weights, hidden: torch.Tensor) -> dict[str, object]:
    """Return what Medusa's heads say behind rows of a text."""
    rows, logits = norm(hidden[:, 0], w("model.norm.weight")), []
    for head in range(2):
        x = rows
        for block in range(2):
            name = f"{head}.{block}.linear"
            x = x + silu(linear(x, w(f"{name}.weight"), w(f"{name}.bias")))
        logits.append(linear(x, w(f"{head}.2.weight")))
    return {"logits": torch.stack(logits, 1).float().numpy()}


def main() -> None:
    """Write all cases."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for case in files.CASES:
        rng = np.random.default_rng([7, *case.encode()])
        layers = 3 if case.startswith("eagle3") else 1
        hidden = rng.standard_normal((LENGTH, layers, files.WIDTH)).astype(np.float32)
        tokens = rng.integers(0, files.VOCAB, LENGTH + len(PARENTS))
        w, rows = Weights(case), torch.from_numpy(hidden).double()
        if case == "medusa":
            found = medusa(w, rows)
        else:
            found = eagle(case, w, rows, torch.from_numpy(tokens))
        np.savez_compressed(OUTPUT / f"{case}.npz", hidden=hidden, tokens=tokens, **found)
        print(f"{OUTPUT / case}.npz")


if __name__ == "__main__":
    main()
