"""Element types: one enum row each, with its width, kind and numpy twin.

``DType.f32["batch", 384]`` (or ``f32["batch", 384]``) builds a tensor type.

``f8e4m3`` is E4M3 of the OCP 8-bit Floating Point Specification 1.0 (2023): 4 bits of exponent, 3 of the fraction, no infinities, 448 the largest.
It is storage: casts, views and copies and the ops of ``ops/quantized_f8.py`` take it, no other op does.
"""

from __future__ import annotations

import builtins
import enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trustformers_ir.ir.types import TensorType


class Kind(enum.Enum):
    """The arithmetic family of a dtype."""

    BOOL = "bool"
    INT = "int"
    UINT = "uint"
    FLOAT = "float"
    COMPLEX = "complex"


class DType(enum.Enum):
    """An element type. The value of a row is ``(bits, kind)``, tagged by its name to keep rows distinct."""

    bool = ("bool", 8, Kind.BOOL)
    i8 = ("i8", 8, Kind.INT)
    i16 = ("i16", 16, Kind.INT)
    i32 = ("i32", 32, Kind.INT)
    i64 = ("i64", 64, Kind.INT)
    u8 = ("u8", 8, Kind.UINT)
    u16 = ("u16", 16, Kind.UINT)
    u32 = ("u32", 32, Kind.UINT)
    u64 = ("u64", 64, Kind.UINT)
    f8e4m3 = ("f8e4m3", 8, Kind.FLOAT)
    f16 = ("f16", 16, Kind.FLOAT)
    bf16 = ("bf16", 16, Kind.FLOAT)
    f32 = ("f32", 32, Kind.FLOAT)
    f64 = ("f64", 64, Kind.FLOAT)
    c64 = ("c64", 64, Kind.COMPLEX)
    c128 = ("c128", 128, Kind.COMPLEX)

    @property
    def bits(self) -> int:
        """Width of one stored element in bits (a bool is stored as one byte)."""
        return self.value[1]

    @property
    def itemsize(self) -> int:
        """Width of one stored element in bytes."""
        return self.value[1] // 8

    @property
    def kind(self) -> Kind:
        return self.value[2]

    @property
    def is_float(self) -> builtins.bool:
        return self.kind is Kind.FLOAT

    @property
    def is_integer(self) -> builtins.bool:
        """Signed or unsigned integer; bool is not one."""
        return self.kind in (Kind.INT, Kind.UINT)

    @property
    def is_signed(self) -> builtins.bool:
        return self.kind in (Kind.INT, Kind.FLOAT, Kind.COMPLEX)

    @property
    def is_complex(self) -> builtins.bool:
        return self.kind is Kind.COMPLEX

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of the same bytes. bf16 and f8e4m3 need ``ml_dtypes``, imported at first use."""
        if self in _ML_DTYPES:
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[self]))
            return found
        return _NUMPY[self]

    @property
    def min(self) -> int:
        """Smallest value of an integer dtype."""
        return -(1 << (self.bits - 1)) if self.kind is Kind.INT else 0

    @property
    def max(self) -> int:
        """Largest value of an integer dtype (1 for bool)."""
        if self.kind is Kind.BOOL:
            return 1
        return (1 << (self.bits - (1 if self.kind is Kind.INT else 0))) - 1

    def __getitem__(self, shape: Any) -> TensorType:
        """``f32["batch", 384]`` is a tensor type; ``f32[()]`` is a scalar."""
        from trustformers_ir.ir.types import TensorType

        return TensorType(shape if isinstance(shape, tuple) else (shape,), self)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @classmethod
    def parse(cls, name: str) -> DType:
        """The dtype of that name (``"f32"``, also ``"float32"``, ``"int64"`` …); ``KeyError`` when there is none."""
        return cls.__members__[name] if name in cls.__members__ else _ALIASES[name]

    @classmethod
    def from_numpy(cls, dtype: Any) -> DType:
        """The dtype of a numpy dtype; ``KeyError`` when it has no row here (strings, objects, float128 …)."""
        name = np.dtype(dtype).newbyteorder("=").name
        return _ALIASES[name]


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.bool: np.dtype(np.bool_),
    DType.i8: np.dtype(np.int8),
    DType.i16: np.dtype(np.int16),
    DType.i32: np.dtype(np.int32),
    DType.i64: np.dtype(np.int64),
    DType.u8: np.dtype(np.uint8),
    DType.u16: np.dtype(np.uint16),
    DType.u32: np.dtype(np.uint32),
    DType.u64: np.dtype(np.uint64),
    DType.f16: np.dtype(np.float16),
    DType.f32: np.dtype(np.float32),
    DType.f64: np.dtype(np.float64),
    DType.c64: np.dtype(np.complex64),
    DType.c128: np.dtype(np.complex128),
}

_ML_DTYPES = {DType.bf16: "bfloat16", DType.f8e4m3: "float8_e4m3fn"}

_ALIASES: dict[str, DType] = {
    "bool": DType.bool,
    "int8": DType.i8,
    "int16": DType.i16,
    "int32": DType.i32,
    "int64": DType.i64,
    "uint8": DType.u8,
    "uint16": DType.u16,
    "uint32": DType.u32,
    "uint64": DType.u64,
    "float16": DType.f16,
    "bfloat16": DType.bf16,
    "float8_e4m3fn": DType.f8e4m3,
    "float32": DType.f32,
    "float64": DType.f64,
    "complex64": DType.c64,
    "complex128": DType.c128,
}

EIGHTHS = frozenset({DType.f8e4m3})
FLOATS = frozenset(d for d in DType if d.is_float) - EIGHTHS
INTS = frozenset(d for d in DType if d.is_integer)
COMPLEXES = frozenset(d for d in DType if d.is_complex)
HALVES = frozenset({DType.f16, DType.bf16})
BOOL = frozenset({DType.bool})
NUMERIC = FLOATS | INTS | COMPLEXES
REAL = FLOATS | INTS
ANY = NUMERIC | BOOL
EVERY = ANY | EIGHTHS
