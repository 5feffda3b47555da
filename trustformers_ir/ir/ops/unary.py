"""Elementwise ops of one operand.

Shapes and dtypes pass through unless an op says otherwise.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir.dtypes import BOOL, COMPLEXES, FLOATS, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.schema import EvalContext, FusionKind, InferContext, Op, Operand, Sample
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class UnaryOp(Op):
    """Base: ``y[i] = ufunc(x[i])`` with the type of ``x``; the interpreter widens and rounds around ``ufunc``.

    ``domain`` is where samples draw their values from.
    """

    operands = (Operand("x", FLOATS),)
    fusion = FusionKind.ELEMENTWISE
    ufunc: ClassVar[Callable[..., Any]]
    domain: ClassVar[tuple[float, float]] = (-4.0, 4.0)

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        return (x,)

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return type(self).ufunc(x)

    @classmethod
    def variants(cls) -> Iterator[UnaryOp]:
        """The attribute values that samples use."""
        yield cls()

    @classmethod
    def samples(cls) -> Iterator[Sample]:
        low, high = {"x": cls.domain[0]}, {"x": cls.domain[1]}
        allowed = cls.operands[0].dtypes
        for op in cls.variants():
            for dtype, shape in _SAMPLE_TYPES:
                if dtype in allowed:
                    floor = {"x": max(0.0, cls.domain[0])} if not dtype.is_signed else low
                    yield Sample(op, (TensorType(shape, dtype),), floor, high)


_SAMPLE_TYPES: tuple[tuple[DType, tuple[Any, ...]], ...] = (
    (DType.f32, (3, 17)),
    (DType.f32, ("n", 5)),
    (DType.f64, ()),
    (DType.f16, (2, 3, 4)),
    (DType.bf16, ("b", 1, 33)),
    (DType.i32, (19,)),
    (DType.i64, ("n",)),
    (DType.i8, (2, 9)),
    (DType.u8, (16,)),
    (DType.bool, (2, 8)),
    (DType.c64, (3, 5)),
)

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _for_floats(ufunc: np.ufunc) -> Any:
    """Rounding to whole numbers, which integers are already."""
    return staticmethod(lambda x: ufunc(x) if x.dtype.kind == "f" else x)


def _sigmoid(x: np.ndarray) -> Any:
    e = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


# --- sign and rounding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neg(UnaryOp):
    """``neg(x) = -x``. Integers wrap: the smallest signed value is its own negation."""

    mnemonic = "neg"
    operands = (Operand("x", NUMERIC),)
    ufunc = np.negative


@dataclass(frozen=True)
class Abs(UnaryOp):
    """``abs(x) = |x|``; of a complex tensor the modulus, with the dtype of its parts. The smallest signed integer wraps to itself."""

    mnemonic = "abs"
    operands = (Operand("x", NUMERIC),)
    ufunc = np.abs

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(real_part(x.dtype)),)


@dataclass(frozen=True)
class Sign(UnaryOp):
    """``sign(x)``: -1, 0 or 1 by the sign of x; NaN for NaN."""

    mnemonic = "sign"
    operands = (Operand("x", REAL),)
    ufunc = np.sign


@dataclass(frozen=True)
class Floor(UnaryOp):
    """``floor(x)``: the largest integer not above x. Integers pass through."""

    mnemonic = "floor"
    operands = (Operand("x", REAL),)
    ufunc = _for_floats(np.floor)


@dataclass(frozen=True)
class Ceil(UnaryOp):
    """``ceil(x)``: the smallest integer not below x. Integers pass through."""

    mnemonic = "ceil"
    operands = (Operand("x", REAL),)
    ufunc = _for_floats(np.ceil)


@dataclass(frozen=True)
class Round(UnaryOp):
    """``round(x)``: the nearest integer, ties to even (IEEE 754 roundToIntegralTiesToEven). Integers pass through."""

    mnemonic = "round"
    operands = (Operand("x", REAL),)
    ufunc = _for_floats(np.rint)


@dataclass(frozen=True)
class Trunc(UnaryOp):
    """``trunc(x)``: x without its fraction (towards zero). Integers pass through."""

    mnemonic = "trunc"
    operands = (Operand("x", REAL),)
    ufunc = _for_floats(np.trunc)


# --- roots, exponentials, logarithms -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sqrt(UnaryOp):
    """``sqrt(x)``: the non-negative square root; NaN below zero."""

    mnemonic = "sqrt"
    ufunc = np.sqrt
    domain = (0.0, 9.0)


@dataclass(frozen=True)
class Rsqrt(UnaryOp):
    """``rsqrt(x) = 1 / sqrt(x)``; inf for 0, NaN below zero."""

    mnemonic = "rsqrt"
    ufunc = staticmethod(lambda x: 1 / np.sqrt(x))
    domain = (0.01, 9.0)


@dataclass(frozen=True)
class Reciprocal(UnaryOp):
    """``reciprocal(x) = 1 / x``."""

    mnemonic = "reciprocal"
    ufunc = staticmethod(lambda x: 1 / x)
    domain = (0.1, 4.0)


@dataclass(frozen=True)
class Exp(UnaryOp):
    """``exp(x) = e ** x``."""

    mnemonic = "exp"
    ufunc = np.exp


@dataclass(frozen=True)
class Exp2(UnaryOp):
    """``exp2(x) = 2 ** x``."""

    mnemonic = "exp2"
    ufunc = np.exp2


@dataclass(frozen=True)
class Expm1(UnaryOp):
    """``expm1(x) = e ** x - 1``, accurate near 0."""

    mnemonic = "expm1"
    ufunc = np.expm1


@dataclass(frozen=True)
class Log(UnaryOp):
    """``log(x)``: the natural logarithm; -inf for 0, NaN below zero."""

    mnemonic = "log"
    ufunc = np.log
    domain = (0.01, 20.0)


@dataclass(frozen=True)
class Log1p(UnaryOp):
    """``log1p(x) = log(1 + x)``, accurate near 0."""

    mnemonic = "log1p"
    ufunc = np.log1p
    domain = (-0.9, 10.0)


@dataclass(frozen=True)
class Log2(UnaryOp):
    """``log2(x)``: the logarithm to base 2."""

    mnemonic = "log2"
    ufunc = np.log2
    domain = (0.01, 20.0)


@dataclass(frozen=True)
class Log10(UnaryOp):
    """``log10(x)``: the logarithm to base 10."""

    mnemonic = "log10"
    ufunc = np.log10
    domain = (0.01, 20.0)


# --- trigonometry ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sin(UnaryOp):
    """``sin(x)``, x in radians; NaN for infinities."""

    mnemonic = "sin"
    ufunc = np.sin
    domain = (-10.0, 10.0)


@dataclass(frozen=True)
class Cos(UnaryOp):
    """``cos(x)``, x in radians; NaN for infinities."""

    mnemonic = "cos"
    ufunc = np.cos
    domain = (-10.0, 10.0)


@dataclass(frozen=True)
class Tan(UnaryOp):
    """``tan(x) = sin(x) / cos(x)``."""

    mnemonic = "tan"
    ufunc = np.tan
    domain = (-1.4, 1.4)


@dataclass(frozen=True)
class Asin(UnaryOp):
    """``asin(x)`` in [-pi/2, pi/2]; NaN outside of [-1, 1]."""

    mnemonic = "asin"
    ufunc = np.arcsin
    domain = (-1.0, 1.0)


@dataclass(frozen=True)
class Acos(UnaryOp):
    """``acos(x)`` in [0, pi]; NaN outside of [-1, 1]."""

    mnemonic = "acos"
    ufunc = np.arccos
    domain = (-1.0, 1.0)


@dataclass(frozen=True)
class Atan(UnaryOp):
    """``atan(x)`` in [-pi/2, pi/2]."""

    mnemonic = "atan"
    ufunc = np.arctan


@dataclass(frozen=True)
class Sinh(UnaryOp):
    """``sinh(x) = (e ** x - e ** -x) / 2``."""

    mnemonic = "sinh"
    ufunc = np.sinh


@dataclass(frozen=True)
class Cosh(UnaryOp):
    """``cosh(x) = (e ** x + e ** -x) / 2``."""

    mnemonic = "cosh"
    ufunc = np.cosh


@dataclass(frozen=True)
class Tanh(UnaryOp):
    """``tanh(x) = sinh(x) / cosh(x)``."""

    mnemonic = "tanh"
    ufunc = np.tanh


@dataclass(frozen=True)
class Asinh(UnaryOp):
    """``asinh(x)``: the inverse of sinh."""

    mnemonic = "asinh"
    ufunc = np.arcsinh


@dataclass(frozen=True)
class Acosh(UnaryOp):
    """``acosh(x)``: the non-negative inverse of cosh; NaN below 1."""

    mnemonic = "acosh"
    ufunc = np.arccosh
    domain = (1.0, 9.0)


@dataclass(frozen=True)
class Atanh(UnaryOp):
    """``atanh(x)``: the inverse of tanh; infinities at -1 and 1, NaN outside."""

    mnemonic = "atanh"
    ufunc = np.arctanh
    domain = (-0.99, 0.99)


@dataclass(frozen=True)
class Erf(UnaryOp):
    """``erf(x) = 2 / sqrt(pi) * integral of exp(-t**2) for t in 0..x``, the error function."""

    mnemonic = "erf"
    ufunc = _erf


# --- activations -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid(UnaryOp):
    """``sigmoid(x) = 1 / (1 + e ** -x)``."""

    mnemonic = "sigmoid"
    ufunc = staticmethod(_sigmoid)


@dataclass(frozen=True)
class Relu(UnaryOp):
    """``relu(x) = maximum(x, 0)``; NaN stays NaN."""

    mnemonic = "relu"
    operands = (Operand("x", REAL),)
    ufunc = staticmethod(lambda x: np.maximum(x, x.dtype.type(0)))


class Approximate(enum.Enum):
    """How ``gelu`` computes the normal distribution function."""

    NONE = "none"
    TANH = "tanh"


@dataclass(frozen=True)
class Gelu(UnaryOp):
    """Gaussian error linear unit (Hendrycks & Gimpel 2016): ``gelu(x) = x * P(N(0,1) <= x) = x / 2 * (1 + erf(x / sqrt 2))``.

    ``approximate=TANH``: ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.
    """

    approximate: Approximate = Approximate.NONE

    mnemonic = "gelu"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        if self.approximate is Approximate.TANH:
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * _erfc(-x / math.sqrt(2))  # 1 + erf(z) without cancellation

    @classmethod
    def variants(cls) -> Iterator[UnaryOp]:
        yield cls()
        yield cls(Approximate.TANH)


@dataclass(frozen=True)
class Silu(UnaryOp):
    """``silu(x) = x * sigmoid(x)`` (Elfwing et al. 2017; swish with beta 1)."""

    mnemonic = "silu"
    ufunc = staticmethod(lambda x: x * _sigmoid(x))


@dataclass(frozen=True)
class Softplus(UnaryOp):
    """``softplus(x) = log(1 + e ** x)``, without overflow."""

    mnemonic = "softplus"
    ufunc = staticmethod(lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


@dataclass(frozen=True)
class Elu(UnaryOp):
    """``elu(x) = x if x > 0 else alpha * (e ** x - 1)`` (Clevert et al. 2015)."""

    alpha: float = 1.0

    mnemonic = "elu"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.where(x > 0, x, self.alpha * np.expm1(np.minimum(x, 0)))

    @classmethod
    def variants(cls) -> Iterator[UnaryOp]:
        yield cls()
        yield cls(0.25)


@dataclass(frozen=True)
class LeakyRelu(UnaryOp):
    """``leaky_relu(x) = x if x > 0 else slope * x``."""

    slope: float = 0.01

    mnemonic = "leaky_relu"

    def reference(self, ctx: EvalContext, x: np.ndarray) -> Any:
        return np.where(x > 0, x, self.slope * x)

    @classmethod
    def variants(cls) -> Iterator[UnaryOp]:
        yield cls()
        yield cls(0.2)


@dataclass(frozen=True)
class HardSwish(UnaryOp):
    """``hard_swish(x) = x * clip(x + 3, 0, 6) / 6`` (Howard et al. 2019)."""

    mnemonic = "hard_swish"
    ufunc = staticmethod(lambda x: x * np.clip(x + 3, 0, 6) / 6)


@dataclass(frozen=True)
class HardSigmoid(UnaryOp):
    """``hard_sigmoid(x) = clip(x + 3, 0, 6) / 6``."""

    mnemonic = "hard_sigmoid"
    ufunc = staticmethod(lambda x: np.clip(x + 3, 0, 6) / 6)


@dataclass(frozen=True)
class Mish(UnaryOp):
    """``mish(x) = x * tanh(softplus(x))`` (Misra 2019)."""

    mnemonic = "mish"
    ufunc = staticmethod(lambda x: x * np.tanh(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))))


# --- predicates and bits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredicateOp(UnaryOp):
    """Base of the unary ops with a boolean result."""

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(DType.bool),)


@dataclass(frozen=True)
class IsNan(PredicateOp):
    """True where x is not a number."""

    mnemonic = "is_nan"
    ufunc = np.isnan


@dataclass(frozen=True)
class IsInf(PredicateOp):
    """True where x is an infinity of either sign."""

    mnemonic = "is_inf"
    ufunc = np.isinf


@dataclass(frozen=True)
class IsFinite(PredicateOp):
    """True where x is neither an infinity nor NaN."""

    mnemonic = "is_finite"
    ufunc = np.isfinite


@dataclass(frozen=True)
class LogicalNot(PredicateOp):
    """``not x`` of booleans."""

    mnemonic = "logical_not"
    operands = (Operand("x", BOOL),)
    exact = True
    ufunc = np.logical_not


@dataclass(frozen=True)
class BitwiseNot(UnaryOp):
    """All bits of an integer inverted; of a boolean, its negation."""

    mnemonic = "bitwise_not"
    operands = (Operand("x", INTS | BOOL),)
    exact = True
    ufunc = np.invert


# --- complex parts -----------------------------------------------------------------------------------------------------------------


def real_part(dtype: DType) -> DType:
    """The dtype of the parts of a complex dtype; other dtypes as they are."""
    return {DType.c64: DType.f32, DType.c128: DType.f64}.get(dtype, dtype)


@dataclass(frozen=True)
class Real(UnaryOp):
    """The real part: c64 gives f32, c128 gives f64."""

    mnemonic = "real"
    operands = (Operand("x", COMPLEXES),)
    exact = True
    ufunc = np.real

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(real_part(x.dtype)),)


@dataclass(frozen=True)
class Imag(UnaryOp):
    """The imaginary part: c64 gives f32, c128 gives f64."""

    mnemonic = "imag"
    operands = (Operand("x", COMPLEXES),)
    exact = True
    ufunc = np.imag

    def infer(self, ctx: InferContext, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(real_part(x.dtype)),)


@dataclass(frozen=True)
class Conj(UnaryOp):
    """The complex conjugate."""

    mnemonic = "conj"
    operands = (Operand("x", COMPLEXES),)
    exact = True
    ufunc = np.conjugate
