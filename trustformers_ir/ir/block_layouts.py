"""Blocks of GGUF files: how each format's bytes are taken apart into planes (``block_formats.py``), and put together again, to the bit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from trustformers_ir.ir.block_formats import E2M1, FORMATS, NOT_LINEAR, Format, Planes, halved, pair, power, unhalved, unpair
from trustformers_ir.ir.dtypes import DType


def split(format: Format, blocks: np.ndarray) -> dict[str, np.ndarray]:
    """The planes of rows of blocks as a file has them, ``u8[n, k / block * bytes]``."""
    row = FORMATS[format]
    n = len(blocks)
    cells = np.ascontiguousarray(blocks).reshape(n, -1, row.bytes)
    if format in _LAYOUTS:
        return _LAYOUTS[format][0](cells)
    out, at = {}, 0
    for name in FILE_ORDER:
        if name in row.planes:
            plane = row.planes[name]
            size = row.block // (plane.per or row.group) * plane.dtype.itemsize
            out[name] = _plane(cells[:, :, at : at + size], plane.dtype)
            at += size
    return out


def join(format: Format, planes: Planes) -> np.ndarray:
    """The inverse of :func:`split`, to the bit."""
    row = FORMATS[format]
    n = len(planes["codes"])
    count = planes["codes"].shape[1] * row.planes["codes"].per // row.block

    def cells(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a).view(np.uint8).reshape(n, count, -1)

    parts = _LAYOUTS[format][1](planes, n, count) if format in _LAYOUTS else [planes[name] for name in FILE_ORDER if name in row.planes]
    return np.concatenate([cells(p) for p in parts], axis=2).reshape(n, -1)


def _plane(cells: np.ndarray, dtype: DType) -> np.ndarray:
    """A part of every block as a plane."""
    found: np.ndarray = np.ascontiguousarray(cells).reshape(len(cells), -1).view(dtype.numpy)
    return found


#: of the plain formats: what follows what in a block
FILE_ORDER = ("scale", "low", "codes")

# A block of q5_0: f16 d, 4 bytes of fifth bits (bit i of 32 is that of element i), 16 bytes of low 4 bits as in q4_0. In q5_1 the f16 of the smallest
# element follows d.


def _split_q5(cells: np.ndarray, factors: tuple[str, ...]) -> dict[str, np.ndarray]:
    n = len(cells)
    at = 2 * len(factors)
    fifth = np.unpackbits(np.ascontiguousarray(cells[:, :, at : at + 4]), axis=2, bitorder="little")
    low = cells[:, :, at + 4 :]
    codes = np.concatenate([low & 15, low >> 4], axis=2) | (fifth << 4)
    planes = {name: _plane(cells[:, :, 2 * i : 2 * i + 2], DType.f16) for i, name in enumerate(factors)}
    return {**halved(codes.reshape(n, -1), 32), **planes}


def _join_q5(planes: Planes, n: int, count: int, factors: tuple[str, ...]) -> list[np.ndarray]:
    codes = unhalved(planes, 32).reshape(n, count, 32)
    fifth = np.packbits(codes >> 4, axis=2, bitorder="little")
    return [*(planes[name] for name in factors), fifth, (codes[:, :, :16] & 15) | ((codes[:, :, 16:] & 15) << 4)]


# A block of q2_k: 16 bytes of steps (low half) and low steps (high half), 64 bytes of codes, f16 d, f16 dmin. Each half of 128 elements has 32 bytes:
# byte j has those of elements j, j + 32, j + 64, j + 96.


def _split_q2_k(cells: np.ndarray) -> dict[str, np.ndarray]:
    n = len(cells)
    steps = cells[:, :, :16]
    return {
        "codes": pair(_quarters(cells[:, :, 16:80]).reshape(n, -1), 16),
        "scale": _plane(cells[:, :, 80:82], DType.f16),
        "low": _plane(cells[:, :, 82:], DType.f16),
        "steps": (steps & 15).reshape(n, -1),
        "low_steps": (steps >> 4).reshape(n, -1),
    }


def _join_q2_k(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    codes = unpair(planes["codes"], 16).reshape(n, count, 256)
    return [planes["steps"] | (planes["low_steps"] << 4), _quartered(codes), planes["scale"], planes["low"]]


def _quarters(bytes: np.ndarray) -> np.ndarray:
    """Codes of 2 bits of runs of 128 elements, ``u8[n, count, 64]`` to ``u8[n, count, 256]``."""
    n, count, _ = bytes.shape
    runs = bytes.reshape(n, count, 2, 1, 32)
    found: np.ndarray = np.concatenate([(runs >> s) & 3 for s in (0, 2, 4, 6)], axis=3).reshape(n, count, 256)
    return found


def _quartered(codes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_quarters`."""
    runs = codes.reshape(*codes.shape[:2], 2, 4, 32)
    found: np.ndarray = (runs[:, :, :, 0] | (runs[:, :, :, 1] << 2) | (runs[:, :, :, 2] << 4) | (runs[:, :, :, 3] << 6)).reshape(*codes.shape[:2], 64)
    return found


