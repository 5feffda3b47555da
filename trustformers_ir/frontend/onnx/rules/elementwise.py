"""Arithmetic, comparisons, logic, activations and casts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from trustformers_ir.frontend.onnx.elements import BOOL, ELEMENTS
from trustformers_ir.frontend.onnx.narrow import convert, fixed
from trustformers_ir.frontend.onnx.node import Node, emit, number, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Item, Missing, Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import where
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.tensor import Tensor

_UNARY: dict[str, Op] = {
    "Abs": ops.Abs(), "Acos": ops.Acos(), "Acosh": ops.Acosh(), "Asin": ops.Asin(), "Asinh": ops.Asinh(), "Atan": ops.Atan(),
    "Atanh": ops.Atanh(), "Ceil": ops.Ceil(), "Cos": ops.Cos(), "Cosh": ops.Cosh(), "Erf": ops.Erf(), "Exp": ops.Exp(),
    "Floor": ops.Floor(), "IsNaN": ops.IsNan(), "Log": ops.Log(), "Mish": ops.Mish(), "Neg": ops.Neg(), "Not": ops.LogicalNot(),
    "BitwiseNot": ops.BitwiseNot(), "Reciprocal": ops.Reciprocal(), "Round": ops.Round(), "Sigmoid": ops.Sigmoid(), "Sign": ops.Sign(),
    "Sin": ops.Sin(), "Sinh": ops.Sinh(), "Sqrt": ops.Sqrt(), "Tan": ops.Tan(), "Tanh": ops.Tanh(), "Softplus": ops.Softplus(),
    "HardSwish": ops.HardSwish(),
}  # fmt: skip
_BINARY: dict[str, Op] = {
    "Add": ops.Add(), "Sub": ops.Sub(), "Mul": ops.Mul(), "And": ops.And(), "Or": ops.Or(), "Xor": ops.Xor(),
    "BitwiseAnd": ops.And(), "BitwiseOr": ops.Or(), "BitwiseXor": ops.Xor(), "Equal": ops.Eq(), "Greater": ops.Gt(), "Less": ops.Lt(),
    "GreaterOrEqual": ops.Ge(), "LessOrEqual": ops.Le(),
}  # fmt: skip


@onnx_op(*_UNARY)
def _unary(n: Node) -> Tensor:
    return emit(n.t(0), _UNARY[n.op])


@onnx_op(*_BINARY)
def _binary(n: Node) -> Tensor:
    a, b = n.t(0), n.t(1)
    if n.version < 7 and n.attr("broadcast", 0):
        b = _from_axis(n, a, b)
    return emit(a, _BINARY[n.op], b)


def _from_axis(n: Node, a: Tensor, b: Tensor) -> Tensor:
    """Broadcasting before opset 7: b's axes lie along those of a from ``axis`` on."""
    axis = n.attr("axis", None)
    if axis is None:
        return b
    return b.reshape(*b.shape, *(1,) * (a.ndim - int(axis) - b.ndim))


@onnx_op("Div")
def _div(n: Node) -> Tensor:
    a, b = n.t(0), n.t(1)
    if n.version < 7 and n.attr("broadcast", 0):
        b = _from_axis(n, a, b)
    if not a.dtype.is_integer:
        return emit(a, ops.Div(), b)
    if not a.dtype.is_signed:
        return emit(a, ops.FloorDiv(), b)
    size = emit(a.abs(), ops.FloorDiv(), b.abs())  # towards zero
    return where((a < 0) != (b < 0), -size, size)


@onnx_op("Mod")
def _mod(n: Node) -> Tensor:
    """The remainder with the sign of the divisor, or with ``fmod`` that of the dividend."""
    a, b = n.t(0), n.t(1)
    if not n.attr("fmod", 0):
        return emit(a, ops.Mod(), b)
    if a.dtype.is_integer and not a.dtype.is_signed:
        return emit(a, ops.Mod(), b)
    rest = emit(a.abs(), ops.Mod(), b.abs())
    out = where(a < 0, -rest, rest)
    return where(b.isinf() & ~a.isinf(), a, out) if a.dtype.is_float else out


