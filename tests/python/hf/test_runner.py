"""kvctl.hf.ModelRunner: the protocol, what it refuses, and what it leaves of the model."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'kvctl[hf]'")
transformers = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'kvctl[hf]'"
)

import kvctl
import kvctl.hf
from hf_models import BOUND, CONTEXT, WINDOW, eager, logits_of, make_model, random_tokens
from runner_conformance import RunnerConformance

pytestmark = pytest.mark.hf


class TestLlama(RunnerConformance):
    @pytest.fixture
    def runner(self):
        return kvctl.hf.ModelRunner(make_model("llama"), max_sequences=6)


class TestGemmaInChunks(RunnerConformance):
    @pytest.fixture
    def runner(self):
        return kvctl.hf.ModelRunner(make_model("gemma3"), max_sequences=6, prefill_chunk_size=20)


class TestDynamicRope(RunnerConformance):
    """Below the original length; behind it the rotation depends on the tokens of a forward."""

    @pytest.fixture
    def runner(self):
        rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
        model = make_model("llama", rope_parameters=rope)
        return kvctl.hf.ModelRunner(model, max_sequences=6)


def test_the_cache_is_the_models():
    runner = kvctl.hf.ModelRunner(
        make_model("gemma2"), max_sequences=3, max_total_tokens=640, page_size=8
    )
    cache = runner.cache
    assert (cache.num_layers, cache.num_qo_heads, cache.num_kv_heads, cache.head_dim) == (
        3,
        4,
        2,
        16,
    )
    assert (cache.num_pages, cache.page_size, cache.max_sequences) == (80, 8, 3)
    assert (runner.vocab_size, runner.context_window_size) == (256, CONTEXT)
    assert runner.sliding_window_size is None
    layers = [layer.window for layer in runner.attention_layers]
    assert layers == [WINDOW, 0, WINDOW]
    assert "Gemma2ForCausalLM" in repr(runner)
    assert kvctl.hf.ModelRunner(make_model("gpt2")).context_window_size == CONTEXT
    small = kvctl.hf.ModelRunner(make_model("llama"), context_window_size=20, kv_dtype="bfloat16")
    assert (small.context_window_size, small.cache.dtype) == (20, "bfloat16")
    small.cache.add_sequence(0)
    with pytest.raises(ValueError, match="context window of 20"):
        small.prefill([0], [[1] * 21])


def test_int8_pages():
    """Drafts change no token of a model whose K and V are 8-bit integers."""
    runner = kvctl.hf.ModelRunner(make_model("llama"), kv_dtype="int8")
    assert runner.cache.dtype == "int8"
    prompt = random_tokens(6) * 3
    plain = kvctl.generate(runner, prompt, max_new_tokens=12)
    drafter = kvctl.draft.LookupDrafter()
    drafted = kvctl.generate(runner, prompt, drafter=drafter, max_new_tokens=12)
    assert drafted.tokens == plain.tokens


def test_scales_of_8_bit_floats(monkeypatch):
    """They reach the cache; what the cache cannot take is refused by name."""
    model, created = make_model("llama"), {}
    cache = kvctl.hf.ModelRunner(model).cache
    scales = [[[0.02] * cache.num_kv_heads] * 2] * cache.num_layers
    with pytest.raises(NotImplementedError, match="float8_e4m3fn pages are implemented on CUDA"):
        kvctl.hf.ModelRunner(model, kv_dtype="float8_e4m3fn", kv_scales=scales)
    with pytest.raises(ValueError, match="are for float8_e4m3fn pages, and these are of float32"):
        kvctl.hf.ModelRunner(model, kv_scales=scales)

    def create(**options):
        created.update(options)
        return original(**options | {"dtype": "float32", "kv_scales": None})

    original = kvctl.PagedKVCache.create
    monkeypatch.setattr("kvctl.hf.runner.PagedKVCache.create", create)
    kvctl.hf.ModelRunner(model, kv_dtype="float8_e4m3fn", kv_scales=scales)
    assert created["dtype"] == "float8_e4m3fn"
    assert created["kv_scales"] is scales


def test_dropout_never_changes_logits():
    """The runner takes the model out of training mode, and notices when it is put back."""
    model = make_model("gpt2")
    model.train()
    runner = kvctl.hf.ModelRunner(model)
    prompt = random_tokens(12)
    tokens = kvctl.generate(runner, prompt, max_new_tokens=4).tokens
    model.train()
    with pytest.raises(RuntimeError, match="GPT2LMHeadModel has been put into training mode"):
        kvctl.generate(runner, prompt, max_new_tokens=4)
    model.eval()
    assert kvctl.generate(runner, prompt, max_new_tokens=4).tokens == tokens


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_the_model_itself_works_as_before(family):
    model = make_model(family)
    ids = torch.tensor([random_tokens(30)])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    before = model.generate(ids, **options)
    kvctl.hf.ModelRunner(model)
    again = kvctl.hf.ModelRunner(model)
    assert model.generate(ids, **options).tolist() == before.tolist()
    generated = kvctl.generate(again, ids[0].tolist(), max_new_tokens=8)
    assert generated.tokens == before[0, 30:].tolist()


def test_a_saved_model_has_no_trace_of_kvctl(tmp_path):
    model = make_model("llama")
    for _ in range(2):
        runner = kvctl.hf.ModelRunner(model)
        runner.cache.add_sequence(0)
        runner.forward([0], [[1, 2]], hidden=[0], layers=range(1))
    model.save_pretrained(tmp_path)
    assert "kvctl" not in (tmp_path / "config.json").read_text()
    loaded = kvctl.hf.ModelRunner.load(tmp_path, max_sequences=1)
    loaded.cache.add_sequence(0)
    text = random_tokens(9)
    expected = torch.as_tensor(logits_of(eager(model), text)[-1])
    assert (loaded.prefill([0], [text])[0] - expected).abs().max() < BOUND
    assert loaded.identity != kvctl.hf.ModelRunner(model).identity
    assert loaded.stop_tokens == {2}
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        loaded.text  # noqa: B018


def test_a_compiled_model():
    """Steps of different caches, masks and layers on one compiled model."""
    model = make_model("gemma3")
    reference = eager(model)
    first = kvctl.hf.ModelRunner(model)
    model.compile(backend="eager")
    runners = [first, kvctl.hf.ModelRunner(model)]
    text, drafts = random_tokens(30), random_tokens(3, 1)
    for turn in range(2):
        for i, runner in enumerate(runners):
            runner.cache.clear()
            runner.cache.add_sequence(0)
            runner.prefill([0], [text[i + turn :]])
            rows = runner.verify([0], [kvctl.TokenTree(drafts, [-1, 0, 0])])
            expected = logits_of(reference, [*text[i + turn :], drafts[0], drafts[2]])[-1]
            assert (rows[2] - torch.as_tensor(expected)).abs().max() < BOUND
            runner.cache.abort([0])
            _, states = runner.verify([0], [kvctl.TokenTree.chain(drafts)], hidden=[1])
            assert states.shape == (3, 1, 64)
    ids = torch.tensor([text])
    plain = reference.generate(ids, max_new_tokens=4, do_sample=False)
    assert model.generate(ids, max_new_tokens=4, do_sample=False).tolist() == plain.tolist()


def test_threads_share_a_model():
    """Each has a runner of its own; the current step is the thread's."""
    model = make_model("llama")
    reference = eager(model)
    errors = []

    def work(seed):
        try:
            runner = kvctl.hf.ModelRunner(model)
            for turn in range(8):
                runner.cache.add_sequence(0)
                text = random_tokens(20 + 3 * seed, seed * 100 + turn)
                row = runner.prefill([0], [text])[0]
                expected = torch.as_tensor(logits_of(reference, text)[-1])
                assert (row - expected).abs().max() < BOUND
                runner.cache.remove_sequence(0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_a_model_that_raises_changes_nothing():
    model = make_model("llama")
    runner = kvctl.hf.ModelRunner(model, prefill_chunk_size=8)
    runner.cache.add_sequence(0)
    runner.prefill([0], [random_tokens(10)])
    free = runner.cache.num_available_pages
    calls = []

    def fail(module, inputs):
        calls.append(module)
        if len(calls) == 5:  # in the second of three chunks, behind a layer that has written
            raise FloatingPointError("the model broke")

    handles = [layer.mlp.register_forward_pre_hook(fail) for layer in model.model.layers]
    with pytest.raises(FloatingPointError):
        runner.prefill([0], [random_tokens(20)])
    for handle in handles:
        handle.remove()
    assert runner.cache.sequence_length(0) == 10 and not runner.cache.in_forward
    assert runner.cache.num_available_pages == free
    text = [*random_tokens(10), 7]
    row = runner.decode([0], [7])[0]
    expected = torch.as_tensor(logits_of(eager(model), text)[-1])
    assert (row - expected).abs().max() < BOUND


def test_packed_sequences_with_longrope():
    """One sequence is past the original length and takes the long factors, the other is not."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "factor": 4.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    runner = kvctl.hf.ModelRunner(model)
    reference = eager(model)
    texts = [random_tokens(60, 1), random_tokens(20, 2)]
    for i in range(2):
        runner.cache.add_sequence(i)
    rows = runner.prefill([0, 1], texts)
    for row, text in zip(rows, texts, strict=True):
        expected = torch.as_tensor(logits_of(reference, text)[-1])
        assert (row - expected).abs().max() < BOUND


REFUSED = {
    "MLA": ("DeepseekV3", {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 16,
                           "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4,
                           "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
                           "first_k_dense_replace": 1}),
    "linear_attention": ("Qwen3Next", {"num_hidden_layers": 4}),
    "position_ids": ("Bloom", {}),
    "layers of type linear_attention": ("Mamba", {}),
    "chunked_attention": ("Llama4Text", {"intermediate_size_mlp": 48, "num_local_experts": 2,
                                         "head_dim": 16, "attention_chunk_size": 8}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_cache_does_not_do_is_refused(what):
    kind, numbers = REFUSED[what]
    common = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
              "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**common, **numbers})
    model = transformers.AutoModelForCausalLM.from_config(config)
    now = model.config._attn_implementation
    with pytest.raises(NotImplementedError, match=what):
        kvctl.hf.ModelRunner(model)
    assert model.config._attn_implementation == now


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="got Linear"):
        kvctl.hf.ModelRunner(torch.nn.Linear(2, 2))
    model = make_model("llama")
    with pytest.raises(NotImplementedError, match="no output layer"):
        kvctl.hf.ModelRunner(model.model)
    encoder_decoder = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )
    with pytest.raises(NotImplementedError, match="cross attention"):
        kvctl.hf.ModelRunner(encoder_decoder)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(model.config)
    with pytest.raises(ValueError, match="meta"):
        kvctl.hf.ModelRunner(empty)


def test_masks_of_its_own_are_refused():
    """A model whose tokens of one block see each other, as those of an image do."""
    model = make_model("gemma3")
    original = transformers.models.gemma3.modeling_gemma3.create_causal_mask

    def prefix(**arguments):
        return original(**arguments, or_mask_function=lambda b, h, q, kv: kv < 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.models.gemma3.modeling_gemma3, "create_causal_mask", prefix)
        with pytest.raises(NotImplementedError, match="neither causal nor a sliding window"):
            kvctl.hf.ModelRunner(model)
