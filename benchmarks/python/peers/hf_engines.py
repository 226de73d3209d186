"""A transformers model on kvctl's cache, and the same on its own, for `bench_hf.py`."""

from __future__ import annotations

from time import perf_counter
from typing import Any


class OnKvctl:
    """The model under `kvctl.hf`."""

    def __init__(self, directory: str) -> None:
        import kvctl.hf
        from kvctl.draft import LookupDrafter

        self._kvctl = kvctl
        self._runner = kvctl.hf.ModelRunner.load(directory, max_sequences=1)
        self._drafter = LookupDrafter()

    def version(self) -> str:
        return f"kvctl {self._kvctl.__version__} under transformers"

    def prepare(self, context: list[int]) -> None:
        self._runner.cache.clear()
        self._runner.cache.add_sequence(0)
        self._runner.prefill([0], [context])

    def step(self, tokens: list[int]) -> float:
        """Time one forward behind the context, then take it back."""
        begin = perf_counter()
        if len(tokens) == 1:
            self._runner.decode([0], tokens)
        else:
            self._runner.verify([0], [self._kvctl.TokenTree.chain(tokens)])
        seconds = perf_counter() - begin
        self._runner.cache.popn(0, len(tokens))
        return seconds

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> tuple[list[int], float]:
        """Return new tokens and the seconds behind the first; a drafter's start counts."""
        self._runner.cache.clear()
        done = self._kvctl.generate(
            self._runner,
            prompt,
            max_new_tokens=count,
            drafter=self._drafter if lookup else None,
        )
        stats = done.statistics
        return done.tokens, stats.start_seconds + stats.decode_seconds

    def overhead(self) -> dict[str, float]:
        """Time a layer's attention as the model calls it, and the packed function alone."""
        import torch

        from kvctl._ffi import functions as ffi
        from kvctl.hf import attend
        from kvctl.hf.step import Step, entered

        cache, layers = self._runner.cache, self._runner.attention_layers
        heads, kv_heads, dim = layers[0].shape
        q, k, v = (torch.randn(1, 1, n, dim).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
        qkv = torch.cat([q, k, v], 1)[0].transpose(0, 1).contiguous()
        out = torch.empty(1, heads, dim)
        times: dict[str, list[float]] = {"attend": [], "function": []}
        self.prepare([1] * 16)
        for _ in range(100):
            for name, seconds in times.items():
                with torch.inference_mode(), cache.forward([0], [1]), entered(Step(cache)):
                    begin = perf_counter()
                    for i, layer in enumerate(layers):
                        if name == "attend":
                            attend._attend("sdpa", layer.module, q, k, v, None, scaling=dim**-0.5)
                        else:
                            ffi.cache.attend(
                                cache.handle, i, qkv, out, dim**-0.5, 0.0, None, None, None, None
                            )
                    seconds.append((perf_counter() - begin) / len(layers))
                cache.popn(0, 1)
        return {name: min(seconds) for name, seconds in times.items()}


class OnItsOwn:
    """The model with transformers' DynamicCache and scaled_dot_product_attention."""

    def __init__(self, directory: str) -> None:
        import torch
        import transformers

        self._torch, self._transformers = torch, transformers
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def version(self) -> str:
        return f"transformers {self._transformers.__version__}, torch {self._torch.__version__}"

    def prepare(self, context: list[int]) -> None:
        self._cache = self._transformers.DynamicCache(config=self._model.config)
        self._forward(context, logits_to_keep=1)

    def _forward(self, tokens: list[int], **options: Any) -> None:
        with self._torch.inference_mode():
            ids = self._torch.tensor([tokens])
            self._model(input_ids=ids, cache=self._cache, use_cache=True, **options)

    def step(self, tokens: list[int]) -> float:
        begin = perf_counter()
        self._forward(tokens)
        seconds = perf_counter() - begin
        self._cache.crop(-len(tokens))
        return seconds

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> tuple[list[int], float]:
        seen: list[tuple[int, float]] = []  # tokens there, and when

        def watch(input_ids: Any, scores: Any, **others: Any) -> Any:
            seen.append((input_ids.shape[1] - len(prompt), perf_counter()))
            return self._torch.zeros(len(input_ids), dtype=self._torch.bool)

        ids = self._torch.tensor([prompt])
        out = self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[watch],
            **({"prompt_lookup_num_tokens": 10} if lookup else {}),
        )
        tokens = out[0, len(prompt) :].tolist()[:count]
        # With lookup several tokens may be the first ones: the rate behind them is that of all.
        (first, begin), (last, end) = seen[0], seen[-1]
        return tokens, (end - begin) * (count - 1) / max(last - first, 1)

    def overhead(self) -> dict[str, float]:
        return {}


ENGINES = {"kvctl": OnKvctl, "transformers": OnItsOwn}
