"""A causal language model of transformers on a kvctl cache: prefill, decode, verify."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import transformers

from ..cache import PagedKVCache
from ..engine.protocol import ABILITIES
from ..text import ModelText
from .attend import give_back, take_over
from .exits import PartialRows
from .forwards import ModelForwards
from .layers import LayerGates
from .probe import Layer, Probe
from .refuse import refuse_unsupported
from .rotary import RotaryStates
from .step import entered
from .text import load_text, stop_tokens_of

if TYPE_CHECKING:
    import numpy.typing as npt

_TOKENS_BY_DEFAULT = 8192


class ModelRunner(ModelForwards):
    """A model of transformers on a :class:`kvctl.PagedKVCache` of its own.

    It is a :class:`kvctl.engine.Runner`, as :class:`kvctl.ModelRunner` is for compiled models:
    generation, drafters and commands take either. Sequences of different lengths share a forward
    without padding: their new tokens are one row of ``input_ids``. RoPE, norms and the rest stay
    the model's own; keys come to the cache rotated.

    The model attends through the cache in the runner's forwards only. ``model.generate`` and other
    calls of it work as before.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A causal language model with its output layer, on one device. It is switched to evaluation.
        It may be compiled in place, ``model.compile()``; the graph then breaks at each attention.
    max_sequences : int
        Sequences that may be in the cache at once.
    max_total_tokens : int, optional
        Tokens that the cache holds, all sequences together. By default one full context window for
        each sequence, but no more than 8192.
    prefill_chunk_size : int
        New tokens of one forward.
    page_size : int
        Tokens in a page of the cache.
    kv_dtype : {"float32", "float16", "bfloat16", "int8", "float8_e4m3fn"}, optional
        The type of the cache's pages; the model's by default. "int8" is for the CPU,
        "float8_e4m3fn" for CUDA.
    kv_scales : array_like, (num_layers, 2, num_kv_heads) float32, optional
        What the elements of "float8_e4m3fn" pages are multiplied by, for each layer K's, then V's;
        by default 1. See :meth:`kvctl.PagedKVCache.create`.
    context_window_size : int, optional
        Tokens that a sequence may have; the config's ``max_position_embeddings`` by default.
    text : kvctl.text.ModelText, optional
        The model's tokenizer and chat template; by default they are looked for where the model came
        from, when they are first asked for.

    Raises
    ------
    TypeError
        If it is no model of transformers.
    ValueError
        If a size or a type is out of range, or if scales have another shape, are not above 0, or
        are not for such pages.
    NotImplementedError
        If the cache does not do what the model needs; the message names it.

    Examples
    --------
    >>> runner = kvctl.hf.ModelRunner.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    >>> tokens = runner.text.encode_chat("Why is the sky blue?")
    >>> kvctl.generate(runner, tokens, drafter=kvctl.draft.LookupDrafter())
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        max_sequences: int = 4,
        max_total_tokens: int | None = None,
        prefill_chunk_size: int = 512,
        page_size: int = 16,
        kv_dtype: str | None = None,
        kv_scales: npt.ArrayLike | None = None,
        context_window_size: int | None = None,
        text: ModelText | None = None,
    ) -> None:
        refuse_unsupported(model)
        model.eval()
        take_over(model)
        try:
            self._set_up(model, text, context_window_size)
            self._cache = self._make_cache(
                max_sequences,
                max_total_tokens,
                prefill_chunk_size,
                page_size,
                kv_dtype,
                kv_scales,
            )
        except BaseException:
            give_back(model)
            raise

    def _set_up(self, model: Any, text: ModelText | None, context: int | None) -> None:
        """Find out what the model is."""
        config = model.config.get_text_config(decoder=True)
        self._model = model
        self._text = text
        self._context = context or getattr(config, "max_position_embeddings", None)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._rotary = RotaryStates(model)
        probe = Probe(type(model).__name__)
        compiled = getattr(model, "_compiled_call_impl", None) is not None
        eagerly = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
        with torch.inference_mode(), eagerly, entered(probe):
            ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
            places = torch.arange(2, device=model.device)[None]
            logits = model(input_ids=ids, position_ids=places, use_cache=False).logits
        self._vocab_size = int(logits.shape[-1])
        self._layers = probe.found(config.num_hidden_layers)
        self._gates = LayerGates(model, self._layers)
        self._partial: dict[int, PartialRows] = {}

    def _make_cache(
        self,
        max_sequences: int,
        max_total_tokens: int | None,
        prefill_chunk_size: int,
        page_size: int,
        kv_dtype: str | None,
        kv_scales: npt.ArrayLike | None,
    ) -> PagedKVCache:
        if max_total_tokens is None:
            whole = max_sequences * (self._context or _TOKENS_BY_DEFAULT)
            max_total_tokens = min(whole, _TOKENS_BY_DEFAULT)
        heads, kv_heads, head_dim = self._layers[0].shape
        return PagedKVCache.create(
            num_layers=len(self._layers),
            num_qo_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_total_tokens=max_total_tokens,
            page_size=page_size,
            max_sequences=max_sequences,
            prefill_chunk_size=prefill_chunk_size,
            dtype=kv_dtype or str(self._model.dtype).removeprefix("torch."),
            device=str(self._model.device),
            layer_windows=[layer.window for layer in self._layers],
            kv_scales=kv_scales,
        )

    @classmethod
    def load(
        cls,
        name_or_dir: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str = "cpu",
        **options: Any,
    ) -> ModelRunner:
        """Load a model of the hub, or a directory as ``save_pretrained`` writes it.

        Parameters
        ----------
        name_or_dir : str or path
            A name on the hub, or a directory.
        dtype : {"auto", "float32", "float16", "bfloat16"}
            The type of the weights; "auto" is the checkpoint's own.
        device : str
            Where the model runs: "cpu", "cuda", "cuda:1".
        **options
            Of :class:`ModelRunner`.

        Raises
        ------
        OSError
            If there is no such model, or a file is missing.
        TypeError, ValueError, NotImplementedError
            As :class:`ModelRunner`.
        """
        model = transformers.AutoModelForCausalLM.from_pretrained(str(name_or_dir), dtype=dtype)
        return cls(model.to(device), **options)

    @property
    def cache(self) -> PagedKVCache:
        """The cache that holds the model's sequences."""
        return self._cache

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The model."""
        return self._model

    @property
    def attention_layers(self) -> list[Layer]:
        """The attention of each layer, as the cache serves it."""
        return self._layers

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return self._vocab_size

    @property
    def prefill_chunk_size(self) -> int:
        """New tokens that one forward takes at most."""
        return self._cache.prefill_chunk_size

    @property
    def context_window_size(self) -> int | None:
        """Tokens that a sequence may have; None where the model sets no limit."""
        return self._context

    @property
    def sliding_window_size(self) -> int | None:
        """None: windows of a model's layers are part of the model."""
        return None

    @property
    def abilities(self) -> frozenset[str]:
        """Which optional abilities of :class:`kvctl.engine.Runner` the model has."""
        return frozenset({"embed"} if self._gates.layers is None else ABILITIES)

    @property
    def identity(self) -> str | None:
        """What names the model where measured costs are kept; None if it has no name."""
        name, kind = self._model.name_or_path, type(self._model).__name__
        if not name:
            return None
        where = f"{self._model.dtype} {self._model.device}"
        return f"{name} {kind} {where} {transformers.__version__} {torch.__version__}"

    @cached_property
    def text(self) -> ModelText:
        """The tokenizer, the chat template and the stops that came with the model.

        Raises
        ------
        FileNotFoundError
            If none did.
        """
        return self._text or load_text(self._model.name_or_path)

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end the model's turn, of its text and its generation config."""
        named = stop_tokens_of(self._model)
        try:
            return named | self.text.stop_tokens
        except FileNotFoundError:
            return named

    def embed(self, tokens: Any) -> torch.Tensor:
        """Return the rows of the input embedding, (n, hidden_size)."""
        with torch.inference_mode():
            ids = torch.as_tensor(tokens, dtype=torch.long, device=self._model.device)
            rows: torch.Tensor = self._model.get_input_embeddings()(ids)
            return rows

    def __repr__(self) -> str:
        return (
            f"hf.ModelRunner({type(self._model).__name__}, vocab_size={self.vocab_size}, "
            f"cache={self._cache!r})"
        )
