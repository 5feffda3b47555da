"""Weights in blocks of a few bits: each format is a row of a table that says which planes it has, and how numbers become planes and come back.

A matrix ``[n, k]`` is cut along k into *groups* that share a scale. Files (GGUF) keep the scale of a group beside its codes, in blocks of 18 or 34
bytes; kernels read aligned runs. So the same bits stand apart here, as *planes*, one array for each kind of thing:

=========== ====================== ======================================================================================================
plane       dtype, shape           holds
=========== ====================== ======================================================================================================
codes       u8 ``[n, k / 2]``      two codes of up to 4 bits in a byte: byte j of a group holds element j (low bits) and j + group / 2 (high bits)
            i8 ``[n, k]``          codes of 8 bits, signed; or what codes of 4 bits stand for in formats that are not linear
scale       f16 ``[n, k / group]`` what a code is multiplied by; with ``steps``, one for each 256 elements; bf16 where it is a power of two
low         f16 or u8              f16: what is added after that (in k-quants subtracted); u8: what is subtracted from the codes of a group before
steps       u8 or i8               what the scale of 256 elements is multiplied by to be that of a group
low_steps   u8                     the same for ``low``
high        u8 ``[n, k / group*4]`` the fifth bits of codes of 5 bits, the fifth and sixth of codes of 6, four bytes for a group: byte j has those of
                                   elements j, j + 4, j + 8 and so on, the first in its lowest bits
=========== ====================== ======================================================================================================

``w = scale * steps * (code - zero) + low``, with what a format has of it. One byte gives a kernel two codes for two runs of x that each lie side by
side, so nothing is loaded twice and nothing is shuffled.

``block_layouts.py`` moves between planes and the blocks of a file and loses no bit. The layouts of ``q*`` are those of GGML (``ggml-common.h``), and
``quantize`` and ``dequantize`` give its very bits; ``int4`` and ``int4_zero`` have groups of any even size, symmetric and with zero points as GPTQ
(Frantar et al. 2022) and AWQ (Lin et al. 2023) keep weights.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import k_quants
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.k_quants import SUPER

Planes = Mapping[str, np.ndarray]

#: the planes, in the order in which ``linear_blocks`` takes them
PLANES = ("codes", "scale", "low", "steps", "low_steps", "high")
#: dtypes of what is multiplied by a matrix in blocks, and of what becomes one
ACTIVATIONS = HALVES | {DType.f32}


class Format(enum.Enum):
    """The name of a format."""

    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"
    Q2_K = "q2_k"
    Q3_K = "q3_k"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"
    IQ4_NL = "iq4_nl"
    IQ4_XS = "iq4_xs"
    MXFP4 = "mxfp4"
    INT4 = "int4"
    INT4_ZERO = "int4_zero"


@dataclass(frozen=True)
class Plane:
    """``per`` neighbouring elements of a row share an entry; 0: those of a group."""

    dtype: DType
    per: int = 0


@dataclass(frozen=True)
class FormatRow:
    """``group`` is 0 where it may be chosen. ``zero`` is subtracted from every code. ``quantize`` makes the planes of finite ``f32[n, k]`` rows and a
    group; None where that is not known. ``bytes`` has a block of ``block`` elements in a file; 0: no file has such blocks."""

    format: Format
    group: int
    planes: Mapping[str, Plane]
    zero: int = 0
    block: int = 0
    bytes: int = 0
    quantize: Callable[[np.ndarray, int], dict[str, np.ndarray]] | None = None

    @property
    def paired(self) -> bool:
        """Whether a byte holds two codes."""
        return self.planes["codes"].per == 2

    @property
    def high_bits(self) -> int:
        """How many bits of a code lie in the plane ``high``."""
        return self.planes["high"].dtype.bits // self.planes["high"].per if "high" in self.planes else 0

    @property
    def subtracts(self) -> bool:
        """Whether ``low`` is subtracted at the end, not added."""
        return "low_steps" in self.planes

    def unit(self, group: int) -> int:
        """Of how many elements a row is a multiple."""
        return self.block or group

    def shapes(self, n: int, k: int, group: int = 0) -> dict[str, tuple[int, int]]:
        """The shape of each plane of a matrix. ``group``: where the format does not say."""
        return {name: (n, k // (p.per or self.group or group)) for name, p in self.planes.items()}

    def bits_per_weight(self, group: int = 0) -> float:
        """Bits of all planes, for one element."""
        return sum(p.dtype.bits / (p.per or self.group or group) for p in self.planes.values())


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix ``[n, k]``, or several ``[…, n, k]``, known in a format: ``planes`` reads them, ``[…, n, columns]``. ``turned``: what it stands for is
    the transpose."""

    format: Format
    shape: tuple[int, ...]
    planes: Callable[[], dict[str, np.ndarray]]
    group: int = 0
    turned: bool = False

    def values(self) -> np.ndarray:
        """``f32[…, n, k]``, whatever ``turned`` says."""
        rows = {name: plane.reshape(-1, plane.shape[-1]) for name, plane in self.planes().items()}
        return dequantize(self.format, rows, self.group).reshape(self.shape)


