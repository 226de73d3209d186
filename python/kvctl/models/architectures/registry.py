"""All families, by their names in ``config.json`` and in GGUF files."""

from __future__ import annotations

from .architecture import Architecture
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .granite import GRANITE
from .llama import LLAMA
from .mimo import MIMO
from .mistral import MISTRAL
from .olmo2 import OLMO2
from .phi3 import PHI3
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .smollm3 import SMOLLM3

_ALL = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, OLMO2, SMOLLM3, GRANITE, MIMO),
    *(GPT_NEOX, GPT2),
)

ARCHITECTURES: dict[str, Architecture] = {one.model_type: one for one in _ALL}
GGUF_ARCHITECTURES: dict[str, Architecture] = {
    one.gguf_name: one for one in _ALL if one.gguf_name is not None
}
