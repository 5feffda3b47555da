"""Elementwise ops in MIL: most have one of their own, the others are a few."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.emitter import STORED, WORDS, Emitter, rule
from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.unary import Approximate
from trustformers_ir.ir.schema import Op

UNARY: dict[type[Op], str] = {
    ops.Abs: "abs", ops.Sign: "sign", ops.Sqrt: "sqrt", ops.Exp: "exp", ops.Sin: "sin", ops.Cos: "cos", ops.Tan: "tan", ops.Asin: "asin",
    ops.Acos: "acos", ops.Atan: "atan", ops.Sinh: "sinh", ops.Cosh: "cosh", ops.Tanh: "tanh", ops.Atanh: "atanh", ops.Erf: "erf",
    ops.Sigmoid: "sigmoid", ops.Softplus: "softplus", ops.Exp2: "exp2", ops.Silu: "silu",
}  # fmt: skip
BINARY: dict[type[Op], str] = {
    ops.Add: "add", ops.Sub: "sub", ops.Mul: "mul", ops.Minimum: "minimum", ops.Maximum: "maximum", ops.Lt: "less", ops.Le: "less_equal",
    ops.Gt: "greater", ops.Ge: "greater_equal", ops.Eq: "equal", ops.Ne: "not_equal",
}  # fmt: skip
ROUNDING: dict[type[Op], str] = {ops.Floor: "floor", ops.Ceil: "ceil", ops.Round: "round"}
LOGIC: dict[type[Op], str] = {ops.And: "logical_and", ops.Or: "logical_or", ops.Xor: "logical_xor"}


def whole(e: Emitter, x: Any, dtype: DType) -> Any:
    """Bool as numbers, which more ops take."""
    return e.cast(x, dtype, DType.i32) if dtype is DType.bool else x


@rule(*UNARY)
def _unary(e: Emitter, o: Operation) -> Any:
    return e(UNARY[type(o.op)], x=e.operand(o, 0))


@rule(*BINARY)
def _binary(e: Emitter, o: Operation) -> Any:
    a, b = (whole(e, e.value(v), v.type.dtype) for v in o.inputs)
    y = e(BINARY[type(o.op)], x=a, y=b)
    plain = isinstance(o.op, (ops.Add, ops.Mul, ops.Minimum, ops.Maximum)) and o.result.type.dtype is DType.bool
    return e("cast", x=y, dtype="bool") if plain else y


@rule(ops.Div)
def _div(e: Emitter, o: Operation) -> Any:
    if not o.result.type.dtype.is_float:
        raise Unsupported("Core ML divides floats")
    return e("real_div", x=e.operand(o, 0), y=e.operand(o, 1))


@rule(ops.Pow)
def _pow(e: Emitter, o: Operation) -> Any:
    if not o.result.type.dtype.is_float:
        raise Unsupported("powers of integers are computed in floats there")
    return e("pow", x=e.operand(o, 0), y=e.operand(o, 1))


@rule(*ROUNDING)
def _rounding(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    return e(ROUNDING[type(o.op)], x=x) if o.result.type.dtype.is_float else x


@rule(*LOGIC)
def _logic(e: Emitter, o: Operation) -> Any:
    if o.result.type.dtype is not DType.bool:
        raise Unsupported("Core ML has no ops on bits")
    return e(LOGIC[type(o.op)], x=e.operand(o, 0), y=e.operand(o, 1))


@rule(ops.LogicalNot, ops.BitwiseNot)
def _not(e: Emitter, o: Operation) -> Any:
    dtype = o.inputs[0].type.dtype
    if dtype is DType.bool:
        return e("logical_not", x=e.operand(o, 0))
    return e("sub", x=np.int32(-1), y=e.operand(o, 0))  # ~x


@rule(ops.Neg)
def _neg(e: Emitter, o: Operation) -> Any:
    return e("mul", x=e.operand(o, 0), y=e.like(-1, o.result))


@rule(ops.Reciprocal)
def _reciprocal(e: Emitter, o: Operation) -> Any:
    return e("real_div", x=e.like(1, o.result), y=e.operand(o, 0))  # `inverse` adds an epsilon


@rule(ops.Rsqrt)
def _rsqrt(e: Emitter, o: Operation) -> Any:
    return e("real_div", x=e.like(1, o.result), y=e("sqrt", x=e.operand(o, 0)))


@rule(ops.Trunc)
def _trunc(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    return e("mul", x=e("sign", x=x), y=e("floor", x=e("abs", x=x))) if o.result.type.dtype.is_float else x


def _log(e: Emitter, o: Operation, x: Any) -> Any:
    return e("log", x=x, epsilon=e.like(0, o.result))


@rule(ops.Log)
def _log_rule(e: Emitter, o: Operation) -> Any:
    return _log(e, o, e.operand(o, 0))


@rule(ops.Log2, ops.Log10)
def _log_of(e: Emitter, o: Operation) -> Any:
    return e("mul", x=_log(e, o, e.operand(o, 0)), y=e.like(1 / math.log(2 if isinstance(o.op, ops.Log2) else 10), o.result))


@rule(ops.Expm1)
def _expm1(e: Emitter, o: Operation) -> Any:
    """``2 tanh(x / 2) / (1 - tanh(x / 2))`` near 0, where ``e ** x - 1`` would lose its digits."""
    x, one, half = e.operand(o, 0), e.like(1, o.result), e.like(0.5, o.result)
    t = e("tanh", x=e("mul", x=x, y=half))
    near = e("real_div", x=e("add", x=t, y=t), y=e("sub", x=one, y=t))
    return e("select", cond=e("less", x=e("abs", x=x), y=half), a=near, b=e("sub", x=e("exp", x=x), y=one))


@rule(ops.Log1p)
def _log1p(e: Emitter, o: Operation) -> Any:
    """``2 atanh(x / (2 + x))`` near 0, where ``log(1 + x)`` would lose its digits."""
    x = e.operand(o, 0)
    small = e("less", x=e("abs", x=x), y=e.like(0.5, o.result))
    half = e("atanh", x=e("real_div", x=x, y=e("add", x=x, y=e.like(2, o.result))))
    far = _log(e, o, e("add", x=x, y=e.like(1, o.result)))
    return e("select", cond=small, a=e("add", x=half, y=half), b=far)


@rule(ops.Asinh)
def _asinh(e: Emitter, o: Operation) -> Any:
    """``sign(x) log(a + sqrt(a^2 + 1))`` of ``a = |x|``; near 0 its series, where the sum would lose digits."""
    x = e.operand(o, 0)
    a = e("abs", x=x)
    square = e("mul", x=a, y=a)
    far = _log(e, o, e("add", x=a, y=e("sqrt", x=e("add", x=square, y=e.like(1, o.result)))))
    series: Any = None
    for c in (35 / 1152, -5 / 112, 3 / 40, -1 / 6, 1.0):
        series = e.like(c, o.result) if series is None else e("add", x=e("mul", x=series, y=square), y=e.like(c, o.result))
    near = e("mul", x=a, y=series)
    return e("mul", x=e("sign", x=x), y=e("select", cond=e("less", x=a, y=e.like(0.125, o.result)), a=near, b=far))


@rule(ops.Acosh)
def _acosh(e: Emitter, o: Operation) -> Any:
    x, one = e.operand(o, 0), e.like(1, o.result)
    root = e("mul", x=e("sqrt", x=e("sub", x=x, y=one)), y=e("sqrt", x=e("add", x=x, y=one)))
    return _log(e, o, e("add", x=x, y=root))


@rule(ops.Relu)
def _relu(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    return e("relu", x=x) if o.result.type.dtype.is_float else e("maximum", x=x, y=np.int32(0))


@rule(ops.Gelu)
def _gelu(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Gelu)
    return e("gelu", x=e.operand(o, 0), mode="TANH_APPROXIMATION" if o.op.approximate is Approximate.TANH else "EXACT")


@rule(ops.Elu)
def _elu(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Elu)
    return e("elu", x=e.operand(o, 0), alpha=e.like(o.op.alpha, o.result))


@rule(ops.LeakyRelu)
def _leaky_relu(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.LeakyRelu)
    return e("leaky_relu", x=e.operand(o, 0), alpha=e.like(o.op.slope, o.result))


@rule(ops.HardSigmoid, ops.HardSwish)
def _hard_sigmoid(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    y = e("sigmoid_hard", x=x, alpha=e.like(1 / 6, o.result), beta=e.like(0.5, o.result))
    return e("mul", x=x, y=y) if isinstance(o.op, ops.HardSwish) else y


@rule(ops.Mish)
def _mish(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    return e("mul", x=x, y=e("tanh", x=e("softplus", x=x)))


@rule(ops.IsNan)
def _is_nan(e: Emitter, o: Operation) -> Any:
    x = e.operand(o, 0)
    return e("not_equal", x=x, y=x)


@rule(ops.IsInf)
def _is_inf(e: Emitter, o: Operation) -> Any:
    return e("equal", x=e("abs", x=e.operand(o, 0)), y=e.like(math.inf, o.inputs[0]))


@rule(ops.IsFinite)
def _is_finite(e: Emitter, o: Operation) -> Any:
    return e("less", x=e("abs", x=e.operand(o, 0)), y=e.like(math.inf, o.inputs[0]))


@rule(ops.FloorDiv, ops.Mod)
def _divided(e: Emitter, o: Operation) -> Any:
    """Whole numbers divided by 0 are 0, for which MIL promises nothing. Quotients of 16 bits are not rounded before the floor."""
    a, b, dtype = e.operand(o, 0), e.operand(o, 1), o.result.type.dtype
    kind = "mod" if isinstance(o.op, ops.Mod) else "floor_div"
    if dtype.is_float:
        if kind == "mod":
            return e("mod", x=a, y=b)
        a, b = (e.cast(x, dtype, DType.f32) for x in (a, b))
        return e.cast(e("floor", x=e("real_div", x=a, y=b)), DType.f32, dtype)
    none = e("equal", x=b, y=np.int32(0))
    return e("select", cond=none, a=np.int32(0), b=e(kind, x=a, y=e("select", cond=none, a=np.int32(1), b=b)))


@rule(ops.Atan2)
def _atan2(e: Emitter, o: Operation) -> Any:
    y, x, zero = e.operand(o, 0), e.operand(o, 1), e.like(0, o.result)
    none = e("equal", x=x, y=zero)
    base = e("atan", x=e("real_div", x=y, y=e("select", cond=none, a=e.like(1, o.result), b=x)))
    pi = e.like(math.pi, o.result)
    left = e("select", cond=e("less", x=y, y=zero), a=e("sub", x=base, y=pi), b=e("add", x=base, y=pi))
    upright = e("mul", x=e("sign", x=y), y=e.like(math.pi / 2, o.result))
    return e("select", cond=none, a=upright, b=e("select", cond=e("less", x=x, y=zero), a=left, b=base))


@rule(ops.Select)
def _select(e: Emitter, o: Operation) -> Any:
    """The result has the shape of the two that are chosen from, which the condition does not widen there."""
    _, a, b = o.inputs
    shape = o.result.type.shape
    x, y = (v if t.type.shape in ((), shape) else e.spread(v, t.type.shape, shape) for v, t in ((e.value(a), a), (e.value(b), b)))
    x = e.spread(x, a.type.shape, shape) if a.type.shape == b.type.shape == () != shape else x
    return e("select", cond=e.operand(o, 0), a=x, b=y)


@rule(ops.Clamp)
def _clamp(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Clamp)
    x, dtype = e.operand(o, 0), o.result.type.dtype
    for kind, bound in (("maximum", o.op.low), ("minimum", o.op.high)):
        if bound is not None:
            number = bound if dtype.is_float else min(max(int(bound), DType.i32.min), DType.i32.max)
            x = e(kind, x=x, y=e.like(number, o.result))
    return x


@rule(ops.Cast)
def _cast(e: Emitter, o: Operation) -> Any:
    """Floats that no integer is are made some before: NaN is 0, what is beyond the ends goes to the end (of 32 bits)."""
    x, source, target = e.operand(o, 0), o.inputs[0].type.dtype, o.result.type.dtype
    if target is DType.bool and source is not DType.bool:
        return e("not_equal", x=x, y=e.like(0, o.inputs[0]))
    if source.is_float and target.is_integer:
        x, wide = e.cast(x, source, DType.f32), np.float32
        x = e("select", cond=e("equal", x=x, y=x), a=x, b=wide(0))
        over, under = e("greater_equal", x=x, y=wide(2.0**31)), e("less_equal", x=x, y=wide(-(2.0**31)))
        inside = e("select", cond=e("logical_or", x=over, y=under), a=wide(0), b=x)
        capped = e("select", cond=over, a=np.int32(2**31 - 1), b=e("cast", x=inside, dtype="int32"))
        return e("select", cond=under, a=np.int32(-(2**31)), b=capped)
    return e("cast", x=x, dtype=WORDS[STORED[target]]) if STORED[source] is not STORED[target] else x


@rule(ops.Dropout)
def _dropout(e: Emitter, o: Operation) -> Any:
    return e.operand(o, 0)
