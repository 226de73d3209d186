"""ModelRunner against a NumPy model that knows neither caches nor chunks."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import tvm_ffi

import kvctl
from kvctl._ffi import libraries
from llama_reference import ReferenceLlama
from plain_model import compile_plain_model
from tiny_model import compile_tiny_model, tiny_config

TOKENS = np.random.default_rng(11).integers(0, 256, 90).tolist()
TOLERANCE = {"atol": 3e-5, "rtol": 0}

#   0 ─┬─ 1 ── 3 ── 6
#      └─ 2 ─┬─ 4
#            └─ 5
PARENTS = [-1, 0, 0, 1, 2, 2, 3]
TREE_TOKENS = [40, 41, 42, 43, 44, 45, 46]
PATHS = {0: [0], 1: [0, 1], 2: [0, 2], 3: [0, 1, 3], 4: [0, 2, 4], 5: [0, 2, 5], 6: [0, 1, 3, 6]}


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    return compile_plain_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def reference():
    from kvctl.models import RandomCheckpoint

    return ReferenceLlama(RandomCheckpoint(tiny_config()))


@pytest.fixture(params=["tiny_model", "tiny_model_tvm", "plain_model"])
def directory(request):
    """A library on kvctl's cache, one compiled for TVM's, and one that never heard of kvctl."""
    return request.getfixturevalue(request.param)


def load(directory, *sequences, **options):
    runner = kvctl.ModelRunner.load(directory, **options)
    for seq_id in sequences:
        runner.cache.add_sequence(seq_id)
    return runner


def array(tensor):
    return np.from_dlpack(tensor).copy()


def state(runner):
    """What must not change when a call fails."""
    cache = runner.cache
    ids = [seq_id for seq_id in range(10) if seq_id in cache]
    lengths = [(i, cache.sequence_length(i), cache.pending_length(i)) for i in ids]
    kv = [np.from_dlpack(part).copy() for i in ids for part in cache.get_kv(i)]
    return cache.num_available_pages, lengths, kv


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    for one, other in zip(before[2], after[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_prefill_and_decode_agree_with_the_reference(directory, reference):
    runner = load(directory, 3)
    rows = [array(runner.prefill([3], [TOKENS[:20]]))]
    rows += [array(runner.decode([3], [token])) for token in TOKENS[20:24]]
    np.testing.assert_allclose(
        np.concatenate(rows), reference.logits(TOKENS[:24])[19:], **TOLERANCE
    )
    assert runner.cache.sequence_length(3) == 24
    assert runner.vocab_size == 256


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
def test_prefill_in_chunks(directory, reference, chunk):
    runner = load(directory, 0, prefill_chunk_size=chunk)
    assert runner.prefill_chunk_size == chunk
    logits = array(runner.prefill([0], [TOKENS[:33]]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:33])[-1:], **TOLERANCE)


@pytest.mark.parametrize("chunk", [5, 16, 64])
def test_ragged_batches_are_their_sequences_one_by_one(directory, chunk):
    prompts = [TOKENS[:17], TOKENS[20:21], TOKENS[30:62], TOKENS[5:15]]
    batched = load(directory, 5, 2, 9, 0, prefill_chunk_size=chunk)
    together = array(batched.prefill([5, 2, 9, 0], prompts))
    decoded = array(batched.decode([0, 5, 9, 2], [1, 2, 3, 4]))
    alone = load(directory, 0)
    for row, prompt, token, decoded_row in zip(
        range(4), prompts, [2, 4, 3, 1], [1, 3, 2, 0], strict=True
    ):
        alone.cache.remove_sequence(0)
        alone.cache.add_sequence(0)
        np.testing.assert_allclose(
            together[[row]], array(alone.prefill([0], [prompt])), **TOLERANCE
        )
        np.testing.assert_allclose(
            decoded[[decoded_row]], array(alone.decode([0], [token])), **TOLERANCE
        )


def test_verify_of_a_chain_is_decoding_its_tokens(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    logits = array(runner.verify([0], [kvctl.TokenTree.chain(TOKENS[10:18])]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:18])[10:], **TOLERANCE)
    assert runner.cache.pending_length(0) == 8

    runner.cache.commit([0], [range(5)])
    assert runner.cache.sequence_length(0) == 15
    after = array(runner.decode([0], [TOKENS[15]]))
    np.testing.assert_allclose(after, reference.logits(TOKENS[:16])[-1:], **TOLERANCE)


def test_verify_of_a_tree_gives_every_path(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    logits = array(runner.verify([0], [kvctl.TokenTree(TREE_TOKENS, PARENTS)]))
    for node, path in PATHS.items():
        expected = reference.logits(TOKENS[:10] + [TREE_TOKENS[i] for i in path])[-1]
        np.testing.assert_allclose(logits[node], expected, **TOLERANCE, err_msg=f"node {node}")

    runner.cache.commit([0], [PATHS[5]])
    after = array(runner.decode([0], [7]))
    kept = TOKENS[:10] + [TREE_TOKENS[i] for i in PATHS[5]] + [7]
    np.testing.assert_allclose(after, reference.logits(kept)[-1:], **TOLERANCE)


@pytest.mark.parametrize("chunk", [8, 64])
def test_verify_of_a_batch_of_trees(directory, reference, chunk):
    """At 8 tokens the batch takes three forwards, at 64 one."""
    runner = load(directory, 4, 1, 7, prefill_chunk_size=chunk)
    prompts = {4: TOKENS[:6], 1: TOKENS[6:26], 7: TOKENS[26:27]}
    runner.prefill(list(prompts), list(prompts.values()))
    trees = {
        7: kvctl.TokenTree(TREE_TOKENS, PARENTS),
        4: kvctl.TokenTree.chain([9, 8, 7]),
        1: kvctl.TokenTree([1, 2, 2, 3], [-1, 0, 0, 2]),
    }
    logits = array(runner.verify(list(trees), list(trees.values())))
    row = 0
    for seq_id, tree in trees.items():
        for node in range(len(tree)):
            path = []
            while node >= 0:
                path.insert(0, int(tree.tokens[node]))
                node = int(tree.parents[node])
            expected = reference.logits(prompts[seq_id] + path)[-1]
            np.testing.assert_allclose(logits[row], expected, **TOLERANCE)
            row += 1
    assert row == len(logits)
    runner.cache.commit([1, 7, 4], [[0, 2], [], [0, 1, 2]])
    after = array(runner.decode([4, 1, 7], [5, 5, 5]))
    for got, kept in zip(
        after, [prompts[4] + [9, 8, 7, 5], prompts[1] + [1, 2, 5], prompts[7] + [5]], strict=True
    ):
        np.testing.assert_allclose(got, reference.logits(kept)[-1], **TOLERANCE)


def test_nodes_that_share_a_row(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:10]])
    # The second and third node are one token drawn twice; their children differ.
    tree = kvctl.TokenTree([1, 2, 2, 3, 4], [-1, 0, 0, 1, 2], rows=[0, 1, 1, 2, 3])
    logits = array(runner.verify([0], [tree]))
    assert logits.shape == (4, 256)
    for row, path in enumerate([[1], [1, 2], [1, 2, 3], [1, 2, 4]]):
        expected = reference.logits(TOKENS[:10] + path)[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)


def test_rows_without_a_node_need_forward(tiny_model):
    runner = load(tiny_model, 0)
    runner.prefill([0], [TOKENS[:10]])
    before = state(runner)
    with pytest.raises(ValueError, match="row"):
        runner.verify([0], [kvctl.TokenTree([1, 2], [-1, 0], rows=[0, 2])])
    assert_same_state(before, state(runner))


def test_forward_of_pending_tokens_without_a_mask(directory, reference):
    runner = load(directory, 0, 1)
    runner.prefill([0, 1], [TOKENS[:10], TOKENS[:5]])
    logits = array(runner.forward([1, 0], [TOKENS[5:8], TOKENS[10:12]], pending=True))
    expected = reference.logits(TOKENS[:12])
    np.testing.assert_allclose(logits, expected[[5, 6, 7, 10, 11]], **TOLERANCE)
    assert runner.cache.pending_length(0) == 2
    runner.cache.abort([0, 1])
    assert runner.cache.sequence_length(0) == 10
    logits = array(runner.forward([0], [TOKENS[10:12]]))
    np.testing.assert_allclose(logits, expected[[10, 11]], **TOLERANCE)
    assert runner.cache.pending_length(0) == 0


def test_forward_at_positions_of_ones_own(directory, reference):
    runner = load(directory, 0)
    logits = array(runner.forward([0], [TOKENS[:4]], positions=[[0, 1, 7, 9]]))
    expected = reference.logits(TOKENS[:4], positions=[0, 1, 7, 9])
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_forward_under_a_tree_mask_per_sequence(directory, reference):
    runner = load(directory, 0, 1)
    runner.prefill([0, 1], [TOKENS[:3], TOKENS[:5]])
    tree = kvctl.TokenTree(TREE_TOKENS, PARENTS)
    logits = array(runner.forward([0, 1], [TREE_TOKENS, TOKENS[5:7]], mask=[tree, None]))
    for node, path in PATHS.items():
        expected = reference.logits(TOKENS[:3] + [TREE_TOKENS[i] for i in path])[-1]
        np.testing.assert_allclose(logits[node], expected, **TOLERANCE)
    np.testing.assert_allclose(logits[7:], reference.logits(TOKENS[:7])[5:], **TOLERANCE)
    assert runner.cache.pending_length(0) == 7
    assert runner.cache.pending_length(1) == 0


def test_rows_that_belong_to_no_node(directory, reference):
    """A lookahead window beside the tree: two rows that see the context and each other's past."""
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:6]])
    tree = kvctl.TokenTree([1, 2], [-1, 0], rows=[0, 3])
    parents = [-1, 0, 1, 0]  # rows 1 and 2 are the window: a chain behind the root
    logits = array(runner.forward([0], [[1, 7, 8, 2]], mask=kvctl.Mask.tree(parents)))
    for row, path in enumerate([[1], [1, 7], [1, 7, 8], [1, 2]]):
        expected = reference.logits(TOKENS[:6] + path)[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)
    runner.cache.commit([0], [tree.rows])
    after = array(runner.decode([0], [9]))
    np.testing.assert_allclose(after, reference.logits([*TOKENS[:6], 1, 2, 9])[-1:], **TOLERANCE)


