"""Elementwise ops of several operands: arithmetic, bits, comparisons, selection, casts.

Operands broadcast as in numpy; every equality of sizes is proven from the facts of the symbols. Integer arithmetic wraps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.dtypes import ANY, BOOL, COMPLEXES, EIGHTHS, EVERY, FLOATS, HALVES, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.ops.broadcast import require_broadcast, require_same_dtype
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType

_SHAPES: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...] = (
    ((3, 5), (3, 5)),
    ((4, 1, 6), (5, 1)),
    (("n", 7), (7,)),
    (("b", "s"), ("b", 1)),
    ((), (2, 3)),
)


@dataclass(frozen=True)
class BinaryOp(Op):
    """Base: ``y[i] = ufunc(a[i], b[i])`` after broadcasting, in the common dtype of ``a`` and ``b``."""

    operands = (Operand("a", NUMERIC), Operand("b", NUMERIC))
    constraints = {1: "a and b have one dtype", 2: "the shapes of a and b provably broadcast"}
    fusion = FusionKind.ELEMENTWISE
    ufunc: ClassVar[Callable[..., Any]]
    low: ClassVar[dict[str, float]] = {}
    high: ClassVar[dict[str, float]] = {}

    def infer(self, ctx: InferContext, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (a, b))
        return (TensorType(require_broadcast(self, 2, ctx, a, b), self.result_dtype(a.dtype)),)

    def result_dtype(self, dtype: DType) -> DType:
        return dtype

    def reference(self, ctx: EvalContext, a: np.ndarray, b: np.ndarray) -> Any:
        return type(self).ufunc(a, b)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        dtypes = [d for d in DType if d in cls.operands[0].dtypes]
        preferred = next(d for d in (DType.f32, DType.i32, DType.bool) if d in dtypes)
        for dtype, (a, b) in [(preferred, s) for s in _SHAPES] + [(d, _SHAPES[1]) for d in dtypes if d is not preferred]:
            low = {k: v if dtype.is_signed else max(v, 0.0) for k, v in cls.low.items()}
            yield Sample(cls(), (TensorType(a, dtype), TensorType(b, dtype)), low, cls.high)


# --- arithmetic --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Add(BinaryOp):
    """``a + b``; integers wrap."""

    mnemonic = "add"
    commutative = True
    ufunc = np.add


@dataclass(frozen=True)
class Sub(BinaryOp):
    """``a - b``; integers wrap."""

    mnemonic = "sub"
    ufunc = np.subtract


@dataclass(frozen=True)
class Mul(BinaryOp):
    """``a * b``; integers wrap."""

    mnemonic = "mul"
    commutative = True
    ufunc = np.multiply


@dataclass(frozen=True)
class Div(BinaryOp):
    """``a / b``, true division of floating or complex numbers (IEEE 754: x / 0 is an infinity, 0 / 0 is NaN)."""

    mnemonic = "div"
    operands = (Operand("a", FLOATS | COMPLEXES), Operand("b", FLOATS | COMPLEXES))
    ufunc = np.divide
    low = {"b": 0.25}
    high = {"b": 4.0}


def _floor_divide(a: np.ndarray, b: np.ndarray) -> Any:
    if np.result_type(a).kind == "f":
        return np.where(b == 0, np.divide(a, b), np.floor_divide(a, b))
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a.dtype.type(0), np.floor_divide(a, safe))


def _modulo(a: np.ndarray, b: np.ndarray) -> Any:
    if np.result_type(a).kind == "f":
        return np.remainder(a, b)
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a.dtype.type(0), np.remainder(a, safe))


@dataclass(frozen=True)
class FloorDiv(BinaryOp):
    """``floor(a / b)`` of the exact quotient, as Python's ``//``: ``a == floor_div(a, b) * b + mod(a, b)``.

    Integer division by zero is 0 and the smallest value divided by -1 wraps; floating division by zero is ``a / b``.
    """

    mnemonic = "floor_div"
    operands = (Operand("a", REAL), Operand("b", REAL))
    ufunc = staticmethod(_floor_divide)
    low = {"a": -20, "b": -4}
    high = {"a": 20, "b": 4}


@dataclass(frozen=True)
class Mod(BinaryOp):
    """``a - b * floor(a / b)``, exact, with the sign of ``b`` as Python's ``%``. An integer modulo 0 is 0; a float modulo 0 is NaN."""

    mnemonic = "mod"
    operands = (Operand("a", REAL), Operand("b", REAL))
    ufunc = staticmethod(_modulo)
    low = {"a": -20, "b": -4}
    high = {"a": 20, "b": 4}


