"""What a ``generation_config.json`` asks for that a compiled model does not do by itself."""

from __future__ import annotations

from pathlib import Path

from ..._ffi.untrusted import read_json_object

# Fields that change which tokens transformers generates, and the values with which they do not.
# Stops are read elsewhere; what is sampled, and how, is for the caller of `generate` to say.
_SETTINGS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), ()),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("guidance_scale",), (1,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config"), ()),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1,)),
}


def unused_settings(source: Path | None) -> list[str]:
    """Return the fields beside a checkpoint that change what transformers would generate.

    Parameters
    ----------
    source : Path, optional
        The directory of a checkpoint, or a file in it.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    if source is None:
        return []
    file = (source if source.is_dir() else source.parent) / "generation_config.json"
    if not file.exists():
        return []
    fields = read_json_object(file)
    return [
        name
        for name, neutral in _SETTINGS.items()
        if fields.get(name) is not None and fields[name] not in neutral
    ]