def test_forward_under_a_mask_of_ones_own(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:6]])
    among_new = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]], bool)
    logits = array(runner.forward([0], [TOKENS[6:9]], mask=kvctl.Mask.dense(among_new)))
    visible = np.tri(9, dtype=bool)
    visible[6:, 6:] = among_new
    expected = reference.logits(TOKENS[:9], visible=visible)[6:]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_rollback_then_continue_is_a_fresh_run(directory):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:20]])
    checkpoint = runner.cache.checkpoint(0)
    fresh = array(runner.decode([0], [3]))
    runner.decode([0], [4])
    runner.cache.popn(0, 2)
    runner.verify([0], [kvctl.TokenTree(TREE_TOKENS, PARENTS)])
    runner.cache.abort([0])
    np.testing.assert_array_equal(array(runner.decode([0], [3])), fresh)
    runner.prefill([0], [TOKENS[40:60]])
    runner.cache.rollback(0, checkpoint)
    np.testing.assert_array_equal(array(runner.decode([0], [3])), fresh)


def test_forked_sequences_continue_apart(directory, reference):
    runner = load(directory, 0)
    runner.prefill([0], [TOKENS[:21]])
    runner.cache.fork_sequence(0, 1)
    logits = array(runner.decode([0, 1], [10, 20]))
    for row, token in enumerate([10, 20]):
        expected = reference.logits([*TOKENS[:21], token])[-1]
        np.testing.assert_allclose(logits[row], expected, **TOLERANCE)


