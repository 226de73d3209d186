"""Masks from Python, and attention under them against a float64 reference."""

import pickle

import numpy as np
import pytest
from tvm_ffi import get_global_func

from kvctl import Mask, PagedKVCache

QO_HEADS, KV_HEADS, DIM = 6, 2, 32


def test_a_mask_prints_as_the_expression_that_makes_it():
    mask = (Mask.causal() & ~Mask.ranges([[], [(10, 20)], []])) | Mask.window(8, sinks=2)
    assert repr(mask) == "Mask: (causal() & ~ranges(1 in 3 queries)) | window(8, sinks=2)"
    assert repr(~(Mask.causal() | Mask.prefix_lm(3))) == "Mask: ~(causal() | prefix_lm(3))"
    layers = Mask.per_layer([Mask.causal(), Mask.full(np.ones((2, 7), bool))], [0, 1, 1])
    assert repr(layers) == "Mask: per_layer([causal(), full(2 x 7)], [0, 1, 1])"
    assert repr(Mask.tree([-1, 0, 0])).splitlines() == [
        "Mask: tree([-1, 0, 0])",
        "#..",
        "##.",
        "#.#",
    ]
    assert "... 100 in all" in repr(Mask.tree(np.arange(-1, 99)))
    documents = Mask.documents([0, 0, 1], causal=False) & Mask.dense(np.eye(2, dtype=bool))
    assert repr(documents) == "Mask: documents(2 runs over 3 keys) & dense(2 x 2)"


def test_picture_of_a_tree():
    #   0   2
    #   |  / \
    #   1 3   4
    assert Mask.tree([-1, 0, -1, 2, 2]).picture(5, 7).splitlines() == [
        "##|#....",
        "##|##...",
        "##|..#..",
        "##|..##.",
        "##|..#.#",
    ]


def test_crosses_the_ffi_as_an_int32_tensor():
    mask = Mask.window(3, 1) & ~Mask.ranges([[(0, 2)], []])
    tensor = get_global_func("testing.echo")(mask)
    back = Mask.decode(np.from_dlpack(tensor))
    assert (back.to_numpy(2, 9) == mask.to_numpy(2, 9)).all()
    assert (pickle.loads(pickle.dumps(mask)).encode() == mask.encode()).all()


def test_rejects_floats_and_shapes():
    with pytest.raises(TypeError, match="additive float mask"):
        Mask.full(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="2 x 3"):
        Mask.dense(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="parent of tree node 1 is -2"):
        Mask.tree([-1, -2])
    with pytest.raises(ValueError, match="parent of tree node 1 is 4"):
        Mask.tree([-1, 4]).picture(2, 3)
    with pytest.raises(TypeError, match="ids must be integers"):
        Mask.documents([0.0, 1.0])
    with pytest.raises(ValueError, match="ids must fit 32 bits, got 4294967296"):
        Mask.documents([2**32])
    with pytest.raises(ValueError, match="at most 64 rows"):
        Mask.causal().picture(65, 70)
    with pytest.raises(TypeError):
        Mask.causal() & 3


def reference(q, k, v, visible):
    """Attention in float64; q (n, QO_HEADS, DIM), k and v (columns, KV_HEADS, DIM)."""
    group = QO_HEADS // KV_HEADS
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("nhd,chd->hnc", q.astype(np.float64), k) * DIM**-0.5
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-1e30)
    weights = np.exp(scores - top)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("hnc,chd->nhd", weights, v)


def random_mask(rng, new, columns, depth=2):
    """A random mask and the matrix that it means."""
    row = np.arange(columns - new, columns)[:, None]
    column = np.arange(columns)
    causal = column <= row
    kind = rng.integers(10 if depth else 7)
    if kind == 0:
        return Mask.causal(), causal
    if kind == 1:
        dense = rng.random((new, new)) < 0.5
        return Mask.dense(dense), np.hstack([np.ones((new, columns - new), bool), dense])
    if kind == 2:
        full = rng.random((new, columns)) < rng.choice([0.05, 0.5, 0.95])
        return Mask.full(full), full
    if kind == 3:
        size, sinks = int(rng.integers(1, columns + 2)), int(rng.integers(5))
        return Mask.window(size, sinks), causal & ((column > row - size) | (column < sinks))
    if kind == 4:
        length = int(rng.integers(columns + 1))
        return Mask.prefix_lm(length), causal | (column < length)
    if kind == 5:
        ids = np.sort(rng.integers(0, 4, columns))
        both_ways = bool(rng.integers(2))
        same = ids[row] == ids
        return Mask.documents(ids, causal=not both_ways), same & (causal | both_ways)
    if kind == 6:
        ends = np.sort(rng.integers(0, columns + 1, (new, 2, 2)), axis=-1)
        inside = [[(b <= column) & (column < e) for b, e in one] for one in ends]
        return Mask.ranges([list(map(tuple, one)) for one in ends]), np.any(inside, axis=1)
    a, seen_a = random_mask(rng, new, columns, depth - 1)
    if kind == 7:
        return ~a, ~seen_a
    b, seen_b = random_mask(rng, new, columns, depth - 1)
    return (a & b, seen_a & seen_b) if kind == 8 else (a | b, seen_a | seen_b)


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float16", 2e-3)])
def test_attention_under_random_masks(dtype, bound):
    rng = np.random.default_rng(5)
    cache = PagedKVCache.create(
        num_layers=2,
        num_qo_heads=QO_HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=1024,
        prefill_chunk_size=512,
        dtype=dtype,
    )
    cache.debug_poison()
    for _ in range(25):
        lengths = [(int(rng.integers(1, 400)), int(rng.integers(1, 20))) for _ in range(2)]
        for seq, (past, _) in enumerate(lengths):
            cache.add_sequence(seq)
            qkv = rng.standard_normal((past, QO_HEADS + 2 * KV_HEADS, DIM), np.float32)
            with cache.forward([seq], [past]):
                for layer in range(2):
                    cache.attention(layer, qkv)
        pairs = [random_mask(rng, new, past + new) for past, new in lengths]
        news = [new for _, new in lengths]
        # Layer 1 has the complement.
        masks = [Mask.per_layer([mask, ~mask], [0, 1]) for mask, _ in pairs]
        qkv = rng.standard_normal((sum(news), QO_HEADS + 2 * KV_HEADS, DIM), np.float32)
        with cache.forward([0, 1], news, mask=masks):
            outs = [np.from_dlpack(cache.attention(layer, qkv)) for layer in range(2)]
        begin = 0
        for seq, (new, (_, seen)) in enumerate(zip(news, pairs, strict=True)):
            k, v = (np.from_dlpack(x) for x in cache.get_kv(seq))
            for layer, out in enumerate(outs):
                q = qkv[begin : begin + new, :QO_HEADS]
                want = reference(q, k[layer], v[layer], seen if layer == 0 else ~seen)
                error = np.linalg.norm(out[begin : begin + new] - want)
                assert error <= bound * max(np.linalg.norm(want), 1e-30)
            begin += new
            cache.remove_sequence(seq)


