"""Safetensors files made wrong: by the header's JSON, by its length, and by the byte."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from typing import Any

from mutations import mutated

SIZES = (0, 1, -1, 2, 4, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30)
WORDS: tuple[Any, ...] = (*SIZES, 1.5, 1e300, True, None, "", "F32", "F8_E4M3", "F4", "f32", "F" * 5000, "é", "\u0000", "\ud800", [], {}, [[1]],
    {"a": 1})
NAMES = ("", "a", "b", "__metadata__", "dtype", "\u0000", "\ud83d", "ﬀ", "\u202e", "a" * 5000, "../../etc/passwd", '"', "\\")
SOURCES: list[tuple[str, dict[str, Any], int]] = [
    ("plain", {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]}}, 32),
    ("kinds", {
        "__metadata__": {"format": "pt", "é": 'quotes " and \\'},
        **{d: {"dtype": d, "shape": [4], "data_offsets": [o, o + 4 * n]} for d, o, n in (
            ("BOOL", 0, 1), ("U8", 4, 1), ("I16", 8, 2), ("BF16", 16, 2), ("F64", 24, 8), ("C64", 56, 8), ("U64", 88, 8))},
    }, 120),
    ("many", {f"layers.{i}.weight": {"dtype": "F16", "shape": [2, 1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(12)}, 48),
    ("empty", {"e": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]}}, 0),
]  # fmt: skip


def packed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", (len(header) if length is None else length) % (1 << 64)) + header + data


def changed(rng: random.Random, header: dict[str, Any]) -> None:
    """One thing in the header is another."""
    name = rng.choice(list(header))
    row = header[name]
    how = rng.randrange(9)
    if how == 0 or not isinstance(row, dict) or "dtype" not in row:
        header[rng.choice(NAMES)] = rng.choice(WORDS)
    elif how == 1:
        row[rng.choice(("dtype", "shape", "data_offsets", "more", ""))] = rng.choice(WORDS)
    elif how == 2:
        row.pop(rng.choice(list(row)))
    elif how == 3:
        row["data_offsets"][rng.randrange(2)] = rng.choice(SIZES)
    elif how == 4:  # overlaps and holes
        row["data_offsets"] = [o + rng.choice((-4, -1, 1, 4)) for o in row["data_offsets"]]
    elif how == 5:
        row["shape"].insert(0, rng.choice(SIZES))
    elif how == 6:
        row["shape"] = [rng.choice((0, 1, 2, 1 << 32, 1 << 62))] * rng.choice((1, 2, 4, 33, 2000))
    elif how == 7:
        header[rng.choice(NAMES) + name] = dict(row)
    else:
        row["dtype"] = rng.choice(("F64", "F16", "I8", "F8_E5M2", "X", "BOOL"))


def rewritten(rng: random.Random, text: str) -> bytes:
    """The text of the header, in ways in which JSON is not written."""
    how = rng.randrange(12)
    if how == 0:
        return ("[" * rng.choice((10, 10_000)) + text).encode()
    if how == 1:
        return (text[:-1] + "," + text[1:]).encode()  # every name twice
    if how == 2:
        return text.replace(":", rng.choice((" :\t", "::", "=", "")), rng.randrange(1, 4)).encode()
    if how == 3:
        return text.encode("utf-16")
    if how == 4:
        return text.replace('"', rng.choice(("'", '\\"', "\u201c")), rng.randrange(1, 4)).encode()
    if how == 5:
        return text.encode() + rng.choice((b" ", b"\0", b"{}", b" " * 100, b"x"))
    if how == 6:
        return b"\xef\xbb\xbf" + text.encode()
    if how == 7:
        at = rng.randrange(len(text))
        return (text[:at] + rng.choice(("1e5", "NaN", "Infinity", "0x1", "-0", "01", "\\ud800", "\\u0000", "/*", "{", "}", "]", ",",
            '"')) + text[at:]).encode()
    if how == 8:
        return text.replace("0", rng.choice(("00", "0.0", "-0", "+0", "0e0", "9" * 400, "٠")), rng.randrange(1, 3)).encode()
    if how == 9:
        return json.dumps(json.loads(text), indent=rng.randrange(5)).encode()
    if how == 10:
        at = rng.randrange(len(text))
        return text.encode()[:at] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0")) + text.encode()[at:]
    return text[: rng.randrange(len(text))].encode()


def make(rng: random.Random) -> tuple[bytes, str]:
    """A wrong file."""
    _, source, size = rng.choice(SOURCES)
    text = json.dumps(source, ensure_ascii=rng.random() < 0.5)
    data = bytes(range(256))[:size]
    how = rng.random()
    if how < 0.3:
        return mutated(rng, packed(text.encode(), data)), "bytes"
    if how < 0.4:
        length = rng.choice((0, 1, 2, len(text) - 1, len(text) + 1, len(text) + size, 100_000_000, 100_000_001, 1 << 31, 1 << 63, (1 << 64) - 8, -1))
        return packed(text.encode(), data, length), "length"
    if how < 0.45:
        return packed(text.encode(), data[: rng.randrange(size + 1)] + rng.randbytes(rng.randrange(4))), "data"
    if how < 0.8:
        header = json.loads(text)
        for _ in range(rng.choice((1, 1, 2, 3))):
            with contextlib.suppress(KeyError, TypeError, AttributeError, IndexError):  # what an earlier change took away
                changed(rng, header)
        return packed(json.dumps(header).encode(), data), "header"
    return packed(rewritten(rng, text), data), "text"
