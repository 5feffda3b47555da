"""Elementwise ops in StableHLO: most have an operation of their own, the others are a few. What takes several steps is computed in f32 where the
result has 16 bits, and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.unary import Approximate, real_part
from trustformers_ir.ir.schema import Op

UNARY: dict[type[Op], str] = {
    ops.Sqrt: "sqrt", ops.Rsqrt: "rsqrt", ops.Exp: "exponential", ops.Expm1: "exponential_minus_one", ops.Log: "log", ops.Log1p: "log_plus_one",
    ops.Sin: "sine", ops.Cos: "cosine", ops.Tan: "tan", ops.Tanh: "tanh", ops.Sigmoid: "logistic", ops.LogicalNot: "not", ops.BitwiseNot: "not",
}  # fmt: skip
BINARY: dict[type[Op], str] = {
    ops.Add: "add", ops.Sub: "subtract", ops.Mul: "multiply", ops.Div: "divide", ops.Minimum: "minimum", ops.Maximum: "maximum",
    ops.Atan2: "atan2", ops.And: "and", ops.Or: "or", ops.Xor: "xor",
}  # fmt: skip
COMPARISONS: dict[type[Op], str] = {ops.Eq: "EQ", ops.Ne: "NE", ops.Lt: "LT", ops.Le: "LE", ops.Gt: "GT", ops.Ge: "GE"}
ROUNDING: dict[type[Op], str] = {ops.Floor: "floor", ops.Ceil: "ceil", ops.Round: "round_nearest_even"}


def spread(e: Emitter, o: Operation) -> list[X]:
    """The operands, repeated to the shape of the result."""
    return [e.spread(e.value(v), o.result.type.shape) for v in o.inputs]


@rule(*UNARY)
def _unary(e: Emitter, o: Operation) -> X:
    return e(UNARY[type(o.op)], e.operand(o, 0))


@rule(*BINARY)
def _binary(e: Emitter, o: Operation) -> X:
    return e(BINARY[type(o.op)], *spread(e, o))


@rule(*COMPARISONS)
def _comparison(e: Emitter, o: Operation) -> X:
    a, b = spread(e, o)
    return e.compare(COMPARISONS[type(o.op)], a, b)


@rule(*ROUNDING)
def _rounding(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e(ROUNDING[type(o.op)], x) if x.dtype.is_float else x


@rule(ops.Trunc)
def _trunc(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return truncated(e, x) if x.dtype.is_float else x


def truncated(e: Emitter, x: X) -> X:
    """Without its fraction."""
    return e.select(e.compare("LT", x, 0), e("ceil", x), e("floor", x))


@rule(ops.Neg)
def _neg(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e("negate", x) if x.dtype.is_signed else e("subtract", e.full(0, x.dtype, x.shape), x)


@rule(ops.Abs)
def _abs(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e.op("abs", [x], o.result.type.dtype, x.shape) if x.dtype.is_signed else x


@rule(ops.Sign)
def _sign(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e("sign", x) if x.dtype.is_signed else e("minimum", x, 1)


@rule(ops.Reciprocal)
def _reciprocal(e: Emitter, o: Operation) -> X:
    return e("divide", 1, e.operand(o, 0))


@rule(ops.Exp2)
def _exp2(e: Emitter, o: Operation) -> X:
    x = e.wide(o, 0)
    return e.narrow(e("power", 2, x), o)


@rule(ops.Log2, ops.Log10)
def _log_of(e: Emitter, o: Operation) -> X:
    base = 2 if isinstance(o.op, ops.Log2) else 10
    return e.narrow(e("multiply", e("log", e.wide(o, 0)), 1 / math.log(base)), o)


@rule(ops.Erf)
def _erf(e: Emitter, o: Operation) -> X:
    """Of ``chlo``, the dialect of what is composed of StableHLO, which is handed out together with it."""
    x = e.operand(o, 0)
    return chlo(e, "erf", x)


def chlo(e: Emitter, op: str, x: X) -> X:
    """An operation by element of the dialect chlo."""
    return e.emit(f'"chlo.{op}"', [x], [(x.dtype, x.shape)])[0]


# --- inverse and hyperbolic functions --------------------------------------------------------------------------------------


@rule(ops.Atan)
def _atan(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e("atan2", x, 1)


@rule(ops.Asin)
def _asin(e: Emitter, o: Operation) -> X:
    """``atan2(x, sqrt((1 - x)(1 + x)))``."""
    x = e.wide(o, 0)
    return e.narrow(e("atan2", x, _leg(e, x)), o)


@rule(ops.Acos)
def _acos(e: Emitter, o: Operation) -> X:
    """``atan2(sqrt((1 - x)(1 + x)), x)``."""
    x = e.wide(o, 0)
    return e.narrow(e("atan2", _leg(e, x), x), o)


def _leg(e: Emitter, x: X) -> X:
    """``sqrt(1 - x * x)``, without cancelling near 1."""
    return e("sqrt", e("multiply", e("subtract", e.full(1, x.dtype, x.shape), x), e("add", x, 1)))


@rule(ops.Sinh)
def _sinh(e: Emitter, o: Operation) -> X:
    """``(m + m / (m + 1)) / 2`` of ``m = e ** x - 1``: its digits near 0 are those of m. Far from it m + 1 overflows no earlier than the result does
    by more than a factor of 2, so half of e ** (x / 2) is squared there."""
    x = e.wide(o, 0)
    m = e("exponential_minus_one", x)
    near = e("multiply", e("add", m, e("divide", m, e("add", m, 1))), 0.5)
    half = e("exponential", e("multiply", e("abs", x), 0.5))
    far = e("multiply", e("multiply", half, 0.5), half)
    return e.narrow(e.select(e.compare("LT", e("abs", x), 20), near, e("multiply", e("sign", x), far)), o)


@rule(ops.Cosh)
def _cosh(e: Emitter, o: Operation) -> X:
    """``(e ** x + e ** -x) / 2``, by halves of the exponent, so that it overflows where the result does."""
    x = e("abs", e.wide(o, 0))
    half = e("exponential", e("multiply", x, 0.5))
    return e.narrow(e("add", e("multiply", e("multiply", half, 0.5), half), e("multiply", e("exponential", e("negate", x)), 0.5)), o)


@rule(ops.Asinh)
def _asinh(e: Emitter, o: Operation) -> X:
    """``sign(x) log1p(a + a * a / (1 + sqrt(a * a + 1)))`` of ``a = |x|``; ``log(a) + log(2)`` where the square would overflow."""
    x = e.wide(o, 0)
    a = e("abs", x)
    small = e("minimum", a, 1e15)
    square = e("multiply", small, small)
    inner = e("divide", square, e("add", e("sqrt", e("add", square, 1)), 1))
    near = e("log_plus_one", e("add", small, inner))
    y = e.select(e.compare("LT", a, 1e15), near, e("add", e("log", a), math.log(2)))
    return e.narrow(e.select(e.compare("EQ", x, 0), x, e("multiply", e("sign", x), y)), o)


@rule(ops.Acosh)
def _acosh(e: Emitter, o: Operation) -> X:
    """``log1p(t + sqrt(t * (t + 2)))`` of ``t = x - 1``, whose digits are those of the result near 1; ``log(x) + log(2)`` far from it."""
    x = e.wide(o, 0)
    t = e("minimum", e("subtract", x, 1), 1e15)
    near = e("log_plus_one", e("add", t, e("sqrt", e("multiply", t, e("add", t, 2)))))
    return e.narrow(e.select(e.compare("GE", x, 1e15), e("add", e("log", x), math.log(2)), near), o)


@rule(ops.Atanh)
def _atanh(e: Emitter, o: Operation) -> X:
    x = e.wide(o, 0)
    both = e("subtract", e("log_plus_one", x), e("log_plus_one", e("negate", x)))
    return e.narrow(e("multiply", both, 0.5), o)


# --- activations -----------------------------------------------------------------------------------------------------------


@rule(ops.Relu)
def _relu(e: Emitter, o: Operation) -> X:
    return e("maximum", e.operand(o, 0), 0)


@rule(ops.Gelu)
def _gelu(e: Emitter, o: Operation) -> X:
    """``x / 2 * erfc(-x / sqrt 2)``, where ``1 + erf`` would cancel; or the approximation."""
    assert isinstance(o.op, ops.Gelu)
    x = e.wide(o, 0)
    half = e("multiply", x, 0.5)
    if o.op.approximate is not Approximate.TANH:
        return e.narrow(e("multiply", half, chlo(e, "erfc", e("multiply", x, -math.sqrt(0.5)))), o)
    cube = e("multiply", e("multiply", x, x), x)
    inner = e("multiply", e("add", x, e("multiply", cube, 0.044715)), math.sqrt(2 / math.pi))
    return e.narrow(e("multiply", half, e("add", e("tanh", inner), 1)), o)


@rule(ops.Silu)
def _silu(e: Emitter, o: Operation) -> X:
    x = e.wide(o, 0)
    return e.narrow(e("multiply", x, e("logistic", x)), o)


def _plus(e: Emitter, x: X) -> X:
    """``log(1 + e ** x)`` without overflow."""
    return e("add", e("maximum", x, 0), e("log_plus_one", e("exponential", e("negate", e("abs", x)))))


@rule(ops.Softplus)
def _softplus(e: Emitter, o: Operation) -> X:
    return e.narrow(_plus(e, e.wide(o, 0)), o)


@rule(ops.Mish)
def _mish(e: Emitter, o: Operation) -> X:
    x = e.wide(o, 0)
    return e.narrow(e("multiply", x, e("tanh", _plus(e, x))), o)


@rule(ops.Elu)
def _elu(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Elu)
    x = e.wide(o, 0)
    left = e("multiply", e("exponential_minus_one", e("minimum", x, 0)), o.op.alpha)
    return e.narrow(e.select(e.compare("GT", x, 0), x, left), o)


@rule(ops.LeakyRelu)
def _leaky_relu(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.LeakyRelu)
    x = e.wide(o, 0)
    return e.narrow(e.select(e.compare("GT", x, 0), x, e("multiply", x, o.op.slope)), o)


def _sixth(e: Emitter, x: X) -> X:
    """``x / 6 + 1 / 2`` between 0 and 1."""
    return e("divide", e("minimum", e("maximum", e("add", x, 3), 0), 6), 6)


@rule(ops.HardSwish)
def _hard_swish(e: Emitter, o: Operation) -> X:
    x = e.wide(o, 0)
    return e.narrow(e("multiply", x, _sixth(e, x)), o)


@rule(ops.HardSigmoid)
def _hard_sigmoid(e: Emitter, o: Operation) -> X:
    return e.narrow(_sixth(e, e.wide(o, 0)), o)


# --- predicates and parts --------------------------------------------------------------------------------------------------


@rule(ops.IsNan)
def _is_nan(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e.compare("NE", x, x)


@rule(ops.IsInf)
def _is_inf(e: Emitter, o: Operation) -> X:
    return e.compare("EQ", e("abs", e.operand(o, 0)), math.inf)


@rule(ops.IsFinite)
def _is_finite(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e.op("is_finite", [x], DType.bool, x.shape)


@rule(ops.Real, ops.Imag)
def _part(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e.op("real" if isinstance(o.op, ops.Real) else "imag", [x], o.result.type.dtype, x.shape)


@rule(ops.Conj)
def _conj(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    re, im = (e.op(part, [x], real_part(x.dtype), x.shape) for part in ("real", "imag"))
    return e.op("complex", [re, e("negate", im)], x.dtype, x.shape)


@rule(ops.MakeComplex)
def _make_complex(e: Emitter, o: Operation) -> X:
    return e.op("complex", spread(e, o), o.result.type.dtype, o.result.type.shape)


@rule(ops.BitCast)
def _bitcast(e: Emitter, o: Operation) -> X:
    x = e.operand(o, 0)
    return e.op("bitcast_convert", [x], o.result.type.dtype, x.shape)


# --- whole numbers ---------------------------------------------------------------------------------------------------------


def _divided(e: Emitter, a: X, b: X, how: Callable[[X, X], X]) -> X:
    """A quotient or a remainder of whole numbers: 0 where the divisor is, for which the dialect has none."""
    none = e.compare("EQ", b, 0)
    return e.select(none, 0, how(a, e.select(none, 1, b)))


def _modulo(e: Emitter, a: X, b: X) -> X:
    """What is left over, with the sign of b."""
    rest = e("remainder", a, b)  # of the sign of a
    if not a.dtype.is_signed:
        return rest
    other = e("xor", e.compare("LT", rest, 0), e.compare("LT", b, 0))
    return e.select(e("and", e.compare("NE", rest, 0), other), e("add", rest, b), rest)


@rule(ops.Mod)
def _mod(e: Emitter, o: Operation) -> X:
    a, b = (e.widened(x) for x in spread(e, o))
    return e.narrow(_modulo(e, a, b) if a.dtype.is_float else _divided(e, a, b, lambda a, b: _modulo(e, a, b)), o)


@rule(ops.FloorDiv)
def _floor_div(e: Emitter, o: Operation) -> X:
    """Of floats the quotient without what is left over, which is a whole number but for its rounding."""
    a, b = (e.widened(x) for x in spread(e, o))
    if not a.dtype.is_float:
        return _divided(e, a, b, lambda a, b: e("divide", e("subtract", a, _modulo(e, a, b)), b))
    whole = e("round_nearest_even", e("divide", e("subtract", a, _modulo(e, a, b)), b))
    return e.narrow(e.select(e.compare("EQ", b, 0), e("divide", a, b), whole), o)


@rule(ops.Pow)
def _pow(e: Emitter, o: Operation) -> X:
    a, b = spread(e, o)
    if a.dtype.is_float:
        return e.narrow(e("power", e.widened(a), e.widened(b)), o)
    if not a.dtype.is_signed:
        return e("power", a, b)
    one = e.full(1, a.dtype, a.shape)
    odd = e.compare("NE", e("and", b, 1), 0)
    minus = e.select(e.compare("EQ", a, -1), e.select(odd, -1, one), 0)
    below = e.select(e.compare("EQ", a, 1), one, minus)
    return e.select(e.compare("LT", b, 0), below, e("power", a, e("maximum", b, 0)))


@rule(ops.ShiftLeft, ops.ShiftRight)
def _shift(e: Emitter, o: Operation) -> X:
    a, b = spread(e, o)
    bits, right = a.dtype.bits, isinstance(o.op, ops.ShiftRight)
    far = e.compare("GE", b, bits)
    if b.dtype.is_signed:
        far = e("or", far, e.compare("LT", b, 0))
    moved = e("shift_left" if not right else "shift_right_arithmetic" if a.dtype.is_signed else "shift_right_logical", a, e.select(far, 0, b))
    if not right or not a.dtype.is_signed:
        return e.select(far, 0, moved)
    return e.select(far, e("shift_right_arithmetic", a, bits - 1), moved)


# --- selection, bounds, casts ----------------------------------------------------------------------------------------------


@rule(ops.Select)
def _select(e: Emitter, o: Operation) -> X:
    where, a, b = spread(e, o)
    return e.select(where, a, b)


@rule(ops.Clamp)
def _clamp(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Clamp)
    x, dtype = e.operand(o, 0), o.result.type.dtype

    def bound(value: float) -> float:
        return value if dtype.is_float else dtype.max if value >= dtype.max else dtype.min if value <= dtype.min else int(value)

    if o.op.low is not None:
        x = e("maximum", x, bound(o.op.low))
    return x if o.op.high is None else e("minimum", x, bound(o.op.high))


@rule(ops.Cast)
def _cast(e: Emitter, o: Operation) -> X:
    """A weight that becomes smaller lies so in the file."""
    stored = e.weight_of(o.result)
    return converted(e, e.operand(o, 0), o.result.type.dtype) if stored is None else e.weight(*stored)


def converted(e: Emitter, x: X, target: DType) -> X:
    """The dialect leaves open what becomes of floats that no integer is, and of those beyond 8 bits, so they are made some before."""
    if target is DType.bool:
        return x if x.dtype is DType.bool else e.compare("NE", x, 0)
    if target is DType.f8e4m3 and x.dtype is not target:
        if x.dtype is DType.f64:
            raise Unsupported("f64 is not cast to it")
        inside = e("minimum", e("maximum", e.widened(x), -448), 448)
        return e.cast(inside, target)
    if target.is_complex and not x.dtype.is_complex:
        re = converted(e, x, real_part(target))
        return e.op("complex", [re, e.full(0, re.dtype, x.shape)], target, x.shape)
    if not (x.dtype.is_float and target.is_integer):
        return e.cast(x, target)
    x = e.widened(x)
    x = e.select(e.compare("NE", x, x), 0, x)
    over, under = e.compare("GE", x, float(target.max)), e.compare("LE", x, float(target.min))
    whole = e.cast(e.select(e("or", over, under), 0, x), target)
    return e.select(under, target.min, e.select(over, target.max, whole))


@rule(ops.Dropout)
def _dropout(e: Emitter, o: Operation) -> X:
    return e.operand(o, 0)