def test_two_runners_at_once(directory, reference, tmp_path):
    """Parameters and caches of models with equal names stay apart."""
    other = load(compile_tiny_model(tmp_path / "other", seed=1), 0)
    runner = load(directory, 0)
    expected = reference.logits(TOKENS[:8])[-1:]
    different = array(other.prefill([0], [TOKENS[:8]]))
    np.testing.assert_allclose(array(runner.prefill([0], [TOKENS[:8]])), expected, **TOLERANCE)
    assert np.abs(different - expected).max() > 0.01


def test_anything_that_holds_integers_is_a_token_list(tiny_model):
    runner = load(tiny_model, 0, 1, 2)
    prompts = [
        TOKENS[:4],
        np.array(TOKENS[:4]),
        tvm_ffi.from_dlpack(np.array(TOKENS[:4], np.int32)),
    ]
    logits = array(runner.prefill([0, 1, 2], prompts))
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    decoded = array(runner.decode(np.array([0, 1]), np.array([5, 5], np.uint8)))
    np.testing.assert_array_equal(decoded[0], decoded[1])


def failing_calls():
    tree = kvctl.TokenTree.chain
    return {
        "unknown sequence": (KeyError, "8", lambda r: r.prefill([8], [[1]])),
        "unknown beside known": (KeyError, "8", lambda r: r.decode([0, 8], [1, 1])),
        "unknown in chunks": (KeyError, "8", lambda r: r.prefill([0, 8], [TOKENS[:40], [1]])),
        "unknown in verify": (KeyError, "8", lambda r: r.verify([0, 8], [tree([1]), tree([2])])),
        "no tokens": (
            ValueError,
            "no tokens for sequence 1",
            lambda r: r.prefill([0, 1], [[1], []]),
        ),
        "no sequences": (ValueError, "no sequences", lambda r: r.prefill([], [])),
        "twice": (ValueError, "0 is named twice", lambda r: r.decode([0, 0], [1, 1])),
        "counts": (ValueError, "2 sequences .* 1 prompts", lambda r: r.prefill([0, 1], [[1]])),
        "tree counts": (
            ValueError,
            "2 sequences .* 1 trees",
            lambda r: r.verify([0, 1], [tree([1])]),
        ),
        "token too large": (
            ValueError,
            r"token 256 for sequence 1 .*\[0, 256\)",
            lambda r: r.prefill([0, 1], [[1], [255, 256]]),
        ),
        "negative token": (ValueError, "token -1", lambda r: r.decode([0], [-1])),
        "drafted token": (ValueError, "token 300", lambda r: r.verify([0], [tree([1, 300])])),
        "token beyond int32": (ValueError, "4294967303", lambda r: r.decode([0], [2**32 + 7])),
        "fractions": (TypeError, "float64", lambda r: r.decode([0], [1.5])),
        "nested": (ValueError, "one dimension", lambda r: r.prefill([0], [[[1]]])),
        "prompt too long": (
            kvctl.OutOfPagesError,
            "101 new tokens need 7 more pages of 16 tokens, and 2 of the cache's 6 are free",
            lambda r: r.prefill([0], [(TOKENS * 2)[:101]]),
        ),
        "prompts too long together": (
            kvctl.OutOfPagesError,
            "2 of the cache's 6 are free",
            lambda r: r.prefill([0, 1], [TOKENS[:45], TOKENS[:45]]),
        ),
        "no page for a step": (
            kvctl.OutOfPagesError,
            "page",
            lambda r: r.verify([0, 1, 2], [tree(TOKENS[:10])] * 3),
        ),
        "tree larger than the chunk": (
            ValueError,
            "33 new tokens, .* prefill chunk of 32",
            lambda r: r.verify([0], [tree(TOKENS[:33])]),
        ),
        "positions": (
            ValueError,
            "position",
            lambda r: r.forward([0], [[1, 2]], positions=[[1]]),
        ),
    }