@onnx_op("Pow")
def _pow(n: Node) -> Tensor:
    """The result has the dtype of the base."""
    a, b = n.t(0), n.t(1)
    if a.dtype is b.dtype:
        return emit(a, ops.Pow(), b)
    if a.dtype.is_integer and b.dtype.is_integer:
        return emit(a, ops.Pow(), b.to(a.dtype))
    wide = DType.f64 if DType.f64 in (a.dtype, b.dtype) or a.dtype.bits == 64 or b.dtype.bits == 64 else DType.f32
    if a.dtype.is_integer and a.dtype.bits >= 32:
        wide = DType.f64
    return emit(a.to(wide), ops.Pow(), b.to(wide)).to(a.dtype)


@onnx_op("BitShift")
def _shift(n: Node) -> Tensor:
    return emit(n.t(0), ops.ShiftLeft() if n.attr("direction") == "LEFT" else ops.ShiftRight(), n.t(1))


def _variadic(op: Op) -> Callable[[Node], Tensor]:
    def rule(n: Node) -> Tensor:
        xs = n.tensors()
        n.require(xs, "there is no input")
        return functools.reduce(lambda a, b: emit(a, op, b), xs)

    return rule


onnx_op("Max")(_variadic(ops.Maximum()))
onnx_op("Min")(_variadic(ops.Minimum()))
onnx_op("Sum")(_variadic(ops.Add()))


@onnx_op("Mean")
def _mean(n: Node) -> Tensor:
    xs = [widened(x) for x in n.tensors()]
    total = functools.reduce(lambda a, b: emit(a, ops.Add(), b), xs)
    return (total / float(len(xs))).to(n.t(0).dtype)


@onnx_op("Where")
def _where(n: Node) -> Item:
    return Item.of(emit(n.t(0), ops.Select(), n.t(1), n.t(2)), n.element(1))


@onnx_op("Clip")
def _clip(n: Node) -> Tensor:
    x = n.t(0)
    if n.version < 11:
        low, high = n.attr("min", None), n.attr("max", None)
        x = x if low is None else x.maximum(number(low, x))
        return x if high is None else x.minimum(number(high, x))
    if n.has(1):
        x = emit(x, ops.Maximum(), n.t(1))
    return emit(x, ops.Minimum(), n.t(2)) if n.has(2) else x


# --- casts -------------------------------------------------------------------------------------------------------------------------


@onnx_op("Cast", "CastLike")
def _cast(n: Node) -> Item:
    target = n.element(1) if n.op == "CastLike" else n.element_attr("to")
    saturate = bool(n.attr("saturate", 1))
    return Item.of(convert(n.t(0), n.element(0), target, saturate, n.attr("round_mode", "up")), target)


@onnx_op("BitCast")
def _bitcast(n: Node) -> Item:
    source, target = n.element(0), n.element_attr("to")
    if source.small or target.small or source.narrow_integer or target.narrow_integer:
        raise Refused(f"the bits of {source} as {target}")
    x = n.t(0)
    if source is BOOL or target is BOOL:
        if source is target:
            return n.item(0)
        x = x.to(DType.u8)
        if target is BOOL:
            return Item.of(x != 0, target)
    return Item.of(emit(x, ops.BitCast(target.dtype)), target)


@onnx_op("Identity")
def _identity(n: Node) -> object:
    return n.inputs[0] if n.inputs and n.inputs[0] is not None else Missing()


# --- activations -------------------------------------------------------------------------------------------------------------------


@onnx_op("Relu")
def _relu(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.Relu()) if x.dtype in ops.Relu.operands[0].dtypes else x.maximum(number(0, x))


@onnx_op("LeakyRelu")
def _leaky(n: Node) -> Tensor:
    return emit(n.t(0), ops.LeakyRelu(float(n.attr("alpha", 0.01))))


@onnx_op("Elu")
def _elu(n: Node) -> Tensor:
    return emit(n.t(0), ops.Elu(float(n.attr("alpha", 1.0))))


@onnx_op("Celu")
def _celu(n: Node) -> Tensor:
    alpha = float(n.attr("alpha", 1.0))
    x = widened(n.t(0))
    return (emit(x / alpha, ops.Elu(1.0)) * alpha).to(n.t(0).dtype)


