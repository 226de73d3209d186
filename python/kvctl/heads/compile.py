"""From a head's files and its target's to a directory that `kvctl.heads.load` opens."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..models.build.asked import QUANTIZATION, default_dtype
from ..models.build.chat_config import file_md5
from ..models.build.library import build, check_compiler, make_target
from ..models.build.metadata import cache_shape, make_metadata
from ..models.build.output import check_output
from ..models.build.params import ParamWriter
from ..models.build.saved import converted_parameter, is_halved
from ..models.build.staging import staged
from ..models.checkpoints.weights import Checkpoint, open_checkpoint
from ..models.graph.export import export_module, module_spec
from ..models.graph.layers import KvctlLayers, Layers, ParamSpec
from ..models.graph.plain_layers import PlainLayers
from .checkpoint import HeadCheckpoint
from .config import HeadConfig
from .graph import EagleHead, MedusaHead

_CHUNK = 512
_DTYPES = {  # by whether on the CPU
    True: ("float32", "bfloat16", "int8", "int4"),
    False: ("float16", "float32"),
}


def compile_head(
    source: str | Path,
    output_dir: str | Path,
    *,
    target_model: str | Path | Checkpoint,
    target: str = "cpu",
    dtype: str | None = None,
    force: bool = False,
) -> Path:
    """Compile a head and write its directory: library, parameters, configuration.

    What a head shares with its target, the embedding table above all, is read from the target's
    files and becomes part of the directory.

    Parameters
    ----------
    source
        The directory of a published head, or of one that ``kvctl heads train`` wrote:
        ``config.json`` and safetensors files; see `HeadCheckpoint`.
    output_dir
        The directory to write.
    target_model
        The model that the head was trained for, as `kvctl.models.compile_model` takes it.
    target
        "cpu", "cuda", or "cuda:sm_90" and the like.
    dtype
        On the CPU the type of the linear layers' weights, "float32" (default), "bfloat16", "int8"
        or "int4" (see `kvctl.models.compile_model`); on CUDA that of everything, "float16"
        (default) or "float32".
    force
        Replace a compiled head that is there.

    Returns
    -------
    Path
        `output_dir`.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If a file is missing, or something is in `output_dir`.
    ValueError
        If the head is damaged, of a kind that kvctl does not build, or of another target.
    """
    model = target_model
    checkpoint = open_checkpoint(model) if isinstance(model, str | Path) else model
    output = Path(output_dir).absolute()
    check_output(output, source=Path(source), force=force)
    head = HeadCheckpoint.open(Path(source), checkpoint)
    on_cpu = target == "cpu"
    dtype = dtype or default_dtype(target)
    if dtype not in (allowed := _DTYPES[on_cpu]):
        where = "the CPU" if on_cpu else "a GPU"
        raise ValueError(
            f"on {where} a head's dtype must be one of {', '.join(allowed)}, not '{dtype}'"
        )
    module, params = export_head(head.config, dtype=dtype, on_cpu=on_cpu)
    for param in params:
        if head.shape(param.name) != param.weight_shape:
            raise ValueError(
                f"{source}: weight '{head.name(param.name)}' is {head.shape(param.name)}, where "
                f"the head's shape asks for {param.weight_shape}"
            )
    metadata = _metadata(head.config, params, dtype)
    check_compiler()
    with tempfile.TemporaryDirectory(prefix="kvctl-") as scratch:
        library = Path(scratch) / "lib.so"
        build(module, metadata, make_target(target)).export_library(str(library))
        with staged(output) as staging:
            shutil.copy(library, staging / "lib.so")
            writer = ParamWriter(staging)
            for param in params:
                array = head.tensor(param.name)
                saved = converted_parameter(array, param, source, head.name(param.name))
                writer.add(param.name, saved, bfloat16=is_halved(param))
            writer.finish({})
            (staging / "mlc-chat-config.json").write_text(
                json.dumps(_chat_config(head.config, metadata, library), indent=1)
            )
    return output


def export_head(
    config: HeadConfig, *, dtype: str = "float32", on_cpu: bool = True
) -> tuple[Any, list[ParamSpec]]:
    """Build the graph of a head.

    Returns
    -------
    module, params
        Its functions, and the parameters in the order in which they take them.
    """
    layers: Layers = KvctlLayers(dtype) if on_cpu else PlainLayers(dtype)
    model = (MedusaHead if config.kind == "medusa" else EagleHead)(config, layers)
    return export_module(model, module_spec(model), dtype="float32" if on_cpu else dtype)


def _metadata(config: HeadConfig, params: list[ParamSpec], dtype: str) -> dict[str, Any]:
    context = config.layer.context_window_size
    return make_metadata(
        params,
        model_type=f"kvctl_{config.kind}_head",
        quantization=QUANTIZATION[dtype],
        context_window_size=context,
        prefill_chunk_size=min(context, _CHUNK),
        vocab_size=config.vocab_size,
        kv_cache=cache_shape(config.layer, 1),
        kvctl={"head": config.kind},
    )


def _chat_config(config: HeadConfig, metadata: dict[str, Any], library: Path) -> dict[str, Any]:
    fields = ("model_type", "quantization", "context_window_size", "prefill_chunk_size")
    return {
        "version": "0.1.0",
        **{field: metadata[field] for field in fields},
        "vocab_size": config.vocab_size,
        "tokenizer_files": [],
        "kvctl": {"library_md5": file_md5(library), "head": config.describe()},
    }
