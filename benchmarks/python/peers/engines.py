"""The same model in kvctl, in transformers and in llama.cpp, behind one interface.

Each engine decodes greedily in float32 on the CPU and knows three operations: the time of a single
forward, plain generation, and generation with its own prompt lookup. Times leave out the prefill.
"""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Protocol

Generated = tuple[list[int], float]
"""New tokens, and the seconds between the first and the last of them."""


class Engine(Protocol):
    """What the driver asks of an engine."""

    def version(self) -> str:
        """Return the engine's name and version."""
        ...

    def step(self, context: list[int], rows: int) -> float:
        """Time one forward of that many tokens after a context, all their logits included."""
        ...

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> Generated:
        """Generate that many tokens, end of text ignored, with or without prompt lookup."""
        ...


class Kvctl:
    """kvctl on a model directory."""

    def __init__(self, model: str) -> None:
        import kvctl
        from kvctl.draft import LookupDrafter

        self._kvctl = kvctl
        self._runner = kvctl.ModelRunner.load(model)
        self._drafter = LookupDrafter()

    def version(self) -> str:
        return f"kvctl {self._kvctl.__version__}"

    def step(self, context: list[int], rows: int) -> float:
        cache = self._runner.cache
        cache.add_sequence(0)
        try:
            self._runner.prefill([0], [context])
            tree = self._kvctl.TokenTree.chain(context[:rows])
            begin = perf_counter()
            if rows == 1:
                self._runner.decode([0], context[:1])
            else:
                self._runner.verify([0], [tree])
            return perf_counter() - begin
        finally:
            cache.remove_sequence(0)

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> Generated:
        done = self._kvctl.generate(
            self._runner,
            prompt,
            max_new_tokens=count,
            drafter=self._drafter if lookup else None,
        )
        return done.tokens, done.statistics.decode_seconds


class Transformers:
    """transformers on torch, the weights read from the GGUF file."""

    def __init__(self, gguf: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        path = Path(gguf)
        self._model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        ).eval()

    def version(self) -> str:
        return f"transformers {metadata.version('transformers')}, torch {self._torch.__version__}"

    def _forward(self, tokens: list[int], past: object) -> object:
        ids = self._torch.tensor([tokens])
        return self._model(input_ids=ids, past_key_values=past, use_cache=True)

    def step(self, context: list[int], rows: int) -> float:
        with self._torch.inference_mode():
            past = self._forward(context, None).past_key_values
            begin = perf_counter()
            self._forward(context[:rows], past)
            return perf_counter() - begin

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> Generated:
        options = {"prompt_lookup_num_tokens": 10} if lookup else {}
        ids = self._torch.tensor([prompt])
        with self._torch.inference_mode():
            begin = perf_counter()
            self._forward(prompt, None)
            prefill = perf_counter() - begin
            begin = perf_counter()
            out = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **options,
            )
            seconds = perf_counter() - begin - prefill
        return out[0, len(prompt) :].tolist(), seconds


def llama_settings(settings: str) -> dict[str, str]:
    """Return the settings of llama.cpp by name; those without a value have an empty one.

    Raises
    ------
    ValueError
        If one is not known.
    """
    chosen = dict(one.partition("=")[::2] for one in settings.split(",") if one)
    if unknown := chosen.keys() - {"repack", "flash", "threads"}:
        raise ValueError(f"{unknown.pop()!r} is no setting of llama.cpp: repack, flash, threads=N")
    return chosen


class LlamaCpp:
    """llama.cpp through llama-cpp-python, on a GGUF file.

    Parameters
    ----------
    settings : str
        Separated by commas: ``repack`` has the weights in the layout that llama.cpp prefers on this
        processor, ``flash`` its other attention, ``threads=N`` so many of them.
        Without ``repack`` they stay as they are in the file: GCC 12 compiles the version for AMX so
        that its first forward ends the process (benchmarks/README.md has the flag that helps).
    """

    def __init__(self, gguf: str, settings: str = "") -> None:
        from llama_cpp import Llama, llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        chosen = llama_settings(settings)
        self._settings = settings
        defaults = llama_cpp.llama_model_default_params

        def parameters() -> object:
            found = defaults()
            found.use_extra_bufts = "repack" in chosen
            return found

        llama_cpp.llama_model_default_params = parameters
        threads = int(chosen.get("threads") or len(os.sched_getaffinity(0)))
        options = {
            "model_path": gguf,
            "n_ctx": 2048,
            "n_threads": threads,  # by default it decodes on half of the cores
            "n_threads_batch": threads,
            "flash_attn": "flash" in chosen,
            "verbose": False,
            "logits_all": True,
        }
        self._plain = Llama(**options)
        self._lookup = Llama(
            **options, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=10, max_ngram_size=4)
        )
        self._plain.eval([1] * 32)  # what cannot run on this machine says so before the first turn

    def version(self) -> str:
        settings = f" ({self._settings})" if self._settings else ""
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}{settings}"

    def step(self, context: list[int], rows: int) -> float:
        self._plain.reset()
        self._plain.eval(context)
        begin = perf_counter()
        self._plain.eval(context[:rows])
        return perf_counter() - begin

    def generate(self, prompt: list[int], count: int, *, lookup: bool) -> Generated:
        engine = self._lookup if lookup else self._plain
        engine.reset()
        tokens: list[int] = []
        begin = 0.0
        for token in engine.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0):
            if not tokens:
                begin = perf_counter()
            tokens.append(int(token))
            if len(tokens) == count:
                break
        return tokens, perf_counter() - begin


def open_engine(name: str, argument: str) -> Engine:
    """Return an engine: kvctl on a model directory, the others on a GGUF file.

    The name of llama.cpp may have its settings behind a blank: ``llama.cpp repack,flash``.
    """
    if name.startswith("llama.cpp"):
        return LlamaCpp(argument, name.removeprefix("llama.cpp").strip())
    kinds: dict[str, type[Kvctl] | type[Transformers]] = {
        "kvctl": Kvctl,
        "transformers": Transformers,
    }
    return kinds[name](argument)