@onnx_op("Selu")
def _selu(n: Node) -> Tensor:
    alpha, gamma = float(n.attr("alpha", 1.67326319217681884765625)), float(n.attr("gamma", 1.05070102214813232421875))
    x = widened(n.t(0))
    return (emit(x, ops.Elu(alpha)) * gamma).to(n.t(0).dtype)


@onnx_op("PRelu")
def _prelu(n: Node) -> Tensor:
    x, slope = n.t(0), n.t(1)
    if n.version < 7 and slope.ndim == 1 and x.ndim > 1:  # one for each channel
        slope = slope.reshape(*slope.shape, *(1,) * (x.ndim - 2))
    return where(x < number(0, x), x * slope, x)


@onnx_op("HardSigmoid")
def _hard_sigmoid(n: Node) -> Tensor:
    x = widened(n.t(0))
    y = x * float(n.attr("alpha", 0.2)) + float(n.attr("beta", 0.5))
    return y.clamp(0.0, 1.0).to(n.t(0).dtype)


@onnx_op("Gelu")
def _gelu(n: Node) -> Tensor:
    return n.t(0).gelu("tanh" if n.attr("approximate", "none") == "tanh" else "none")


@onnx_op("Softsign")
def _softsign(n: Node) -> Tensor:
    x = widened(n.t(0))
    return (x / (x.abs() + 1.0)).to(n.t(0).dtype)


@onnx_op("Swish")
def _swish(n: Node) -> Tensor:
    alpha = float(n.attr("alpha", 1.0))
    if alpha == 1.0:
        return emit(n.t(0), ops.Silu())
    x = widened(n.t(0))
    return (x * (x * alpha).sigmoid()).to(n.t(0).dtype)


@onnx_op("ThresholdedRelu")
def _thresholded(n: Node) -> Tensor:
    x = n.t(0)
    return where(x > number(n.attr("alpha", 1.0), x), x, number(0, x))


@onnx_op("Shrink")
def _shrink(n: Node) -> Tensor:
    x = n.t(0)
    bias, limit = n.attr("bias", 0.0), n.attr("lambd", 0.5)
    wide = widened(x) if x.dtype.is_float else x.to(DType.f32)
    out = where(wide < -limit, wide + bias, where(wide > limit, wide - bias, number(0, wide)))
    return out.to(x.dtype)


@onnx_op("IsInf")
def _isinf(n: Node) -> Tensor:
    x = n.t(0)
    up, down = n.attr("detect_positive", 1), n.attr("detect_negative", 1)
    if up and down:
        return x.isinf()
    if not up and not down:
        return x.isinf() & fixed(False, DType.bool)
    return x.isinf() & (x > number(0, x) if up else x < number(0, x))


@onnx_op("Dropout")
def _dropout(n: Node) -> list[Tensor]:
    """The identity, unless the model trains."""
    x = n.t(0)
    ratio = n.attr("ratio", 0.5) if n.version < 12 else n.scalar(1, 0.5) if n.has(2) else 0.5
    training = bool(n.scalar(2, False)) if n.version >= 12 else (n.version < 7 and not n.attr("is_test", 0))
    if training and ratio != 0:
        raise Refused("dropout of a model that trains draws random numbers", "export the model for inference")
    return [x, fixed(True, DType.bool).expand(*x.shape)]


@onnx_op("Constant")
def _constant(n: Node) -> Item:
    for a in n.proto.attribute:
        value = n.attr(a.name, None)
        if value is None:
            continue
        if a.name == "value":
            element, array = n.reader.file.array(value)
            return n.reader.weight(n.proto.output[0] if n.proto.output else "", element, array)
        if a.name in ("value_float", "value_floats"):
            return Item.array(np.asarray(value, np.float32), ELEMENTS[1])
        if a.name in ("value_int", "value_ints"):
            return Item.array(np.asarray(value, np.int64), ELEMENTS[7])
        if a.name == "sparse_value":
            return n.reader.dense(value)
        raise Refused(f"a constant given as {a.name}", "strings are not compiled: leave the text processing outside of the model")
    raise Refused("a constant without a value", broken=True)