def _power(a: np.ndarray, b: np.ndarray) -> Any:
    if np.result_type(a).kind == "f":
        return np.power(a, b)
    one = a.dtype.type(1)
    result = np.power(a, np.maximum(b, 0))  # exponentiation by squaring, wraps
    if a.dtype.kind == "i":
        odd = (b & 1) == 1
        reciprocal = np.where(a == 1, one, np.where(a == -1, np.where(odd, -one, one), a.dtype.type(0)))
        result = np.where(b < 0, reciprocal, result)
    return result.astype(a.dtype)


@dataclass(frozen=True)
class Pow(BinaryOp):
    """``a ** b`` (C's ``pow`` for floats). Integers wrap; a negative integer exponent gives 0 unless a is 1 or -1."""

    mnemonic = "pow"
    operands = (Operand("a", REAL), Operand("b", REAL))
    ufunc = staticmethod(_power)
    low = {"a": 0.25, "b": -2}
    high = {"a": 3, "b": 3}


@dataclass(frozen=True)
class Minimum(BinaryOp):
    """The smaller of a and b; NaN when either is NaN."""

    mnemonic = "minimum"
    operands = (Operand("a", REAL), Operand("b", REAL))
    commutative = True
    ufunc = np.minimum


@dataclass(frozen=True)
class Maximum(BinaryOp):
    """The larger of a and b; NaN when either is NaN."""

    mnemonic = "maximum"
    operands = (Operand("a", REAL), Operand("b", REAL))
    commutative = True
    ufunc = np.maximum


@dataclass(frozen=True)
class Atan2(BinaryOp):
    """The angle of the point (x = b, y = a) in [-pi, pi]."""

    mnemonic = "atan2"
    operands = (Operand("a", FLOATS), Operand("b", FLOATS))
    ufunc = np.arctan2


# --- bits --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class And(BinaryOp):
    """Bitwise and of integers, logical and of booleans."""

    mnemonic = "and"
    operands = (Operand("a", INTS | BOOL), Operand("b", INTS | BOOL))
    commutative = True
    exact = True
    ufunc = np.bitwise_and


@dataclass(frozen=True)
class Or(BinaryOp):
    """Bitwise or of integers, logical or of booleans."""

    mnemonic = "or"
    operands = (Operand("a", INTS | BOOL), Operand("b", INTS | BOOL))
    commutative = True
    exact = True
    ufunc = np.bitwise_or


@dataclass(frozen=True)
class Xor(BinaryOp):
    """Bitwise exclusive or of integers, logical one of booleans."""

    mnemonic = "xor"
    operands = (Operand("a", INTS | BOOL), Operand("b", INTS | BOOL))
    commutative = True
    exact = True
    ufunc = np.bitwise_xor


@dataclass(frozen=True)
class ShiftLeft(BinaryOp):
    """``a << b``; 0 when b is not in 0 .. width - 1."""

    mnemonic = "shift_left"
    operands = (Operand("a", INTS), Operand("b", INTS))
    exact = True
    low = {"b": 0}
    high = {"b": 9}

    def reference(self, ctx: EvalContext, a: np.ndarray, b: np.ndarray) -> Any:
        width = 8 * a.dtype.itemsize
        inside = (b >= 0) & (b < width)
        return np.where(inside, np.left_shift(a, np.where(inside, b, b.dtype.type(0))), a.dtype.type(0))


@dataclass(frozen=True)
class ShiftRight(BinaryOp):
    """``a >> b``: arithmetic for signed, logical for unsigned. When b is not in 0 .. width - 1: -1 for a negative a, else 0."""

    mnemonic = "shift_right"
    operands = (Operand("a", INTS), Operand("b", INTS))
    exact = True
    low = {"b": 0}
    high = {"b": 9}

    def reference(self, ctx: EvalContext, a: np.ndarray, b: np.ndarray) -> Any:
        inside = (b >= 0) & (b < 8 * a.dtype.itemsize)
        beyond = np.where(a < 0, a.dtype.type(0) - a.dtype.type(1), a.dtype.type(0))  # a < 0 never holds for unsigned
        return np.where(inside, np.right_shift(a, np.where(inside, b, b.dtype.type(0))), beyond)