# A block of q3_k: 32 bytes of third bits (bit b of byte j is that of element j + 32 b; what has none is 4 less), 64 bytes of low 2 bits as in q2_k,
# 16 steps of 6 bits in 12 bytes, 32 less than what is stored, f16 d. The steps: bytes 0-7 have the low 4 bits of steps 0-7 (low half) and 8-15 (high
# half); byte 8 + i has the upper 2 bits of steps i, i + 4, i + 8 and i + 12.


def _split_q3_k(cells: np.ndarray) -> dict[str, np.ndarray]:
    n, count, _ = cells.shape
    third = np.concatenate([(cells[:, :, None, :32] >> b) & 1 for b in range(8)], axis=2).reshape(n, count, 256)
    low, high = cells[:, :, 96:104], cells[:, :, 104:108]
    steps = np.concatenate([low & 15, low >> 4], axis=2) | (np.concatenate([(high >> s) & 3 for s in (0, 2, 4, 6)], axis=2) << 4)
    return {
        "codes": pair((_quarters(cells[:, :, 32:96]) | (third << 2)).reshape(n, -1), 16),
        "scale": _plane(cells[:, :, 108:], DType.f16),
        "steps": steps.reshape(n, -1).view(np.int8) - np.int8(32),
    }


def _join_q3_k(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    codes = unpair(planes["codes"], 16).reshape(n, count, 256)
    third = np.packbits((codes >> 2).reshape(n, count, 8, 32), axis=2, bitorder="little").reshape(n, count, 32)
    steps = (planes["steps"] + np.int8(32)).view(np.uint8).reshape(n, count, 16)
    high = (steps >> 4).reshape(n, count, 4, 4)
    joined = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return [third, _quartered(codes & 3), (steps[:, :, :8] & 15) | ((steps[:, :, 8:] & 15) << 4), joined, planes["scale"]]


# A block of q4_k: f16 d, f16 dmin, 8 steps and 8 low steps of 6 bits in 12 bytes, 128 bytes of codes. Byte j of a run of 32 has the codes of element
# j of one group and of the group after it. The steps: bytes 0-3 and 4-7 hold steps and low steps 0-3 in their low 6 bits; bytes 8-11 have the low 4
# bits of step (low half) and low step (high half) 4-7, whose upper 2 bits are the upper bits of bytes 0-3 and 4-7.


def _split_steps(packed: np.ndarray) -> dict[str, np.ndarray]:
    """The steps and low steps of q4_k and q5_k, of ``u8[n, count, 12]``."""
    a, b, c = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    steps = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=2)
    low_steps = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=2)
    return {"steps": steps.reshape(len(packed), -1), "low_steps": low_steps.reshape(len(packed), -1)}


