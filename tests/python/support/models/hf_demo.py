"""The demo model, SmolLM2-135M-Instruct, as a directory of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from kvctl.cli.demo import find_demo_gguf


def write_demo(directory: Path, dtype: torch.dtype = torch.float32) -> Path | None:
    """Write the GGUF's weights and tokenizer as save_pretrained does; None without the GGUF."""
    gguf = find_demo_gguf()
    if gguf is None:
        return None
    source = {"gguf_file": gguf.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **source
    )
    config = loaded.config
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.to(dtype).save_pretrained(directory)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(directory)
    return directory