# -- between codes and bytes -----------------------------------------------------------------------------------------------


def pair(codes: np.ndarray, group: int) -> np.ndarray:
    """Codes of 4 bits ``u8[n, k]`` as bytes ``u8[n, k / 2]``: of each group the first half in the low bits, the second in the high ones."""
    n, k = codes.shape
    halves = codes.reshape(n, k // group, 2, group // 2)
    packed: np.ndarray = halves[:, :, 0] | (halves[:, :, 1] << np.uint8(4))
    return packed.reshape(n, k // 2)


def unpair(bytes: np.ndarray, group: int) -> np.ndarray:
    """The inverse of :func:`pair`."""
    n, half = bytes.shape
    runs = bytes.reshape(n, 2 * half // group, 1, group // 2)
    return np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(n, 2 * half)


def halved(codes: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """Codes of 5 or 6 bits ``u8[n, k]`` as the planes ``codes`` and ``high``, whose four bytes for a group have 32 / group bits of each element."""
    n = len(codes)
    fields = (codes >> np.uint8(4)).reshape(n, -1, group // 4, 4)
    shifts = np.arange(0, 8, 32 // group, dtype=np.uint8)[:, None]
    high: np.ndarray = np.bitwise_or.reduce(fields << shifts, axis=2).reshape(n, -1)
    return {"codes": pair(codes & np.uint8(15), group), "high": high}


def unhalved(planes: Planes, group: int) -> np.ndarray:
    """All codes of a format that has two in a byte, ``u8[n, k]``."""
    codes = unpair(planes["codes"].astype(np.uint8), group)
    if "high" not in planes:
        return codes
    bytes = planes["high"].astype(np.uint8).reshape(len(codes), -1, 1, 4)
    bits = 32 // group
    fields = (bytes >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]) & np.uint8((1 << bits) - 1)
    found: np.ndarray = codes | (fields << np.uint8(4)).reshape(codes.shape)
    return found


def unsigned(row: FormatRow, codes: np.ndarray) -> np.ndarray:
    """The plane ``codes`` as bytes without a sign, which is what instructions multiply by signed ones: 128 is added to codes that have one."""
    return codes if row.paired else codes.view(np.uint8) ^ np.uint8(128)


def signed(row: FormatRow, codes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`unsigned`."""
    return codes if row.paired else (codes ^ np.uint8(128)).view(np.int8)


# -- planes to numbers -----------------------------------------------------------------------------------------------------


def parts(row: FormatRow, group: int, planes: Planes, dtype: type[np.floating]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Of what ``w = factor * code + moved`` is made: codes ``i16[n, k]`` less their zero points, and for each group the factor and what is added,
    ``[n, k / group]`` in arithmetic of that dtype; None where nothing is."""

    def of_group(name: str, steps: str) -> np.ndarray:
        found = np.repeat(planes[name].astype(dtype), (row.planes[name].per or group) // group, axis=1)
        if steps in row.planes:
            found = found * planes[steps].astype(dtype)
        return found

    codes = unhalved(planes, group) if row.paired else planes["codes"]
    codes = codes.astype(np.int16) - np.int16(row.zero)
    if "low" not in row.planes:
        return codes, of_group("scale", "steps"), None
    if row.planes["low"].dtype is DType.u8:
        return codes - np.repeat(planes["low"].astype(np.int16), group, axis=1), of_group("scale", "steps"), None
    moved = of_group("low", "low_steps")
    return codes, of_group("scale", "steps"), -moved if row.subtracts else moved


def values(row: FormatRow, group: int, planes: Planes) -> np.ndarray:
    """The matrix that planes stand for, in f32 arithmetic, which rounds the last sum alone."""
    codes, factor, moved = parts(row, group, planes, np.float32)
    out: np.ndarray = np.repeat(factor, group, axis=1) * codes.astype(np.float32)
    return out if moved is None else out + np.repeat(moved, group, axis=1)


def dequantize(format: Format, planes: Planes, group: int = 0) -> np.ndarray:
    """``f32[n, k]`` of planes, to the bit what GGML makes of the same blocks. ``group``: where the format does not say."""
    row = FORMATS[format]
    with np.errstate(all="ignore"):  # scales may be infinite or NaN in a file
        return values(row, row.group or group, planes)


def quantize(format: Format, rows: np.ndarray, group: int = 0) -> dict[str, np.ndarray]:
    """The planes of finite ``f32[n, k]`` rows; k is a multiple of :meth:`FormatRow.unit`. ``ValueError`` for a format without a quantizer."""
    row = FORMATS[format]
    if row.quantize is None:
        raise ValueError(f"nothing is quantized to {format.value} yet")
    with np.errstate(all="ignore"):  # the scale of a group of tiny numbers is 0, and its reciprocal infinite
        return row.quantize(np.ascontiguousarray(rows, np.float32), row.group or group)


# -- numbers to planes -----------------------------------------------------------------------------------------------------


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _grouped(rows: np.ndarray, group: int) -> np.ndarray:
    return rows.reshape(len(rows), -1, group)


def _farthest(blocks: np.ndarray) -> np.ndarray:
    """Of each block the element of the largest magnitude, the first of equals, with its sign."""
    found: np.ndarray = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    return found


def _flat(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(len(codes), -1)


def _to_u8(steps: np.ndarray, top: int) -> np.ndarray:
    """Numbers as codes of 0 … ``top``; NaN, which 0 times an infinite reciprocal gives, as 0."""
    codes: np.ndarray = np.nan_to_num(steps, nan=0.0, posinf=top, neginf=0.0).clip(0, top).astype(np.uint8)
    return codes


def _quantize_q8_0(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """``d = max |x| / 127``; ``x / d`` to the nearest integer, halves away from zero."""
    blocks = _grouped(rows, group)
    d = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    steps = blocks * _inverse(d)
    size = np.abs(steps)
    whole = np.floor(size)
    nearest = np.nan_to_num(np.copysign(whole + (size - whole >= np.float32(0.5)), steps), nan=0.0, posinf=127, neginf=-127)
    return {"codes": _flat(nearest.clip(-127, 127).astype(np.int8)), "scale": d[..., 0].astype(np.float16)}


def _symmetric(rows: np.ndarray, group: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of 0 … ``top`` and scales: the element of the largest magnitude is code 0, which is ``-(top + 1) / 2``: ``d`` is its share, with the
    other sign."""
    blocks, zero = _grouped(rows, group), (top + 1) // 2
    d = _farthest(blocks) / np.float32(-zero)
    return _flat(_to_u8(np.trunc(blocks * _inverse(d) + np.float32(zero + 0.5)), top)), d[..., 0].astype(np.float16)


def _between(rows: np.ndarray, group: int, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and lows: ``top`` steps from the smallest to the largest element."""
    blocks = _grouped(rows, group)
    low = blocks.min(-1, keepdims=True)
    d = (blocks.max(-1, keepdims=True) - low) / np.float32(top)
    codes = _to_u8(np.trunc((blocks - low) * _inverse(d) + np.float32(0.5)), top)
    return _flat(codes), d[..., 0].astype(np.float16), low[..., 0].astype(np.float16)


def _quantize_q4_0(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    codes, scale = _symmetric(rows, group, 15)
    return {"codes": pair(codes, group), "scale": scale}


def _quantize_q4_1(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    codes, scale, low = _between(rows, group, 15)
    return {"codes": pair(codes, group), "scale": scale, "low": low}


def _quantize_q5_0(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    codes, scale = _symmetric(rows, group, 31)
    return {**halved(codes, group), "scale": scale}


def _quantize_q5_1(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    codes, scale, low = _between(rows, group, 31)
    return {**halved(codes, group), "scale": scale, "low": low}


def _quantize_int4(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """As ``q4_0``, but codes are the nearest ones for the scale as it is kept, in f16."""
    blocks = _grouped(rows, group)
    scale = (_farthest(blocks) / np.float32(-8)).astype(np.float16)
    codes = _to_u8(np.rint(blocks * _inverse(scale.astype(np.float32))) + np.float32(8), 15)
    return {"codes": pair(_flat(codes), group), "scale": scale[..., 0]}


def _quantize_int4_zero(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """Fifteen steps between the ends of a group, 0 among them; its code is the zero point."""
    blocks = _grouped(rows, group)
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    scale = ((high - low) / np.float32(15)).astype(np.float16)
    inverse = _inverse(scale.astype(np.float32))
    zero = _to_u8(np.rint(-low * inverse), 15)
    codes = _to_u8(np.rint(blocks * inverse) + zero, 15)
    return {"codes": pair(_flat(codes), group), "scale": scale[..., 0], "low": zero[..., 0]}


#: What the 16 codes of formats that are not linear stand for: of ``iq4_nl`` and ``iq4_xs`` (``ggml-common.h``), and, doubled, the numbers of E2M1
#: (OCP Microscaling Formats 1.0, 2023), of which two are zero.
NOT_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def power(exponents: np.ndarray) -> np.ndarray:
    """Exponents of E8M0, u8, as half of the powers of two that they stand for, bf16: ``2**(e - 128)``."""
    e = exponents.astype(np.uint16)
    found: np.ndarray = np.where(e < 2, np.uint16(32) << np.minimum(e, 1), (e - (e > 0)) << np.uint16(7)).astype(np.uint16).view(DType.bf16.numpy)
    return found


def _quantize_mxfp4(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """The power of two below the largest element is 4; each element becomes the nearest number of E2M1, the first of equals."""
    blocks = _grouped(rows, group)
    largest = np.abs(blocks).max(-1)
    exponents = np.where(largest > 0, np.floor(np.log2(largest)) - 2 + 127, 0).astype(np.uint8)
    scale = power(exponents)
    d = scale.astype(np.float32)[..., None]
    best, error = np.zeros(blocks.shape, np.int8), np.full(blocks.shape, np.inf, np.float32)
    for number in E2M1:
        off = np.abs(d * np.float32(number) - blocks)
        best = np.where(off < error, number, best)
        error = np.minimum(off, error)
    return {"codes": _flat(best), "scale": scale}


def _quantize_q2_k(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    return _paired(k_quants.affine(rows, group, 3, 15, (-0.5, 15), absolute=True, by_size=True), group)


def _quantize_q3_k(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    planes = k_quants.symmetric(rows, group, 4, 32, k_quants.refined)
    return _paired({**planes, "codes": (planes["codes"] + np.int8(4)).view(np.uint8)}, group)


def _quantize_q4_k(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    return _paired(k_quants.affine(rows, group, 15, 63, (-1.0, 20)), group)


def _quantize_q5_k(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    planes = k_quants.affine(rows, group, 31, 63, (-0.5, 15))
    return {**planes, **halved(planes["codes"], group)}


def _quantize_q6_k(rows: np.ndarray, group: int) -> dict[str, np.ndarray]:
    planes = k_quants.symmetric(rows, group, 32, 128, k_quants.scaled, nearby=True)
    return {**planes, **halved((planes["codes"] + np.int8(32)).view(np.uint8), group)}


def _paired(planes: Planes, group: int) -> dict[str, np.ndarray]:
    return {**planes, "codes": pair(planes["codes"], group)}


# -- the table -------------------------------------------------------------------------------------------------------------

_NIBBLES, _BYTES, _SCALE = Plane(DType.u8, 2), Plane(DType.i8, 1), Plane(DType.f16)
_SUPER, _U8, _I8 = Plane(DType.f16, SUPER), Plane(DType.u8), Plane(DType.i8)
_FIFTH, _SIXTH = {"high": Plane(DType.u8, 8)}, {"high": Plane(DType.u8, 4)}
_STEPS = {"scale": _SUPER, "low": _SUPER, "steps": _U8, "low_steps": _U8}

FORMATS: Mapping[Format, FormatRow] = {
    row.format: row
    for row in (
        FormatRow(Format.Q8_0, 32, {"codes": _BYTES, "scale": _SCALE}, 0, 32, 34, _quantize_q8_0),
        FormatRow(Format.Q4_0, 32, {"codes": _NIBBLES, "scale": _SCALE}, 8, 32, 18, _quantize_q4_0),
        FormatRow(Format.Q4_1, 32, {"codes": _NIBBLES, "scale": _SCALE, "low": _SCALE}, 0, 32, 20, _quantize_q4_1),
        FormatRow(Format.Q5_0, 32, {"codes": _NIBBLES, "scale": _SCALE, **_FIFTH}, 16, 32, 22, _quantize_q5_0),
        FormatRow(Format.Q5_1, 32, {"codes": _NIBBLES, "scale": _SCALE, "low": _SCALE, **_FIFTH}, 0, 32, 24, _quantize_q5_1),
        FormatRow(Format.Q2_K, 16, {"codes": _NIBBLES, **_STEPS}, 0, SUPER, 84, _quantize_q2_k),
        FormatRow(Format.Q3_K, 16, {"codes": _NIBBLES, "scale": _SUPER, "steps": _I8}, 4, SUPER, 110, _quantize_q3_k),
        FormatRow(Format.Q4_K, 32, {"codes": _NIBBLES, **_STEPS}, 0, SUPER, 144, _quantize_q4_k),
        FormatRow(Format.Q5_K, 32, {"codes": _NIBBLES, **_STEPS, **_FIFTH}, 0, SUPER, 176, _quantize_q5_k),
        FormatRow(Format.Q6_K, 16, {"codes": _NIBBLES, "scale": _SUPER, "steps": _I8, **_SIXTH}, 32, SUPER, 210, _quantize_q6_k),
        FormatRow(Format.IQ4_NL, 32, {"codes": _BYTES, "scale": _SCALE}, 0, 32, 18),
        FormatRow(Format.IQ4_XS, 32, {"codes": _BYTES, "scale": _SUPER, "steps": _I8}, 0, SUPER, 136),
        FormatRow(Format.MXFP4, 32, {"codes": _BYTES, "scale": Plane(DType.bf16)}, 0, 32, 17, _quantize_mxfp4),
        FormatRow(Format.INT4, 0, {"codes": _NIBBLES, "scale": _SCALE}, 8, quantize=_quantize_int4),
        FormatRow(Format.INT4_ZERO, 0, {"codes": _NIBBLES, "scale": _SCALE, "low": _U8}, 0, quantize=_quantize_int4_zero),
    )
}
