"""Between text and tokens: tokenizers, chat templates, streams, stops.

Nothing here needs TVM's compiler, or a model's weights.
"""

from __future__ import annotations

from .conversation import Conversation
from .model_text import ModelText
from .sources import fields_of_gguf, fields_of_huggingface
from .stop import StopStrings
from .stream import TextStream
from .template import ChatTemplate
from .tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "Conversation",
    "ModelText",
    "StopStrings",
    "TextStream",
    "Tokenizer",
    "fields_of_gguf",
    "fields_of_huggingface",
]
