"""Elementwise ops as ONNX nodes: most have one of their own, the others are a few."""

from __future__ import annotations

import math
from collections.abc import Callable

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.onnx.emitter import ELEMENTS, Emitter, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.unary import Approximate
from trustformers_ir.ir.schema import Op

UNARY: dict[type[Op], str] = {
    ops.Abs: "Abs", ops.Sign: "Sign", ops.Sqrt: "Sqrt", ops.Reciprocal: "Reciprocal", ops.Exp: "Exp", ops.Log: "Log", ops.Sin: "Sin",
    ops.Cos: "Cos", ops.Tan: "Tan", ops.Asin: "Asin", ops.Acos: "Acos", ops.Atan: "Atan", ops.Sinh: "Sinh", ops.Cosh: "Cosh",
    ops.Tanh: "Tanh", ops.Asinh: "Asinh", ops.Acosh: "Acosh", ops.Atanh: "Atanh", ops.Erf: "Erf", ops.Sigmoid: "Sigmoid",
    ops.Softplus: "Softplus", ops.IsNan: "IsNaN", ops.IsInf: "IsInf", ops.LogicalNot: "Not",
}  # fmt: skip
BINARY: dict[type[Op], str] = {
    ops.Add: "Add", ops.Sub: "Sub", ops.Mul: "Mul", ops.Div: "Div", ops.Minimum: "Min", ops.Maximum: "Max",
    ops.Eq: "Equal", ops.Lt: "Less", ops.Le: "LessOrEqual", ops.Gt: "Greater", ops.Ge: "GreaterOrEqual",
}  # fmt: skip
ROUNDING: dict[type[Op], str] = {ops.Floor: "Floor", ops.Ceil: "Ceil", ops.Round: "Round"}
LOGIC: dict[type[Op], tuple[str, str]] = {
    ops.And: ("And", "BitwiseAnd"), ops.Or: ("Or", "BitwiseOr"), ops.Xor: ("Xor", "BitwiseXor"),
}  # fmt: skip


@rule(*UNARY)
def _unary(e: Emitter, o: Operation) -> str:
    return e(UNARY[type(o.op)], e.operand(o, 0))


@rule(*BINARY)
def _binary(e: Emitter, o: Operation) -> str:
    return e(BINARY[type(o.op)], e.operand(o, 0), e.operand(o, 1))


@rule(ops.Pow)
def _pow(e: Emitter, o: Operation) -> str:
    if not o.result.type.dtype.is_float:
        raise Unsupported("implementations compute powers of integers in floats")
    return e("Pow", e.operand(o, 0), e.operand(o, 1))