def _join_steps(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    steps, low = (planes[name].reshape(n, count, 8) for name in ("steps", "low_steps"))
    a = steps[:, :, :4] | ((steps[:, :, 4:] >> 4) << 6)
    b = low[:, :, :4] | ((low[:, :, 4:] >> 4) << 6)
    return [a, b, (steps[:, :, 4:] & 15) | ((low[:, :, 4:] & 15) << 4)]


def _split_q4_k(cells: np.ndarray) -> dict[str, np.ndarray]:
    n, count, _ = cells.shape
    runs = cells[:, :, 16:].reshape(n, count, 4, 1, 32)
    codes = np.concatenate([runs & 15, runs >> 4], axis=3).reshape(n, -1)
    factors = {"scale": _plane(cells[:, :, :2], DType.f16), "low": _plane(cells[:, :, 2:4], DType.f16)}
    return {"codes": pair(codes, 32), **factors, **_split_steps(cells[:, :, 4:16])}


def _join_q4_k(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    runs = unpair(planes["codes"], 32).reshape(n, count, 4, 2, 32)
    return [planes["scale"], planes["low"], *_join_steps(planes, n, count), runs[:, :, :, 0] | (runs[:, :, :, 1] << 4)]


# A block of q5_k: as q4_k, but before the codes 32 bytes of fifth bits: bit g of byte j is that of element j of group g.


def _split_q5_k(cells: np.ndarray) -> dict[str, np.ndarray]:
    n, count, _ = cells.shape
    runs = cells[:, :, 48:].reshape(n, count, 4, 1, 32)
    fifth = np.concatenate([(cells[:, :, None, 16:48] >> g) & 1 for g in range(8)], axis=2).reshape(n, -1)
    codes = np.concatenate([runs & 15, runs >> 4], axis=3).reshape(n, -1) | (fifth << 4)
    factors = {"scale": _plane(cells[:, :, :2], DType.f16), "low": _plane(cells[:, :, 2:4], DType.f16)}
    return {**halved(codes, 32), **factors, **_split_steps(cells[:, :, 4:16])}


def _join_q5_k(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    codes = unhalved(planes, 32).reshape(n, count, 8, 32)
    fifth = np.packbits(codes >> 4, axis=2, bitorder="little").reshape(n, count, 32)
    low = codes & 15
    return [planes["scale"], planes["low"], *_join_steps(planes, n, count), fifth, low[:, :, 0::2] | (low[:, :, 1::2] << 4)]


# A block of q6_k: 128 bytes of low 4 bits, 64 bytes of high 2 bits, 16 steps i8, f16 d. Each half of 128 elements has 64 bytes of low bits (byte j:
# elements j and j + 64) and 32 of high bits (byte j: elements j, j + 32, j + 64, j + 96).


def _split_q6_k(cells: np.ndarray) -> dict[str, np.ndarray]:
    n, count, _ = cells.shape
    low, high = cells[:, :, :128].reshape(n, count, 2, 1, 64), cells[:, :, 128:192].reshape(n, count, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=3).reshape(n, count, 2, 128)
    high = np.concatenate([(high >> s) & 3 for s in (0, 2, 4, 6)], axis=3).reshape(n, count, 2, 128)
    return {
        **halved((low | (high << 4)).reshape(n, -1), 16),
        "scale": _plane(cells[:, :, 208:], DType.f16),
        "steps": _plane(cells[:, :, 192:208], DType.i8),
    }


def _join_q6_k(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    codes = unhalved(planes, 16).reshape(n, count, 2, 128)
    low = codes.reshape(n, count, 2, 2, 64) & 15
    high = codes.reshape(n, count, 2, 4, 32) >> 4
    joined = high[:, :, :, 0] | (high[:, :, :, 1] << 2) | (high[:, :, :, 2] << 4) | (high[:, :, :, 3] << 6)
    return [low[:, :, :, 0] | (low[:, :, :, 1] << 4), joined, planes["steps"], planes["scale"]]


# A block of iq4_nl: f16 d, 16 bytes of codes as in q4_0. Of iq4_xs: f16 d, a word with the upper 2 bits of 8 steps, 4 bytes with their low 4 bits,
# two in each, 8 times 16 bytes of codes; a step is 32 less than what is stored. Of mxfp4: an exponent, 16 bytes of codes. Of its two zeros only one
# comes back: planes do not tell them apart.


def _looked_up(bytes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Runs of 16 bytes, two codes in each as in q4_0, as what the codes stand for."""
    n = len(bytes)
    runs = bytes.reshape(n, -1, 1, 16)
    found: np.ndarray = table[np.concatenate([runs & 15, runs >> 4], axis=2)].reshape(n, -1)
    return found


def _looked_for(numbers: np.ndarray, table: np.ndarray, n: int, count: int) -> np.ndarray:
    """The inverse; the first of equal ones."""
    places = np.zeros(256, np.uint8)
    places[table[::-1].view(np.uint8)] = np.arange(len(table), dtype=np.uint8)[::-1]
    runs = places[numbers.view(np.uint8)].reshape(n, count, -1, 2, 16)
    found: np.ndarray = runs[:, :, :, 0] | (runs[:, :, :, 1] << 4)
    return found


def _split_iq4_nl(cells: np.ndarray) -> dict[str, np.ndarray]:
    return {"codes": _looked_up(cells[:, :, 2:], NOT_LINEAR), "scale": _plane(cells[:, :, :2], DType.f16)}


def _join_iq4_nl(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    return [planes["scale"], _looked_for(planes["codes"], NOT_LINEAR, n, count)]


def _split_iq4_xs(cells: np.ndarray) -> dict[str, np.ndarray]:
    n, count, _ = cells.shape
    high = _plane(cells[:, :, 2:4], DType.u16).reshape(n, count, 1) >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack([cells[:, :, 4:8] & 15, cells[:, :, 4:8] >> 4], axis=3).reshape(n, count, 8)
    steps = low | ((high & 3).astype(np.uint8) << 4)
    factors = {"scale": _plane(cells[:, :, :2], DType.f16), "steps": steps.reshape(n, -1).view(np.int8) - np.int8(32)}
    return {"codes": _looked_up(cells[:, :, 8:], NOT_LINEAR), **factors}


def _join_iq4_xs(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    steps = (planes["steps"] + np.int8(32)).view(np.uint8).reshape(n, count, 8)
    shifted = (steps >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    high = np.bitwise_or.reduce(shifted, axis=2)
    return [planes["scale"], high, (steps[:, :, 0::2] & 15) | ((steps[:, :, 1::2] & 15) << 4), _looked_for(planes["codes"], NOT_LINEAR, n, count)]


def _split_mxfp4(cells: np.ndarray) -> dict[str, np.ndarray]:
    return {"codes": _looked_up(cells[:, :, 1:], E2M1), "scale": power(cells[:, :, 0])}


def _join_mxfp4(planes: Planes, n: int, count: int) -> list[np.ndarray]:
    bits = planes["scale"].view(np.uint16).reshape(n, count)
    return [np.where(bits < 128, bits >> 6, (bits >> 7) + 1).astype(np.uint8), _looked_for(planes["codes"], E2M1, n, count)]


_Split = Callable[[np.ndarray], dict[str, np.ndarray]]
_Join = Callable[[Planes, int, int], list[np.ndarray]]
#: how blocks that are no planes after each other are taken apart, and what follows what in them
_LAYOUTS: Mapping[Format, tuple[_Split, _Join]] = {
    Format.Q5_0: (functools.partial(_split_q5, factors=("scale",)), functools.partial(_join_q5, factors=("scale",))),
    Format.Q5_1: (functools.partial(_split_q5, factors=("scale", "low")), functools.partial(_join_q5, factors=("scale", "low"))),
    Format.Q2_K: (_split_q2_k, _join_q2_k),
    Format.Q3_K: (_split_q3_k, _join_q3_k),
    Format.Q4_K: (_split_q4_k, _join_q4_k),
    Format.Q5_K: (_split_q5_k, _join_q5_k),
    Format.Q6_K: (_split_q6_k, _join_q6_k),
    Format.IQ4_NL: (_split_iq4_nl, _join_iq4_nl),
    Format.IQ4_XS: (_split_iq4_xs, _join_iq4_xs),
    Format.MXFP4: (_split_mxfp4, _join_mxfp4),
}