# --- comparisons -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompareOp(BinaryOp):
    """Base of the comparisons: a boolean result; every comparison with NaN is false, except ``ne``."""

    operands = (Operand("a", REAL | BOOL), Operand("b", REAL | BOOL))
    exact = True
    low = {"a": -2, "b": -2}
    high = {"a": 2, "b": 2}

    def result_dtype(self, dtype: DType) -> DType:
        return DType.bool


@dataclass(frozen=True)
class Eq(CompareOp):
    """``a == b``."""

    mnemonic = "eq"
    operands = (Operand("a", ANY), Operand("b", ANY))
    commutative = True
    ufunc = np.equal


@dataclass(frozen=True)
class Ne(CompareOp):
    """``a != b``; true when either is NaN."""

    mnemonic = "ne"
    operands = (Operand("a", ANY), Operand("b", ANY))
    commutative = True
    ufunc = np.not_equal


@dataclass(frozen=True)
class Lt(CompareOp):
    """``a < b``."""

    mnemonic = "lt"
    ufunc = np.less


@dataclass(frozen=True)
class Le(CompareOp):
    """``a <= b``."""

    mnemonic = "le"
    ufunc = np.less_equal


@dataclass(frozen=True)
class Gt(CompareOp):
    """``a > b``."""

    mnemonic = "gt"
    ufunc = np.greater


@dataclass(frozen=True)
class Ge(CompareOp):
    """``a >= b``."""

    mnemonic = "ge"
    ufunc = np.greater_equal


# --- selection, bounds, casts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Select(Op):
    """``a where cond else b``, all three broadcast. The value that is not chosen has no influence, whatever it is."""

    mnemonic = "select"
    operands = (Operand("cond", BOOL), Operand("a"), Operand("b"))
    constraints = {1: "a and b have one dtype", 2: "the shapes of cond, a and b provably broadcast"}
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, cond: TensorType, a: TensorType, b: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (a, b))
        return (TensorType(require_broadcast(self, 2, ctx, cond, a, b), a.dtype),)

    def reference(self, ctx: EvalContext, cond: np.ndarray, a: np.ndarray, b: np.ndarray) -> Any:
        return np.where(cond, a, b)

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for dtype in (DType.f32, DType.bf16, DType.i64, DType.bool, DType.c64):
            yield Sample(cls(), (DType.bool[3, 4], dtype[3, 4], dtype[3, 4]))
        yield Sample(cls(), (DType.bool["n", 1], DType.f32[1, 5], DType.f32[()]))
        yield Sample(cls(), (DType.bool[()], DType.f16["n", "m"], DType.f16["m"]))


@dataclass(frozen=True)
class Clamp(Op):
    """``minimum(maximum(x, low), high)``; None is no bound. NaN stays NaN. Bounds are first clamped to the range of an integer dtype."""

    low: float | None = None
    high: float | None = None

    mnemonic = "clamp"
    operands = (Operand("x", REAL),)
    constraints = {1: "a bound is given", 2: "no bound is NaN", 3: "the bounds of an integer tensor are whole numbers"}
    fusion = FusionKind.ELEMENTWISE

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        bounds = [b for b in (self.low, self.high) if b is not None]
        self.require(1, bool(bounds))
        self.require(2, not any(math.isnan(b) for b in bounds))
        if x.dtype.is_integer:
            self.require(3, all(math.isinf(b) or b == int(b) for b in bounds), f"low={self.low} high={self.high}")
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        if self.low is not None:
            x = np.maximum(x, _bound(self.low, x.dtype))
        if self.high is not None:
            x = np.minimum(x, _bound(self.high, x.dtype))
        return x

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(-1.0, 1.0), (DType.f32[4, 9],))
        yield Sample(cls(low=0.5), (DType.bf16["n", 3],))
        yield Sample(cls(high=-0.25), (DType.f64[7],))
        yield Sample(cls(-math.inf, 1.5), (DType.f16[2, 2, 2],))
        yield Sample(cls(-2.0, 2.0), (DType.i32[11],))
        yield Sample(cls(1.0, 300.0), (DType.u8[6],), {"x": 0})
        yield Sample(cls(2.0, 1.0), (DType.f32[5],))