@pytest.mark.parametrize("case", failing_calls())
def test_a_call_that_fails_changes_nothing(tiny_model, case):
    kind, message, call = failing_calls()[case]
    runner = load(tiny_model, 0, 1, 2, max_total_tokens=96, prefill_chunk_size=32)
    runner.prefill([0, 1], [TOKENS[:30], TOKENS[:30]])
    before = state(runner)
    with pytest.raises(kind, match=message):
        call(runner)
    assert_same_state(before, state(runner))


class Interrupted:
    """Makes the model call number n of a kernel raise; the library must be loaded inside."""

    def __init__(self, name):
        self.name, self.countdown, self.calls = name, None, 0
        self.original = tvm_ffi.get_global_func(name)

    def __enter__(self):
        def kernel(*args):
            self.calls += 1
            if self.countdown is not None:
                self.countdown -= 1
                if self.countdown < 0:
                    self.countdown = None
                    raise RuntimeError("a kernel gave up")
            return self.original(*args)

        tvm_ffi.register_global_func(self.name, kernel, override=True)
        return self

    def __exit__(self, *_):
        tvm_ffi.register_global_func(self.name, self.original, override=True)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_an_exception_in_the_middle_of_the_model_is_undone(tiny_model, reference, at, shared):
    with Interrupted("kvctl.model.silu_mul") as kernel:  # one call per layer, two layers
        runner = load(tiny_model, 0, 1, prefill_chunk_size=16)
    runner.prefill([0, 1], [TOKENS[:10], TOKENS[:5]])
    runner.cache.fork_sequence(0, 2)
    if not shared:  # each its own page: a page copied by a step that is undone stays copied
        runner.decode([0, 2], [1, 1])
        runner.cache.popn(0, 1)
        runner.cache.popn(2, 1)
    before = state(runner)
    calls = [
        lambda: runner.prefill([0, 1], [TOKENS[10:40], TOKENS[5:25]]),  # four chunks
        lambda: runner.verify([0, 1, 2], [kvctl.TokenTree(TREE_TOKENS, PARENTS)] * 3),  # two
        lambda: runner.decode([0, 1], [1, 2]),
    ]
    for call, num_calls in zip(calls, [8, 4, 2], strict=True):
        if at >= num_calls:
            continue
        kernel.countdown = at
        with pytest.raises(RuntimeError, match="a kernel gave up"):
            call()
        after = state(runner)
        assert_same_state((after[0], *before[1:]) if shared else before, after)
    after = array(runner.prefill([0, 1], [TOKENS[10:40], TOKENS[5:25]]))
    expected = reference.logits(TOKENS[:40])
    np.testing.assert_allclose(after, expected[[39, 24]], **TOLERANCE)


