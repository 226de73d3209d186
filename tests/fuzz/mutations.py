"""Damages files: bits and pieces of any file, and values, keys and nesting of JSON."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

VALUES = [
    None, True, False, 0, -1, 1, 7, 255, 256, 1 << 31, 1 << 53, 1 << 63, 1 << 64, -(1 << 63),
    1e308, 0.5, float("nan"), float("inf"), "", "x", "7", "\x00", "é\ud800", "../../etc/passwd",
    "/dev/zero", "a" * 3000, [], [[]], [0], [None], ["x", 1], {}, {"a": 1}, {"type": "BPE"},
    [1 << 40] * 3, 10**400, [[2, 10**400]],
]  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"


def damage_bytes(rng: Random, data: bytes, *, header: int | None = None) -> bytes:
    """Return data with one to a few damages, those of single bytes within the first `header`."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        size = len(changed)
        end = max(1, min(size, size if header is None else header))
        kind = rng.choice("bit bit bit byte byte word cut head double swap zero tail".split())
        at = rng.randrange(end)
        if size < 16:
            kind = "tail"
        if kind == "bit":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == "word":
            value = rng.choice(
                [0, 1, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, size, size * 2]
            )
            width = rng.choice([4, 8])
            changed[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif kind == "cut":
            del changed[rng.randrange(size) :]
        elif kind == "head":
            del changed[: rng.randrange(1, min(size, 64))]
        elif kind == "double":
            piece = changed[at : at + rng.randrange(1, 64)]
            changed[at:at] = piece
        elif kind == "swap":
            other = rng.randrange(end)
            changed[at], changed[other] = changed[other], changed[at]
        elif kind == "zero":
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
        else:
            changed += rng.randbytes(rng.randrange(1, 64))
    return bytes(changed)


def damage_json(rng: Random, data: bytes) -> bytes:
    """Return a JSON document with a few values changed, or its text damaged."""
    kind = rng.random()
    if kind < 0.15:
        return damage_bytes(rng, data)
    if kind < 0.2:
        deep = rng.choice([300, 5000, 100_000])
        return rng.choice([b"[" * deep, b'{"a":' * deep, b"[" * deep + b"]" * deep])
    if kind < 0.23:
        return rng.choice(
            [b"", b"null", b"[]", b'"x"', b"7", b"{}", POINTER, b"\xff\xfe{}", b"{" * 9]
        )
    document = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        _change(rng, document)
    text = json.dumps(document)
    if rng.random() < 0.1 and isinstance(document, dict) and document:
        key = rng.choice(list(document))  # twice
        text = "{" + json.dumps(key) + ": " + json.dumps(rng.choice(VALUES)) + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _change(rng: Random, document: Any) -> None:
    """Change one value somewhere in a document."""
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.75:
            node = node[key]
            continue
        break
    kind = rng.random()
    if kind < 0.15:
        del node[key]
    elif kind < 0.25 and isinstance(node, dict):
        node[rng.choice(["", "x", "type", "vocab", "shape", "\x00"])] = deepcopy(rng.choice(VALUES))
    elif kind < 0.35 and isinstance(node, list):
        node.append(deepcopy(node[key]))
    elif kind < 0.5 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        number = node[key]
        close = float(number) if abs(number) < 1e300 else 1e300
        node[key] = rng.choice([number + 1, -number, number * 2, close])
    else:
        node[key] = deepcopy(rng.choice(VALUES))
