"""What a family of models is, as data: its fields, its keys, and where its weights lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .source import NeighbouringPairs, Source

if TYPE_CHECKING:
    from ..checkpoints.gguf.config import GGUFConfig
    from ..checkpoints.huggingface_config import HuggingFaceConfig

Parts = Mapping[str, "str | Source"]


# llama.cpp's names for what most files hold.
_GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp_output_norm": "post_ffw_norm",
}
# q and k whose rotation pairs neighbours, as llama.cpp keeps them for some families.
_NEIGHBOURS = {
    "self_attn.q_proj": Source("attn_q", NeighbouringPairs("num_attention_heads")),
    "self_attn.k_proj": Source("attn_k", NeighbouringPairs("num_key_value_heads")),
}


def _nothing(config: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Layout:
    """Where one kind of file keeps the weights.

    Parameters
    ----------
    layer : str
        What precedes the names of a layer's weights; ``{}`` is its number.
    parts : mapping
        The file's name of each of kvctl's that is called otherwise there, without ``.weight`` or
        ``.bias``: a name, or a `Source` where the weight must be changed or is part of another.
    prefix : str
        What may precede every name, or be missing from all.
    other_head : str
        What the output layer may be called instead, as older files have it.
    computed : str
        A pattern of tensors that are no weights: the model computes them.
    beside : str
        A pattern of tensors that are not the model's, but of what stands in its files beside it.
    """

    layer: str = "model.layers.{}."
    parts: Parts = field(default_factory=dict)
    prefix: str = ""
    other_head: str = ""
    computed: str = ""
    beside: str = ""

    def source(self, name: str) -> Source:
        """Return where a weight lies, by kvctl's name for it."""
        stem, _, suffix = name.rpartition(".")
        before = ""
        if stem.startswith("model.layers."):
            index, _, stem = stem.removeprefix("model.layers.").partition(".")
            before = self.layer.format(index)
        found = self.parts.get(stem, stem)
        source = found if isinstance(found, Source) else Source(found)
        return Source(f"{before}{source.name}.{suffix}", source.take)


def gguf_layout(parts: Parts | None = None, *, neighbours: bool = False) -> Layout:
    """Return where llama.cpp keeps a family's weights.

    Parameters
    ----------
    parts : mapping, optional
        What it calls otherwise than in most families.
    neighbours : bool
        Whether it rotates neighbouring elements of q and k, which its converter then interleaves.
    """
    pairs = _NEIGHBOURS if neighbours else {}
    return Layout("blk.{}.", {**_GGUF_PARTS, **pairs, **(parts or {})})


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Parameters
    ----------
    model_type : str
        Its name in ``config.json``.
    class_name : str
        The class that ``architectures`` there must name.
    huggingface, gguf : Layout
        Where its weights lie in each kind of file.
    fields : dict
        Fields of `DecoderConfig` that all its models have in common.
    read_huggingface, read_gguf : callable
        Returns further fields of one model from its ``config.json`` or its metadata.
    uses, uses_gguf : tuple of str
        Fields and keys that these read, which are refused for other families.
    gguf_name : str, optional
        Its name in GGUF files; None for a family whose files call it another.
    activation : str
        The field of ``config.json`` that names the activation.
    rope_names : mapping
        Other names of scalings of RoPE in its files.
    named_as_llama : bool
        Whether ``config.json`` has Llama's names for sizes; else `read_huggingface` reads them.
    """

    model_type: str
    class_name: str
    huggingface: Layout = Layout()
    gguf: Layout = field(default_factory=gguf_layout)
    fields: Mapping[str, Any] = field(default_factory=dict)
    read_huggingface: Callable[[HuggingFaceConfig], dict[str, Any]] = _nothing
    read_gguf: Callable[[GGUFConfig], dict[str, Any]] = _nothing
    uses: tuple[str, ...] = ()
    uses_gguf: tuple[str, ...] = ()
    gguf_name: str | None = None
    activation: str = "hidden_act"
    rope_names: Mapping[str, str] = field(default_factory=dict)
    named_as_llama: bool = True
