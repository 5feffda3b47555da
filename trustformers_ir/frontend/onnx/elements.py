"""Element types of ONNX: which dtype holds each, and how numbers are rounded to those that no dtype of ours is.

Integers of 2 and 4 bits are held in ``i8`` and ``u8``, floats of 4 and 8 bits in ``f32``: every one of their numbers is one of the wider dtype, and
whatever makes them (casts, quantization) rounds to them exactly. So a model computes what it says, and inputs and outputs of these types are given
and got in the wider dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.dtypes import DType


@dataclass(frozen=True)
class Small:
    """A float of at most 8 bits: bits of exponent and fraction, the exponent's bias, the largest number, what is above it.

    ``infinite``: there are infinities. ``nan``: there is a NaN. ``signed``: there are negative numbers and a zero.
    """

    fraction: int
    bias: int
    largest: float
    infinite: bool = False
    nan: bool = True
    signed: bool = True

    @property
    def lowest_exponent(self) -> int:
        """That of the smallest normal number."""
        return 1 - self.bias


@dataclass(frozen=True)
class Element:
    """An element type: its number in the format (``TensorProto.DataType``), its name there, the dtype that holds it, and what narrows it."""

    code: int
    name: str
    dtype: DType
    bits: int
    small: Small | None = None

    @property
    def packed(self) -> bool:
        """Whether several elements share a byte in files."""
        return self.bits < 8

    @property
    def narrow_integer(self) -> bool:
        return self.bits < 8 and self.small is None

    @property
    def is_float(self) -> bool:
        return self.dtype.is_float

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1)) if self.dtype.is_signed else 0

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - (1 if self.dtype.is_signed else 0))) - 1

    def __str__(self) -> str:
        return self.name


_ROWS = (
    Element(1, "float", DType.f32, 32),
    Element(2, "uint8", DType.u8, 8),
    Element(3, "int8", DType.i8, 8),
    Element(4, "uint16", DType.u16, 16),
    Element(5, "int16", DType.i16, 16),
    Element(6, "int32", DType.i32, 32),
    Element(7, "int64", DType.i64, 64),
    Element(9, "bool", DType.bool, 8),
    Element(10, "float16", DType.f16, 16),
    Element(11, "double", DType.f64, 64),
    Element(12, "uint32", DType.u32, 32),
    Element(13, "uint64", DType.u64, 64),
    Element(14, "complex64", DType.c64, 64),
    Element(15, "complex128", DType.c128, 128),
    Element(16, "bfloat16", DType.bf16, 16),
    Element(17, "float8e4m3fn", DType.f32, 8, Small(3, 7, 448.0)),
    Element(18, "float8e4m3fnuz", DType.f32, 8, Small(3, 8, 240.0)),
    Element(19, "float8e5m2", DType.f32, 8, Small(2, 15, 57344.0, infinite=True)),
    Element(20, "float8e5m2fnuz", DType.f32, 8, Small(2, 16, 57344.0)),
    Element(21, "uint4", DType.u8, 4),
    Element(22, "int4", DType.i8, 4),
    Element(23, "float4e2m1", DType.f32, 4, Small(1, 1, 6.0, nan=False)),
    Element(24, "float8e8m0", DType.f32, 8, Small(0, 127, 2.0**127, signed=False)),
    Element(25, "uint2", DType.u8, 2),
    Element(26, "int2", DType.i8, 2),
)
STRING = 8
ELEMENTS = {row.code: row for row in _ROWS}
BY_NAME = {row.name: row for row in _ROWS}
F32, F64, F16, BF16 = (BY_NAME[n] for n in ("float", "double", "float16", "bfloat16"))
I8, U8, I32, I64, BOOL = (BY_NAME[n] for n in ("int8", "uint8", "int32", "int64", "bool"))
_OF_DTYPE = {row.dtype: row for row in reversed(_ROWS) if row.small is None and not row.narrow_integer}

#: numpy's names of the types that files pack or that ml_dtypes brings
_ML = {
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz",
    "float8_e5m2": "float8e5m2",
    "float8_e5m2fnuz": "float8e5m2fnuz",
    "float8_e8m0fnu": "float8e8m0",
    "float4_e2m1fn": "float4e2m1",
    "uint4": "uint4",
    "int4": "int4",
    "uint2": "uint2",
    "int2": "int2",
}
ML_NAMES = {ours: theirs for theirs, ours in _ML.items()}


def of_dtype(dtype: DType) -> Element:
    """The element type that a dtype is."""
    return _OF_DTYPE[dtype]


def held(array: np.ndarray) -> np.ndarray:
    """An array of a numpy or ml_dtypes dtype in the dtype that holds its elements."""
    name = _ML.get(array.dtype.name)
    return array if name is None else array.astype(BY_NAME[name].dtype.numpy)


def of_numpy(array: np.ndarray) -> Element | None:
    """The element type of an array; None where it has none (strings, objects)."""
    name = _ML.get(array.dtype.name)
    if name is not None:
        return BY_NAME[name]
    try:
        return of_dtype(DType.from_numpy(array.dtype))
    except KeyError:
        return None