def _bound(value: float, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    return dtype.type(limits.max if value >= limits.max else limits.min if value <= limits.min else int(value))


@dataclass(frozen=True)
class Cast(Op):
    """Conversion to another dtype.

    To floats: rounded to nearest, ties to even. Float to integer: truncated and saturated, NaN gives 0. Integer to integer: wraps (the low
    bits). To bool: ``x != 0`` (so NaN is true). From bool: 0 or 1. Real to complex: imaginary part 0. To f8e4m3: saturated
    at 448, infinities too.
    """

    dtype: DType

    mnemonic = "cast"
    operands = (Operand("x", EVERY),)
    constraints = {
        1: "complex numbers are cast to complex or bool only (take real or imag first)",
        2: "to f8e4m3 only f32, f16 and bf16 are cast, and f8e4m3 only to floats",
    }
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        self.require(1, not x.dtype.is_complex or self.dtype.is_complex or self.dtype is DType.bool, f"{x.dtype} to {self.dtype}")
        self.require(2, casts_eighths(x.dtype, self.dtype), f"{x.dtype} to {self.dtype}")
        return (x.with_dtype(self.dtype),)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        source, target = DType.from_numpy(x.dtype), self.dtype
        if target is DType.bool:
            return x != 0
        if target.is_integer:
            return saturating_cast(x, target) if source.is_float else x.astype(target.numpy)
        if source is DType.bool:
            x = x.astype(np.uint8)
        return x.astype(np.complex128) if target.is_complex else x  # rounded by the interpreter

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        for source in DType:
            for target in DType:
                if casts_eighths(source, target) and (not source.is_complex or target.is_complex or target is DType.bool):
                    low = -100.0 if source.is_signed else 0.0
                    yield Sample(cls(target), (source["n", 7],), {"x": low}, {"x": 100.0})


def casts_eighths(source: DType, target: DType) -> bool:
    """Whether a cast is not one from or to 8-bit floats that there is not."""
    if target in EIGHTHS:
        return source in EIGHTHS | HALVES | {DType.f32}
    return source not in EIGHTHS or target in FLOATS


def saturating_cast(x: np.ndarray, dtype: DType) -> np.ndarray:
    """Float to integer: towards zero, clamped to the range, NaN to 0."""
    x = np.trunc(np.asarray(x).astype(np.float64))
    low, high = float(dtype.min), float(dtype.max)  # high may round up to max + 1, hence >=
    inside = (x >= low) & (x < high)
    out = np.where(inside, x, 0.0).astype(dtype.numpy)
    out = np.where(x >= high, dtype.numpy.type(dtype.max), out)
    return np.where(x < low, dtype.numpy.type(dtype.min), out)


@dataclass(frozen=True)
class MakeComplex(Op):
    """``re + i * im``: f32 gives c64, f64 gives c128."""

    mnemonic = "make_complex"
    operands = (Operand("re", frozenset({DType.f32, DType.f64})), Operand("im", frozenset({DType.f32, DType.f64})))
    constraints = {1: "re and im have one dtype", 2: "the shapes of re and im provably broadcast"}
    fusion = FusionKind.ELEMENTWISE
    exact = True

    def infer(self, ctx: InferContext, re: TensorType, im: TensorType) -> tuple[TensorType, ...]:
        require_same_dtype(self, 1, (re, im))
        return (TensorType(require_broadcast(self, 2, ctx, re, im), DType.c64 if re.dtype is DType.f32 else DType.c128),)

    def reference(self, ctx: EvalContext, re: np.ndarray, im: np.ndarray) -> Any:
        out = np.empty(np.broadcast_shapes(re.shape, im.shape), np.complex128)
        out.real, out.imag = re, im
        return out

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        yield Sample(cls(), (DType.f32[3, 4], DType.f32[4]))
        yield Sample(cls(), (DType.f64["n", 1], DType.f64["n", 3]))
