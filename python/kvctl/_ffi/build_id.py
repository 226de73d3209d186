"""The GNU build-id of a shared library: which build of it this is."""

from __future__ import annotations

import struct
from pathlib import Path

_NT_GNU_BUILD_ID = 3
_PT_NOTE = 4


def gnu_build_id(path: Path) -> str:
    """Read the GNU build-id of a 64-bit little-endian ELF file.

    Parameters
    ----------
    path : pathlib.Path
        A shared library.

    Returns
    -------
    str
        The id in hexadecimal, or ``""`` when the file carries none.

    Raises
    ------
    ValueError
        If the file is not a 64-bit little-endian ELF file.
    """
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01" or len(header) < 64:
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        (offset,) = struct.unpack_from("<Q", header, 32)
        entry_size, count = struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(entry_size * count)
        for index in range(count):
            kind, _, start, _, _, size = struct.unpack_from("<IIQQQQ", table, index * entry_size)
            if kind != _PT_NOTE:
                continue
            file.seek(start)
            found = _build_id_note(file.read(size))
            if found:
                return found
    return ""


def _build_id_note(notes: bytes) -> str:
    at = 0
    while at + 12 <= len(notes):
        name_size, desc_size, kind = struct.unpack_from("<III", notes, at)
        name_at = at + 12
        desc_at = name_at + (name_size + 3) // 4 * 4
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\x00":
            return notes[desc_at : desc_at + desc_size].hex()
        at = desc_at + (desc_size + 3) // 4 * 4
    return ""