@rule(*ROUNDING)
def _rounding(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e(ROUNDING[type(o.op)], x) if o.result.type.dtype.is_float else e("Identity", x)


@rule(*LOGIC)
def _logic(e: Emitter, o: Operation) -> str:
    a, b = e.operand(o, 0), e.operand(o, 1)
    return e(LOGIC[type(o.op)][o.result.type.dtype is not DType.bool], a, b)


@rule(ops.Neg)
def _neg(e: Emitter, o: Operation) -> str:
    x, dtype = e.operand(o, 0), o.result.type.dtype
    return e("Neg", x) if dtype.is_signed else e("Sub", e.constant(0, dtype), x)  # ONNX negates numbers with a sign alone


@rule(ops.Trunc)
def _trunc(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("Mul", e("Sign", x), e("Floor", e("Abs", x))) if o.result.type.dtype.is_float else e("Identity", x)


@rule(ops.Rsqrt)
def _rsqrt(e: Emitter, o: Operation) -> str:
    return e("Reciprocal", e("Sqrt", e.operand(o, 0)))


@rule(ops.Exp2)
def _exp2(e: Emitter, o: Operation) -> str:
    return e("Pow", e.like(2.0, o.result), e.operand(o, 0))


@rule(ops.Expm1)
def _expm1(e: Emitter, o: Operation) -> str:
    """``2 tanh(x / 2) / (1 - tanh(x / 2))`` near 0, where ``e ** x - 1`` would lose its digits."""
    x, one = e.operand(o, 0), e.like(1.0, o.result)
    t = e("Tanh", e("Mul", x, e.like(0.5, o.result)))
    near = e("Div", e("Add", t, t), e("Sub", one, t))
    return e("Where", e("Less", e("Abs", x), e.like(0.5, o.result)), near, e("Sub", e("Exp", x), one))


@rule(ops.Log1p)
def _log1p(e: Emitter, o: Operation) -> str:
    """``2 atanh(x / (2 + x))`` near 0, where ``log(1 + x)`` would lose its digits."""
    x = e.operand(o, 0)
    half = e("Atanh", e("Div", x, e("Add", x, e.like(2.0, o.result))))
    far = e("Log", e("Add", x, e.like(1.0, o.result)))
    return e("Where", e("Less", e("Abs", x), e.like(0.5, o.result)), e("Add", half, half), far)


@rule(ops.Log2, ops.Log10)
def _log_of(e: Emitter, o: Operation) -> str:
    return e("Mul", e("Log", e.operand(o, 0)), e.like(1 / math.log(2 if isinstance(o.op, ops.Log2) else 10), o.result))


@rule(ops.Relu)
def _relu(e: Emitter, o: Operation) -> str:
    x, dtype = e.operand(o, 0), o.result.type.dtype
    return e("Relu", x) if dtype.is_float else e("Max", x, e.constant(0, dtype))


@rule(ops.Gelu)
def _gelu(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Gelu)
    x, tanh = e.operand(o, 0), o.op.approximate is Approximate.TANH
    if e.opset >= 20:
        return e("Gelu", x, approximate="tanh" if tanh else None)
    one, half = e.like(1.0, o.result), e.like(0.5, o.result)
    if tanh:
        cube = e("Mul", e("Mul", x, x), x)
        inner = e("Mul", e("Add", x, e("Mul", cube, e.like(0.044715, o.result))), e.like(math.sqrt(2 / math.pi), o.result))
        return e("Mul", e("Mul", x, half), e("Add", e("Tanh", inner), one))
    return e("Mul", e("Mul", x, e("Add", e("Erf", e("Div", x, e.like(math.sqrt(2.0), o.result))), one)), half)


@rule(ops.Silu)
def _silu(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("Mul", x, e("Sigmoid", x))


@rule(ops.Elu)
def _elu(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Elu)
    return e("Elu", e.operand(o, 0), alpha=o.op.alpha)


@rule(ops.LeakyRelu)
def _leaky_relu(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.LeakyRelu)
    x = e.operand(o, 0)
    if o.result.type.dtype is DType.f64:  # attributes are f32
        return e("Where", e("Less", x, e.like(0.0, o.result)), e("Mul", x, e.like(o.op.slope, o.result)), x)
    return e("LeakyRelu", x, alpha=o.op.slope)


@rule(ops.HardSwish)
def _hard_swish(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("HardSwish", x) if o.result.type.dtype is not DType.f64 else e("Mul", x, _sixth(e, o, x))


@rule(ops.HardSigmoid)
def _hard_sigmoid(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("HardSigmoid", x, alpha=1 / 6, beta=0.5) if o.result.type.dtype is not DType.f64 else _sixth(e, o, x)


def _sixth(e: Emitter, o: Operation, x: str) -> str:
    """``x / 6 + 1 / 2`` between 0 and 1, with numbers of f64, which attributes are not."""
    inner = e("Add", e("Div", x, e.like(6.0, o.result)), e.like(0.5, o.result))
    return e("Clip", inner, e.like(0.0, o.result), e.like(1.0, o.result))


@rule(ops.Mish)
def _mish(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("Mul", x, e("Tanh", e("Softplus", x)))


@rule(ops.IsFinite)
def _is_finite(e: Emitter, o: Operation) -> str:
    x = e.operand(o, 0)
    return e("Not", e("Or", e("IsNaN", x), e("IsInf", x)))


@rule(ops.BitwiseNot)
def _bitwise_not(e: Emitter, o: Operation) -> str:
    return e("Not" if o.result.type.dtype is DType.bool else "BitwiseNot", e.operand(o, 0))


@rule(ops.Ne)
def _ne(e: Emitter, o: Operation) -> str:
    return e("Not", e("Equal", e.operand(o, 0), e.operand(o, 1)))


def _divided(e: Emitter, o: Operation, how: Callable[[str, str], str]) -> str:
    """A quotient or a remainder of whole numbers: 0 where the divisor is, for which ONNX has none."""
    a, v, dtype = e.operand(o, 0), o.inputs[1], o.result.type.dtype
    known = v.op_as(ops.Constant)
    if known is not None and isinstance(known.op, ops.Constant) and known.op.value.array.all():
        return how(a, e.value(v))
    zero = e.constant(0, dtype)
    none = e("Equal", e.value(v), zero)
    return e("Where", none, zero, how(a, e("Where", none, e.constant(1, dtype), e.value(v))))


@rule(ops.FloorDiv)
def _floor_div(e: Emitter, o: Operation) -> str:
    dtype = o.result.type.dtype
    if dtype.is_float:
        wide = DType.f32 if dtype.bits < 32 else dtype  # the quotient is not rounded before
        a, b = (e.cast(e.operand(o, n), dtype, wide) for n in (0, 1))
        return e.cast(e("Floor", e("Div", a, b)), wide, dtype)
    if not dtype.is_signed:
        return _divided(e, o, lambda a, b: e("Div", a, b))
    return _divided(e, o, lambda a, b: e("Div", e("Sub", a, e("Mod", a, b)), b))  # Mod has the sign of b, so nothing is left over


@rule(ops.Mod)
def _mod(e: Emitter, o: Operation) -> str:
    if not o.result.type.dtype.is_float:
        return _divided(e, o, lambda a, b: e("Mod", a, b))
    a, b = e.operand(o, 0), e.operand(o, 1)
    rest = e("Mod", a, b, fmod=1)  # of the sign of a
    zero = e.like(0.0, o.result)
    other = e("And", e("Not", e("Equal", rest, zero)), e("Xor", e("Less", rest, zero), e("Less", b, zero)))
    return e("Where", other, e("Add", rest, b), rest)


@rule(ops.Atan2)
def _atan2(e: Emitter, o: Operation) -> str:
    y, x, zero = e.operand(o, 0), e.operand(o, 1), e.like(0.0, o.result)
    pi, half = e.like(math.pi, o.result), e.like(math.pi / 2, o.result)
    safe = e("Where", e("Equal", x, zero), e.like(1.0, o.result), x)
    base = e("Atan", e("Div", y, safe))
    left = e("Where", e("Less", y, zero), e("Sub", base, pi), e("Add", base, pi))
    upright = e("Mul", e("Sign", y), half)
    return e("Where", e("Equal", x, zero), upright, e("Where", e("Less", x, zero), left, base))


@rule(ops.ShiftLeft, ops.ShiftRight)
def _shift(e: Emitter, o: Operation) -> str:
    """ONNX shifts numbers without a sign alone. To the right, a negative number is shifted as its complement, which is not."""
    a, b, dtype = e.operand(o, 0), e.operand(o, 1), o.result.type.dtype
    right, signed = isinstance(o.op, ops.ShiftRight), dtype.is_signed
    plain = DType[f"u{dtype.bits}"]
    negative = e("Less", a, e.constant(0, dtype)) if right and signed else None
    given = a if negative is None else e("Where", negative, e("BitwiseNot", a), a)
    moved = e("BitShift", e.cast(given, dtype, plain), e.cast(b, dtype, plain), direction="RIGHT" if right else "LEFT")
    far = e("GreaterOrEqual", e.cast(b, dtype, plain), e.constant(dtype.bits, plain))
    found = e.cast(e("Where", far, e.constant(0, plain), moved), plain, dtype)
    return found if negative is None else e("Where", negative, e("BitwiseNot", found), found)


@rule(ops.Select)
def _select(e: Emitter, o: Operation) -> str:
    return e("Where", *(e.operand(o, n) for n in range(3)))


@rule(ops.Clamp)
def _clamp(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Clamp)
    dtype = o.result.type.dtype

    def bound(value: float | None) -> str | None:
        if value is None:
            return None
        return e.constant(value if dtype.is_float else min(max(int(value), dtype.min), dtype.max), dtype)

    return e("Clip", e.operand(o, 0), bound(o.op.low), bound(o.op.high))


@rule(ops.Cast)
def _cast(e: Emitter, o: Operation) -> str:
    """ONNX leaves open what becomes of floats that no integer is, so they are made some before. A weight that becomes smaller lies so in the file."""
    stored = e.weight_of(o.result)
    if stored is not None:
        return e.weight(stored[0], dtype=stored[1])
    x, source, target = e.operand(o, 0), o.inputs[0].type.dtype, o.result.type.dtype
    if source.is_float and target.is_integer:
        if source in (DType.f16, DType.bf16):
            x, source = e.cast(x, source, DType.f32), DType.f32
        x = e("Where", e("IsNaN", x), e.constant(0.0, source), x)
        # the largest float that is not above the largest integer: those beyond are put in their place behind the cast
        top, low = float(target.max), float(target.min)
        over, under = e("GreaterOrEqual", x, e.constant(top, source)), e("LessOrEqual", x, e.constant(low, source))
        inside = e("Where", e("Or", over, under), e.constant(0.0, source), x)
        whole = e("Cast", inside, to=ELEMENTS[target])
        capped = e("Where", over, e.constant(target.max, target), whole)
        return e("Where", under, e.constant(target.min, target), capped)
    if target is DType.f8e4m3:
        return e("Cast", x, to=ELEMENTS[target], saturate=1)
    return e("Cast", x, to=ELEMENTS[target])


@rule(ops.Dropout)
def _dropout(e: Emitter, o: Operation) -> str:
    return e("Identity", e.operand(o, 0))
