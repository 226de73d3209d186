"""Write a GGUF file's model in another type, for engines that run what they are given.

python convert_gguf.py MODEL.gguf OUT.gguf [F32|Q8_0|Q4_0]
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np


def convert(source: Path, target: Path, kind: str) -> None:
    """Convert the matrices; vectors are written in float32."""
    wanted = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        held = field.types[0]
        inner = field.types[-1] if held == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), held, sub_type=inner)
    file_types = {"F32": "ALL_F32", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape(tensor.shape[::-1])
        if values.ndim < 2 or kind == "F32":
            writer.add_tensor(tensor.name, values)
            continue
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[3:] not in ([], ["F32"], ["Q8_0"], ["Q4_0"]):
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["F32"])[0])
