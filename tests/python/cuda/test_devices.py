"""The cache and verification on every device: one body, the same bounds against float64.

CUDA cases need a GPU (``pytest -m cuda``); test_cuda_emulated.py runs them with the kernels on the
CPU.

One file, since each test is one body for all devices.
"""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from devices import DEVICES, fetch, poison, put, require, rounded
from kvctl import Mask, PagedKVCache, TokenTree
from kvctl._ffi import functions

BOUND = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
LAYERS, QO_HEADS, KV_HEADS, DIM = 2, 4, 2, 64

pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _device(device):
    require(device)


def make_cache(device, dtype="float16", **overrides):
    options = {
        "num_layers": LAYERS,
        "num_qo_heads": QO_HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": DIM,
        "max_total_tokens": 1024,
        "page_size": 16,
        "max_sequences": 8,
        "prefill_chunk_size": 128,
    }
    return PagedKVCache.create(**(options | overrides), dtype=dtype, device=device)


class Mirror:
    """What a cache should hold and answer, in float64: K and V of each sequence's columns."""

    def __init__(self, cache, device, dtype, seed=0):
        self.cache, self.device, self.dtype = cache, device, dtype
        self.rng = np.random.default_rng(seed)
        self.kv = {}
        self.dim = cache.head_dim
        self.heads = cache.num_qo_heads + 2 * cache.num_kv_heads

    def add(self, seq_id):
        self.cache.add_sequence(seq_id)
        self.kv[seq_id] = np.zeros((LAYERS, 0, 2, self.cache.num_kv_heads, self.dim))

    def forward(self, seq_ids, lengths, visible, **options):
        """A step; `visible` (rows, columns) of each sequence. Returns the largest relative error.

        The outputs are poisoned before each call.
        """
        cache, total = self.cache, sum(lengths)
        worst = 0.0
        with cache.forward(seq_ids, lengths, **options):
            for layer in range(LAYERS):
                qkv = rounded(self.rng.standard_normal((total, self.heads, self.dim)), self.dtype)
                out = poison((total, cache.num_qo_heads, self.dim), self.device, self.dtype)
                cache.attention(layer, put(qkv, self.device, self.dtype), out)
                got, row = fetch(out), 0
                for seq_id, n, see in zip(seq_ids, lengths, visible, strict=True):
                    part = qkv[row : row + n]
                    new = part[:, cache.num_qo_heads :].reshape(n, 2, cache.num_kv_heads, self.dim)
                    if layer == 0:
                        grown = np.zeros((LAYERS, n, 2, cache.num_kv_heads, self.dim))
                        self.kv[seq_id] = np.concatenate([self.kv[seq_id], grown], axis=1)
                    self.kv[seq_id][layer, -n:] = new
                    want = self.attend(part, self.kv[seq_id][layer], see)
                    error = np.linalg.norm(got[row : row + n] - want) / np.linalg.norm(want)
                    worst = max(worst, float(error) if np.isfinite(error) else np.inf)
                    row += n
        return worst

    def attend(self, qkv, kv, visible):
        group = self.cache.num_qo_heads // self.cache.num_kv_heads
        out = np.zeros((len(qkv), self.cache.num_qo_heads, self.dim))
        for head in range(self.cache.num_qo_heads):
            k, v = kv[:, 0, head // group], kv[:, 1, head // group]
            scores = np.where(visible, qkv[:, head] @ k.T * self.dim**-0.5, -np.inf)
            top = scores.max(axis=1, keepdims=True)
            weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
            total = weights.sum(axis=1, keepdims=True)
            out[:, head] = weights / np.where(total > 0, total, 1) @ v
        return out

    def check_contents(self, seq_id):
        k, v = (fetch(part) for part in self.cache.get_kv(seq_id))
        np.testing.assert_array_equal(k, self.kv[seq_id][:, :, 0])
        np.testing.assert_array_equal(v, self.kv[seq_id][:, :, 1])


def causal(past, rows):
    return np.tril(np.ones((rows, past + rows), bool), past)


def tree_visible(past, parents):
    visible = np.zeros((len(parents), past + len(parents)), bool)
    visible[:, :past] = True
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] = visible[parent]
        visible[node, past + node] = True
    return visible


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [
        ("float16", 64),
        ("bfloat16", 64),
        ("float32", 64),
        ("float32", 24),
        ("float16", 80),
        ("bfloat16", 96),
        ("float16", 112),
        ("float16", 72),
    ],
)
def test_prefill_chunks_and_decoding_agree_with_float64(device, dtype, head_dim):
    mirror = Mirror(make_cache(device, dtype, head_dim=head_dim), device, dtype)
    mirror.add(0)
    mirror.add(7)
    assert mirror.forward([0], [100], [causal(0, 100)]) < BOUND[dtype]
    assert mirror.forward([7, 0], [33, 70], [causal(0, 33), causal(100, 70)]) < BOUND[dtype]
    for past in range(3):
        see = [causal(170 + past, 1), causal(33 + past, 1)]
        assert mirror.forward([0, 7], [1, 1], see) < BOUND[dtype]
    mirror.check_contents(0)
    mirror.check_contents(7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_trees_are_verified_committed_and_rolled_back(device, dtype):
    mirror = Mirror(make_cache(device, dtype), device, dtype)
    for seq_id, past in [(1, 40), (2, 75)]:
        mirror.add(seq_id)
        assert mirror.forward([seq_id], [past], [causal(0, past)]) < BOUND[dtype]
    cache = mirror.cache
    checkpoint = cache.checkpoint(2)
    parents = [-1, 0, 0, 2, 1, 2, 5, 4]
    visible = [tree_visible(40, parents), tree_visible(75, parents)]
    masks = [Mask.tree(parents)] * 2
    assert mirror.forward([1, 2], [8, 8], visible, mask=masks) < BOUND[dtype]
    cache.commit([2, 1], [[0, 2, 5, 6], [0]])
    kept = {1: [0], 2: [0, 2, 5, 6]}
    for seq_id, past in [(1, 40), (2, 75)]:
        columns = [*range(past), *(past + node for node in kept[seq_id])]
        mirror.kv[seq_id] = mirror.kv[seq_id][:, columns]
        mirror.check_contents(seq_id)
    assert mirror.forward([2], [3], [causal(79, 3)]) < BOUND[dtype]
    cache.popn(2, 2)
    mirror.kv[2] = mirror.kv[2][:, :80]
    mirror.check_contents(2)
    cache.rollback(2, checkpoint)
    mirror.kv[2] = mirror.kv[2][:, :75]
    mirror.check_contents(2)
    assert mirror.forward([2], [1], [causal(75, 1)]) < BOUND[dtype]


def test_forks_copy_on_write_and_unused_slots_may_hold_nan(device):
    mirror = Mirror(make_cache(device), device, "float16")
    mirror.add(0)
    assert mirror.forward([0], [50], [causal(0, 50)]) < 2e-3
    mirror.cache.fork_sequence(0, 1, 37)
    mirror.kv[1] = mirror.kv[0][:, :37].copy()
    mirror.cache.debug_poison()
    see = [causal(37, 5), causal(50, 2)]
    assert mirror.forward([1, 0], [5, 2], see) < 2e-3
    mirror.cache.debug_poison()
    mirror.check_contents(0)
    mirror.check_contents(1)
    assert mirror.forward([0, 1], [1, 1], [causal(52, 1), causal(42, 1)]) < 2e-3


def test_masks_agree_with_float64(device):
    rng = np.random.default_rng(3)
    mirror = Mirror(make_cache(device), device, "float16")
    mirror.add(0)
    assert mirror.forward([0], [90], [causal(0, 90)]) < 2e-3
    past, rows = 90, 20
    full = rng.random((rows, past + rows)) < 0.4
    dense = rng.random((rows, rows)) < 0.5
    window = causal(past, rows) & ~np.tril(np.ones((rows, past + rows), bool), past - 30)
    whole = np.concatenate([np.ones((rows, past), bool), dense], axis=1)
    for mask, visible in [
        (Mask.full(full), full),
        (Mask.dense(dense), whole),
        (Mask.window(30), window),
        (Mask.full(full) & Mask.causal(), full & causal(past, rows)),
        (~Mask.causal(), ~causal(past, rows)),
    ]:
        with_nothing = visible.copy()
        assert mirror.forward([0], [rows], [with_nothing], mask=mask) < 2e-3
        mirror.cache.popn(0, rows)
        mirror.kv[0] = mirror.kv[0][:, :past]


def test_rows_that_see_nothing_are_zero(device):
    cache = make_cache(device)
    cache.add_sequence(0)
    nothing = Mask.full(np.zeros((3, 3), bool))
    out = poison((3, QO_HEADS, DIM), device, "float16")
    qkv = put(np.ones((3, QO_HEADS + 2 * KV_HEADS, DIM)), device, "float16")
    with cache.forward([0], [3], mask=nothing):
        for layer in range(LAYERS):
            cache.attention(layer, qkv, out)
    assert not fetch(out).any()


def test_own_rope_is_that_of_the_cpu(device):
    rng = np.random.default_rng(5)
    qkv = rng.standard_normal((20, QO_HEADS + 2 * KV_HEADS, DIM))
    outputs, keys = [], []
    for where in ["cpu", device]:
        cache = make_cache(where, rope=kvctl.Rope(theta=1000.0))
        cache.add_sequence(0)
        out = poison((20, QO_HEADS, DIM), where, "float16")
        with cache.forward([0], [20], positions=range(7, 27)):
            for layer in range(LAYERS):
                cache.attention(layer, put(qkv, where, "float16"), out)
        outputs.append(fetch(out))
        keys.append(fetch(cache.get_kv(0)[0]))
    assert np.linalg.norm(outputs[1] - outputs[0]) < 2e-3 * np.linalg.norm(outputs[0])
    assert np.linalg.norm(keys[1] - keys[0]) < 1e-3 * np.linalg.norm(keys[0])


def test_q_k_and_v_apart_are_as_in_one_tensor(device):
    shape = (2, QO_HEADS + 2 * KV_HEADS, 1, DIM)  # one token for each of two sequences
    outputs = []
    for apart in [False, True]:
        cache = make_cache(device, rope=kvctl.Rope())
        for seq_id in range(2):
            cache.add_sequence(seq_id)
        rng = np.random.default_rng(8)
        for _ in range(3):
            with cache.forward([0, 1], [1, 1]):
                for layer in range(LAYERS):
                    qkv = rng.standard_normal(shape)
                    out = poison((2, 1, QO_HEADS, DIM), device, "float16")
                    if not apart:
                        out = poison((2, QO_HEADS, DIM), device, "float16")
                        cache.attention(layer, put(qkv[:, :, 0], device, "float16"), out)
                    else:
                        q, k, v = np.split(qkv, [QO_HEADS, QO_HEADS + KV_HEADS], 1)
                        new = [put(part, device, "float16") for part in (q, k, v)]
                        options = DIM**-0.5, 0.0, None, None, None
                        call = functions.cache.attend_in_place
                        assert call(cache.handle, layer, *new, out, *options)
                    outputs.append(fetch(out).reshape(2, QO_HEADS, DIM))
        outputs.append(fetch(cache.get_kv(1)[0]))
    half = len(outputs) // 2
    for one, other in zip(outputs[:half], outputs[half:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_options_of_attention(device):
    rng = np.random.default_rng(6)
    qkv = rng.standard_normal((40, QO_HEADS + 2 * KV_HEADS, DIM))
    slopes, sinks = np.float32([0.5, 0.1, 0.0, 0.02]), np.float32([0.0, 2.0, -1.0, 5.0])
    results = []
    for where in ["cpu", device]:
        cache = make_cache(where, num_layers=1)
        cache.add_sequence(0)
        out = poison((40, QO_HEADS, DIM), where, "float16")
        lse = put(np.full((40, QO_HEADS), np.nan, np.float32), where)
        with cache.forward([0], [40]):
            cache.attention(
                0,
                put(qkv, where, "float16"),
                out,
                soft_cap=10.0,
                alibi_slopes=put(slopes, where),
                sinks=put(sinks, where),
                lse=lse,
            )
        results.append((fetch(out), fetch(lse)))
    (want, want_lse), (got, got_lse) = results
    assert np.linalg.norm(got - want) < 2e-3 * np.linalg.norm(want)
    np.testing.assert_allclose(got_lse, want_lse, atol=2e-3)


RULES_AND_DRAFTS = [
    ("greedy", "deterministic"),
    ("target_only", "independent"),
    ("token_wise", "independent"),
    ("block", "independent"),
    ("recursive", "without_replacement"),
    ("traversal", "without_replacement"),
    ("coupled", "coupled"),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rule", "drawn"), RULES_AND_DRAFTS)
def test_verification_decides_as_on_the_cpu(device, rule, drawn, dtype):
    rng = np.random.default_rng(8)
    vocab, batch = 300, 6
    chain = rule in ("token_wise", "block", "greedy")
    accepted = 0
    for round_ in range(4):
        trees, rows, distributions = [], [], []
        for _ in range(batch):
            parents = [-1, 0, 1, 2] if chain else [-1, 0, 0, 1, 1, 0]
            logits = rounded(rng.standard_normal((len(parents), vocab)) * 4, dtype)
            distribution = np.exp(logits + rng.standard_normal(logits.shape) * 0.3)
            distribution = (distribution / distribution.sum(axis=1, keepdims=True)).astype(
                np.float32
            )
            tokens = [3]
            for node, parent in enumerate(parents[1:], start=1):
                taken = [tokens[s] for s in range(1, node) if parents[s] == parent]
                q = distribution[parent].astype(np.float64)
                q[[] if drawn == "independent" else taken] = 0
                tokens.append(
                    int(logits[parent].argmax())
                    if rule == "greedy"
                    else int(rng.choice(vocab, p=q / q.sum()))
                )
            trees.append(TokenTree(tokens, parents))
            rows.append(logits)
            distributions.append(distribution)
        options = {
            "rule": rule,
            "drawn": drawn,
            "seed": round_,
            "request_ids": range(batch),
            "root_positions": range(10, 10 + batch),
            "log_probs": True,
        }
        results = []
        for where in ["cpu", device]:
            needs_distribution = drawn not in ("deterministic", "coupled")
            results.append(
                kvctl.verify(
                    put(np.concatenate(rows), where, dtype),
                    trees,
                    draft_probs=put(np.concatenate(distributions), where)
                    if needs_distribution
                    else None,
                    **options,
                )
            )
        want, got = results
        assert [list(x) for x in got.accepted_nodes] == [list(x) for x in want.accepted_nodes]
        assert [list(x) for x in got.tokens] == [list(x) for x in want.tokens]
        assert list(got.bonus) == list(want.bonus)
        assert [list(x) for x in got.log_probs] == [list(x) for x in want.log_probs]
        accepted += sum(len(x) for x in got.accepted_nodes)
    assert accepted > 0


def test_what_the_kernels_leave_to_the_cpu_comes_out_the_same(device):
    rng = np.random.default_rng(9)
    logits = rng.standard_normal((4, 50)).astype(np.float32)
    chain = TokenTree.chain([1, 2, 3, 4])
    options = {"drawn": "deterministic", "request_ids": [1], "root_positions": [5]}
    for rule, sampling in [
        ("typical", kvctl.Sampling()),
        ("target_only", kvctl.Sampling(top_p=0.7)),
        ("token_wise", kvctl.Sampling(temperature=0.8, top_k=5)),
    ]:
        want = kvctl.verify(logits, chain, rule=rule, sampling=sampling, **options)
        got = kvctl.verify(put(logits, device), chain, rule=rule, sampling=sampling, **options)
        assert [list(x) for x in got.tokens] == [list(x) for x in want.tokens]
    logits[0] = np.nan
    with pytest.raises(ValueError, match="no token is left"):
        kvctl.verify(put(logits, device), chain, rule="target_only", **options)


def test_wrong_shapes_are_refused_on_every_device(device):
    cache = make_cache(device)
    cache.add_sequence(0)
    with cache.forward([0], [2]):
        for layer in range(LAYERS):
            with pytest.raises(ValueError, match="qkv must have shape"):
                cache.attention(layer, put(np.zeros((2, 3, DIM)), device, "float16"))
            cache.attention(layer, put(np.zeros((2, 8, DIM)), device, "float16"))
    if device == "cuda":
        with pytest.raises(ValueError, match="another device"), cache.forward([0], [1]):
            cache.attention(0, put(np.zeros((1, 8, DIM)), "cpu", "float16"))