def max_concurrency():
    runtime = ctypes.CDLL(str(libraries.package_dir("tvm") / "lib" / "libtvm_runtime.so"))
    return runtime._ZN3tvm7runtime9threading14MaxConcurrencyEv()


def set_max_concurrency(value):
    runtime = ctypes.CDLL(str(libraries.package_dir("tvm") / "lib" / "libtvm_runtime.so"))
    runtime._ZN3tvm7runtime9threading17SetMaxConcurrencyEi(value)


def test_tvms_pool_stays_out_of_our_models(tiny_model):
    seen = []
    name = "kvctl.model.silu_mul"
    original = tvm_ffi.get_global_func(name)

    def kernel(*args):
        seen.append(max_concurrency())
        return original(*args)

    tvm_ffi.register_global_func(name, kernel, override=True)
    try:
        runner = load(tiny_model, 0)
    finally:
        tvm_ffi.register_global_func(name, original, override=True)
    before = max_concurrency()
    set_max_concurrency(3)
    try:
        runner.prefill([0], [TOKENS[:4]])
        assert set(seen) == {1}
        assert max_concurrency() == 3
        with pytest.raises(KeyError):
            runner.decode([5], [1])
        assert max_concurrency() == 3
    finally:
        set_max_concurrency(before)


def test_library_loaded_too_early(tiny_model_tvm, reference):
    early = kvctl.FunctionTable(tiny_model_tvm / "lib.so")
    with pytest.raises(RuntimeError, match=r"loaded before that was installed"):
        kvctl.ModelRunner.load(tiny_model_tvm, library=early)
    with kvctl.installed():
        table = kvctl.FunctionTable(tiny_model_tvm / "lib.so")
    runner = load(tiny_model_tvm, 0, library=table)
    logits = array(runner.prefill([0], [TOKENS[:9]]))
    np.testing.assert_allclose(logits, reference.logits(TOKENS[:9])[-1:], **TOLERANCE)


def test_loading_leaves_the_installation_as_it_was(tiny_model_tvm):
    load(tiny_model_tvm)
    with pytest.raises(RuntimeError, match=r"loaded before that was installed"):
        kvctl.ModelRunner.load(
            tiny_model_tvm, library=kvctl.FunctionTable(tiny_model_tvm / "lib.so")
        )
    with kvctl.installed():
        load(tiny_model_tvm)
        kvctl.ModelRunner.load(
            tiny_model_tvm, library=kvctl.FunctionTable(tiny_model_tvm / "lib.so")
        )


def test_the_cache_outlives_its_runner(tiny_model):
    cache = load(tiny_model, 0).cache
    assert cache.sequence_length(0) == 0


def test_what_a_runner_says_of_itself(tiny_model, plain_model):
    runner = load(tiny_model, max_total_tokens=100, page_size=8)
    assert runner.metadata["kvctl"]["format"] == 1
    assert runner.config["vocab_size"] == 256
    assert "batch_verify" in runner.functions
    assert len(runner.params) == len(runner.metadata["params"])
    assert runner.cache.page_size == 8
    assert runner.cache.num_pages >= 13
    assert "lib.so" in repr(runner)
    assert load(plain_model).functions.path.endswith("tiny-plain-cpu.so")


def test_default_sizes(tiny_model):
    assert load(tiny_model).cache.num_pages == 4 * 512 // 16
    assert load(tiny_model, max_sequences=100).cache.num_pages == 8192 // 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": 0}, "max_sequences must be at least 1, got 0"),
        ({"max_sequences": 129}, "max_sequences must be from 1 to 128"),
        ({"prefill_chunk_size": 513}, "prefill_chunk_size must be from 1 to 512"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size must be at least 1, got 0"),
        ({"max_total_tokens": 0}, "max_total_tokens must be at least 1, got 0"),
        ({"max_total_tokens": -5}, "max_total_tokens must be at least 1, got -5"),
        ({"page_size": 0}, "at least 1"),
    ],
)
def test_sizes_out_of_range(tiny_model, options, message):
    with pytest.raises(ValueError, match=message):
        kvctl.ModelRunner.load(tiny_model, **options)


def test_pending_is_a_yes_or_a_no(tiny_model):
    runner = load(tiny_model, 0)
    with pytest.raises(TypeError, match="pending must be True, False or None, got 'x'"):
        runner.forward([0], [[5]], pending="x")
    runner.forward([0], [[5]], pending=True)
    assert runner.cache.pending_length(0) == 1