def test_masks_that_do_not_fit_leave_the_cache_alone():
    cache = PagedKVCache.create(
        num_layers=1, num_qo_heads=2, num_kv_heads=2, head_dim=DIM, max_total_tokens=64
    )
    cache.add_sequence(3)
    for mask, message in [
        (
            Mask.dense(np.eye(2, dtype=bool)),
            "for 2 new tokens, but the sequence gets 3",
        ),
        (Mask.full(np.ones((3, 5), bool)), "for 5 keys, but the sequence has 3"),
        (Mask.ranges([[(0, 1)], [(0, 4)], []]), "ends at key 4"),
        (Mask.per_layer([Mask.causal()], [0, 0]), "chooses for 2 layers, but the cache has 1"),
        (Mask.per_head([Mask.causal()], [0]), "chooses for 1 KV heads, but the cache has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            cache.begin_forward([3], [3], mask=mask)
        assert cache.sequence_length(3) == 0
        assert cache.num_available_pages == 4


def test_integers_are_not_cut():
    with pytest.raises(TypeError, match=r"begin must be an integer, got 0\.5"):
        Mask.ranges([[(0.5, 2)]])
    for rows in ([(0, 1)], [[(0, 1, 2)]], 5, [5]):
        with pytest.raises(TypeError, match="ranges must hold for each new token a list of pairs"):
            Mask.ranges(rows)
    with pytest.raises(TypeError, match=r"num_new must be an integer, got 1\.5"):
        Mask.causal().to_numpy(1.5, 3)
    with pytest.raises(ValueError, match="num_columns must fit 32 bits"):
        Mask.causal().to_numpy(1, 2**31)
    with pytest.raises(ValueError, match="size must fit 32 bits, got 1099511627776"):
        Mask.window(2**40)
    with pytest.raises(ValueError, match="length must fit 32 bits"):
        Mask.prefix_lm(2**31)
    with pytest.raises(TypeError, match=r"a sequence of kvctl\.Mask"):
        Mask.per_layer([5], [0])


def test_a_mask_is_a_value():
    tree = Mask.tree([-1, 0]) & Mask.window(3)
    assert tree == Mask.tree([-1, 0]) & Mask.window(3)
    assert hash(tree) == hash(Mask.tree([-1, 0]) & Mask.window(3))
    assert tree != Mask.tree([-1, 0]) and tree != "tree"
    with pytest.raises(TypeError, match="combine masks with &"):
        Mask.causal() and Mask.window(3)


def test_a_mask_per_layer_has_no_picture():
    mask = Mask.per_layer([Mask.tree([-1, 0]), Mask.causal()], [0, 1])
    assert repr(mask) == "Mask: per_layer([tree([-1, 0]), causal()], [0, 1])"
    with pytest.raises(ValueError, match="draw the masks that it chooses from"):
        mask.to_numpy(2, 4)


def test_the_matrix_of_a_layer_and_head_can_be_named():
    heads = Mask.per_head([Mask.window(2), Mask.causal()], [1, 0])
    mask = Mask.per_layer([Mask.tree([-1, 0, 0]), heads], [1, 0])
    # The tree is that of the step, so it is what "causal" means in the other layer, too.
    assert (mask.to_numpy(3, 5, layer=0, head=0) == Mask.tree([-1, 0, 0]).to_numpy(3, 5)).all()
    near = mask.to_numpy(3, 5, layer=0, head=1)
    assert near.sum(axis=1).tolist() == [2, 2, 2]
    assert (mask.to_numpy(3, 5, layer=1) == Mask.tree([-1, 0, 0]).to_numpy(3, 5)).all()
    with pytest.raises(ValueError, match=r"name the head \(head=\)"):
        mask.to_numpy(3, 5, layer=0)
    with pytest.raises(ValueError, match="layer must be below 2, got 2"):
        mask.to_numpy(3, 5, layer=2)
    with pytest.raises(ValueError, match="head must be at least 0, got -1"):
        mask.to_numpy(3, 5, layer=0, head=-1)
