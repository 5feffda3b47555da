"""Bytes of a file made wrong: what the tests of GGUF, safetensors and ONNX files have in common."""

from __future__ import annotations

import random
import struct

WORDS = (0, 1, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
HALVES = (0, 8, 9, 1 << 31, (1 << 32) - 1)
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(rng: random.Random, seed: bytes, start: int = 0) -> bytes:
    """The bytes with one to four changes after ``start``: bits flipped, edge values, words of 4 and 8 bytes, cuts, insertions, repetitions."""
    raw = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(raw) <= start:
            break
        at, how = rng.randrange(start, len(raw)), rng.randrange(8)
        if how == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            raw[at] = rng.choice((*EDGES, rng.randrange(256)))
        elif how == 2:
            raw[at : at + 8] = struct.pack("<Q", rng.choice((*WORDS, rng.randrange(1 << 20))))
        elif how == 3:
            raw[at : at + 4] = struct.pack("<I", rng.choice((*HALVES, rng.randrange(64))))
        elif how == 4:
            del raw[at:]
        elif how == 5:
            del raw[at : at + rng.randrange(1, 16)]
        elif how == 6:
            raw[at:at] = raw[at : at + rng.randrange(1, 40)]
        else:
            raw[at:at] = rng.randbytes(rng.randrange(1, 16))
    return bytes(raw)
