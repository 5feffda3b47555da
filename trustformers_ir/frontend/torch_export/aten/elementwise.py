"""Elementwise ops: arithmetic, comparisons, logic, activations. Dtypes meet as torch inferred."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trustformers_ir.frontend.torch_export.aten.reduce import parts
from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import SymExpr
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.tensor import Tensor, as_tensor

_UNARY: dict[str, Op] = {
    "exp": ops.Exp(), "exp2": ops.Exp2(), "expm1": ops.Expm1(), "log": ops.Log(), "log2": ops.Log2(), "log10": ops.Log10(), "log1p": ops.Log1p(),
    "sqrt": ops.Sqrt(), "rsqrt": ops.Rsqrt(), "reciprocal": ops.Reciprocal(), "sin": ops.Sin(), "cos": ops.Cos(), "tan": ops.Tan(),
    "asin": ops.Asin(), "acos": ops.Acos(), "atan": ops.Atan(), "sinh": ops.Sinh(), "cosh": ops.Cosh(), "tanh": ops.Tanh(),
    "asinh": ops.Asinh(), "acosh": ops.Acosh(), "atanh": ops.Atanh(), "erf": ops.Erf(), "sigmoid": ops.Sigmoid(),
    "silu": ops.Silu(), "mish": ops.Mish(), "hardsigmoid": ops.HardSigmoid(), "hardswish": ops.HardSwish(), "special_expit": ops.Sigmoid(),
}  # fmt: skip
_ROUNDINGS: dict[str, Op] = {"floor": ops.Floor(), "ceil": ops.Ceil(), "trunc": ops.Trunc(), "round": ops.Round()}
_BINARY: dict[str, Op] = {
    "maximum": ops.Maximum(), "minimum": ops.Minimum(), "atan2": ops.Atan2(),
    "bitwise_and": ops.And(), "bitwise_or": ops.Or(), "bitwise_xor": ops.Xor(),
    "__and__": ops.And(), "__or__": ops.Or(), "__xor__": ops.Xor(),
}  # fmt: skip
_COMPARISONS: dict[str, Op] = {"eq": ops.Eq(), "ne": ops.Ne(), "lt": ops.Lt(), "le": ops.Le(), "gt": ops.Gt(), "ge": ops.Ge()}


def _unary(op: Op) -> Callable[[Call, Any], Tensor]:
    def build(c: Call, x: Any) -> Tensor:
        if c.dtype.is_complex and c.dtype not in op.operands[0].dtypes:
            raise Refused(f"{op.mnemonic} of complex numbers", "compute with x.real and x.imag")
        return c.emit(op, *c.alike(x))

    return build


for _name, _op in _UNARY.items():
    aten(_name)(_unary(_op))


def _rounding(op: Op) -> Callable[[Call, Any], Tensor]:
    def build(c: Call, x: Any) -> Tensor:
        (y,) = c.alike(x)
        return c.emit(op, y) if y.dtype.is_float else y

    return build


for _name, _op in _ROUNDINGS.items():
    aten(_name)(_rounding(_op))


@aten("round.decimals")
def round_decimals(c: Call, x: Tensor, *, decimals: int = 0) -> Tensor:
    if not x.dtype.is_float:
        return x
    wide = x.float() if x.dtype in HALVES else x
    scale = 10.0 ** abs(decimals)
    y = (wide * scale).round() / scale if decimals > 0 else (wide / scale).round() * scale
    return y.to(c.dtype)


def _binary(op: Op) -> Callable[[Call, Any, Any], Tensor]:
    def build(c: Call, a: Any, b: Any) -> Tensor:
        x, y = c.alike(a, b)
        if x.dtype is DType.bool and isinstance(op, (ops.Maximum, ops.Minimum)):
            return c.emit(ops.Or() if isinstance(op, ops.Maximum) else ops.And(), x, y)
        return c.emit(op, x, y)

    return build


for _name, _op in _BINARY.items():
    forms = ("Tensor", "Scalar", "Scalar_Tensor") if _name.startswith("bit") else ("Tensor", "Scalar") if _name[0] == "_" else ("default",)
    aten(*(f"{_name}.{form}" for form in forms))(_binary(_op))


def _comparison(op: Op) -> Callable[[Call, Any, Any], Tensor]:
    def build(c: Call, a: Any, b: Any) -> Tensor:
        return c.emit(op, *_met(c, a, b))

    return build


def _met(c: Call, a: Any, b: Any) -> list[Tensor]:
    """Both sides in the dtype in which torch compares them. A number that the other side's integers cannot hold is compared as a float."""
    if isinstance(b, int) and isinstance(a, Tensor) and a.dtype.is_integer and not a.dtype.min <= b <= a.dtype.max:
        return c.alike(a, b, dtype=DType.i64 if abs(b) < 1 << 63 else DType.f64)
    return c.compared(a, b)


for _name, _op in _COMPARISONS.items():
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison(_op))


@aten("add.Tensor", "add.Scalar")
def add(c: Call, a: Any, b: Any, alpha: Any = 1) -> Tensor:
    x, y = c.alike(a, b)
    if c.dtype is DType.bool:
        return c.emit(ops.Or(), x, y if alpha else y.logical_and(False))
    return c.emit(ops.Add(), x, y if alpha == 1 else c.emit(ops.Mul(), y, constant(c, alpha, c.dtype)))


@aten("sub.Tensor", "sub.Scalar")
def sub(c: Call, a: Any, b: Any, alpha: Any = 1) -> Tensor:
    x, y = c.alike(a, b)
    return c.emit(ops.Sub(), x, y if alpha == 1 else c.emit(ops.Mul(), y, constant(c, alpha, c.dtype)))


@aten("rsub.Tensor", "rsub.Scalar")
def rsub(c: Call, a: Any, b: Any, alpha: Any = 1) -> Tensor:
    x, y = c.alike(a, b)
    return c.emit(ops.Sub(), y, x if alpha == 1 else c.emit(ops.Mul(), x, constant(c, alpha, c.dtype)))


@aten("mul.Tensor", "mul.Scalar")
def mul(c: Call, a: Any, b: Any) -> Tensor:
    x, y = c.alike(a, b)
    return c.emit(ops.And() if c.dtype is DType.bool else ops.Mul(), x, y)


@aten("div.Tensor", "div.Scalar")
def div(c: Call, a: Any, b: Any) -> Tensor:
    return c.emit(ops.Div(), *c.alike(a, b))


@aten("div.Tensor_mode", "div.Scalar_mode")
def div_mode(c: Call, a: Any, b: Any, *, rounding_mode: str | None = None) -> Tensor:
    x, y = c.alike(a, b)
    if rounding_mode is None:
        return c.emit(ops.Div(), x, y)
    if rounding_mode == "floor":
        return c.emit(ops.FloorDiv(), x, y)
    if x.dtype.is_float:
        wide = [t.float() if t.dtype in HALVES else t for t in (x, y)]
        return c.emit(ops.Trunc(), c.emit(ops.Div(), *wide).to(c.dtype))
    return _truncated(c, x, y)


def _truncated(c: Call, x: Tensor, y: Tensor) -> Tensor:
    """The quotient of integers, towards zero."""
    down = c.emit(ops.FloorDiv(), x, y)
    if not x.dtype.is_signed:
        return down
    inexact = (x - down * y).ne(constant(c, 0, x.dtype))
    up = inexact.logical_and(down.lt(constant(c, 0, x.dtype)))
    return down + up.to(x.dtype)


@aten("floor_divide", "floor_divide.Scalar")
def floor_divide(c: Call, a: Any, b: Any) -> Tensor:
    return c.emit(ops.FloorDiv(), *c.alike(a, b))


@aten("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def remainder(c: Call, a: Any, b: Any) -> Tensor:
    return c.emit(ops.Mod(), *c.alike(a, b))


@aten("fmod.Tensor", "fmod.Scalar")
def fmod(c: Call, a: Any, b: Any) -> Tensor:
    """With the sign of the dividend."""
    x, y = c.alike(a, b)
    if not x.dtype.is_signed:
        return c.emit(ops.Mod(), x, y)
    r = c.emit(ops.Mod(), x.abs(), y.abs())
    return F.where(x.lt(constant(c, 0, x.dtype)), r.neg(), r)


@aten("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar")
def power(c: Call, a: Any, b: Any) -> Tensor:
    if isinstance(b, (int, float)) and not isinstance(b, bool):
        x = as_tensor(a, c.dtype)
        if b in (0, 1):
            return x if b else F.full_like(x, 1)
        if b in (2, 3) or (c.dtype.is_float and b in (0.5, -0.5, -1)):
            if b == 0.5:  # pow(-inf, 0.5) is inf, pow(-0., 0.5) is 0.
                return x.sqrt() if c.dtype.is_float else x.pow(b)
            return x.pow(b)
    if c.dtype is DType.bool:
        x, y = c.alike(a, b)
        return x.logical_or(y.logical_not())
    return c.emit(ops.Pow(), *c.alike(a, b))


@aten("neg")
def neg(c: Call, x: Tensor) -> Tensor:
    return x.neg()


@aten("abs")
def absolute(c: Call, x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        re, im = parts(x)
        top = F.maximum(re.abs(), im.abs())
        safe = F.where(top.eq(0.0), 1.0, top)
        return top * ((re / safe).square() + (im / safe).square()).sqrt()
    return x.abs() if x.dtype is not DType.bool else x


@aten("sign", "sgn")
def sign(c: Call, x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        size = absolute(c, x)
        safe = F.where(size.eq(0.0), 1.0, size)
        return F.make_complex(*(p / safe for p in parts(x)))
    if x.dtype is DType.bool:
        return x
    if x.dtype.is_float:  # torch says that the sign of NaN is 0
        return F.where(x.isnan(), constant(c, 0, x.dtype), x.sign())
    return x.sign()


@aten("square")
def square(c: Call, x: Tensor) -> Tensor:
    return x.to(c.dtype).square()  # of truths torch makes whole numbers


@aten("signbit")
def signbit(c: Call, x: Tensor) -> Tensor:
    if not x.dtype.is_float:
        return x.lt(constant(c, 0, x.dtype)) if x.dtype is not DType.bool else x.logical_and(False)
    zero = constant(c, 0, x.dtype)
    return x.lt(zero).logical_or(x.eq(zero).logical_and(x.reciprocal().lt(zero)))


@aten("copysign.Tensor", "copysign.Scalar")
def copysign(c: Call, a: Any, b: Any) -> Tensor:
    x, y = c.alike(a, b)
    size = x.abs()
    return F.where(signbit(c, y), size.neg(), size)


@aten("isnan")
def isnan(c: Call, x: Tensor) -> Tensor:
    return _asked(c, x, Tensor.isnan)


@aten("isinf")
def isinf(c: Call, x: Tensor) -> Tensor:
    return _asked(c, x, Tensor.isinf)


@aten("isfinite")
def isfinite(c: Call, x: Tensor) -> Tensor:
    if x.dtype.is_complex:
        re, im = parts(x)
        return re.isfinite().logical_and(im.isfinite())
    return x.isfinite() if x.dtype.is_float else x.eq(x)


def _asked(c: Call, x: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
    if x.dtype.is_complex:
        re, im = parts(x)
        return ask(re).logical_or(ask(im))
    return ask(x) if x.dtype.is_float else x.ne(x)


@aten("bitwise_not")
def bitwise_not(c: Call, x: Tensor) -> Tensor:
    return ~x


@aten("bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "bitwise_left_shift.Scalar_Tensor", "__lshift__.Tensor", "__lshift__.Scalar")
def left_shift(c: Call, a: Any, b: Any) -> Tensor:
    return c.emit(ops.ShiftLeft(), *c.alike(a, b))


@aten(
    *("bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "bitwise_right_shift.Scalar_Tensor"),
    *("__rshift__.Tensor", "__rshift__.Scalar"),
)
def right_shift(c: Call, a: Any, b: Any) -> Tensor:
    return c.emit(ops.ShiftRight(), *c.alike(a, b))


@aten("logical_not")
def logical_not(c: Call, x: Tensor) -> Tensor:
    return x.logical_not()


@aten("logical_and")
def logical_and(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a.logical_and(b.bool())


@aten("logical_or")
def logical_or(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a.logical_or(b.bool())


@aten("logical_xor")
def logical_xor(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return a.logical_xor(b.bool())


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(c: Call, condition: Tensor, a: Any, b: Any) -> Tensor:
    return c.emit(ops.Select(), condition.bool(), *c.alike(a, b))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(c: Call, x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return c.emit(ops.Select(), mask.bool(), *c.alike(value, x))


@aten("clamp")
def clamp(c: Call, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    y = x.to(c.dtype)
    if isinstance(min, SymExpr) or isinstance(max, SymExpr) or c.dtype is DType.bool:
        return clamp_tensor(c, y, *(None if b is None else as_tensor(b, c.dtype) for b in (min, max)))
    low, high = (None if b is None or (isinstance(b, float) and math.isnan(b)) else b for b in (min, max))
    if any(isinstance(b, float) and math.isnan(b) for b in (min, max)):
        return F.full_like(y, math.nan)
    if low is None and high is None:
        return y
    if low is not None and high is not None and low > high:
        return F.full_like(y, high)
    if y.dtype.is_integer:
        low = None if low is None or low < y.dtype.min else int(low)
        high = None if high is None or high > y.dtype.max else int(high)
    return y if low is None and high is None else y.clamp(low, high).to(c.dtype)


@aten("clamp.Tensor")
def clamp_tensor(c: Call, x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    y = x.to(c.dtype)
    low, high = (ops.Or(), ops.And()) if c.dtype is DType.bool else (ops.Maximum(), ops.Minimum())
    y = y if min is None else c.emit(low, y, min.to(c.dtype))
    return y if max is None else c.emit(high, y, max.to(c.dtype))


@aten("clamp_min", "clamp_min.Tensor")
def clamp_min(c: Call, x: Tensor, min: Any) -> Tensor:
    return clamp(c, x, min) if not isinstance(min, Tensor) else clamp_tensor(c, x, min)


@aten("clamp_max", "clamp_max.Tensor")
def clamp_max(c: Call, x: Tensor, max: Any) -> Tensor:
    return clamp(c, x, None, max) if not isinstance(max, Tensor) else clamp_tensor(c, x, None, max)


@aten("fmax")
def fmax(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return _without_nan(c, ops.Maximum(), *c.alike(a, b))


@aten("fmin")
def fmin(c: Call, a: Tensor, b: Tensor) -> Tensor:
    return _without_nan(c, ops.Minimum(), *c.alike(a, b))


def _without_nan(c: Call, op: Op, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype is DType.bool:
        return c.emit(ops.Or() if isinstance(op, ops.Maximum) else ops.And(), x, y)
    if not x.dtype.is_float:
        return c.emit(op, x, y)
    return F.where(x.isnan(), y, F.where(y.isnan(), x, c.emit(op, x, y)))


@aten("lerp.Scalar", "lerp.Tensor")
def lerp(c: Call, start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """From the nearer end, as torch has it; in f32 where the dtype has 16 bits."""
    a, b, w = c.alike(start, end, weight, dtype=DType.f32 if c.dtype in HALVES else c.dtype)
    step = b - a
    return F.where(w.abs().lt(constant(c, 0.5, w.dtype)), a + w * step, b - step * (1.0 - w)).to(c.dtype)


# --- activations -------------------------------------------------------------------------------------------------------------------


@aten("relu")
def relu(c: Call, x: Tensor) -> Tensor:
    return x.relu()


@aten("relu6")
def relu6(c: Call, x: Tensor) -> Tensor:
    return x.clamp(0, 6)


@aten("hardtanh")
def hardtanh(c: Call, x: Tensor, min_val: Any = -1, max_val: Any = 1) -> Tensor:
    return clamp(c, x, min_val, max_val)


@aten("gelu")
def gelu(c: Call, x: Tensor, *, approximate: str = "none") -> Tensor:
    return x.gelu(approximate)


@aten("leaky_relu")
def leaky_relu(c: Call, x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return c.emit(ops.LeakyRelu(float(negative_slope)), x)


@aten("elu")
def elu(c: Call, x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    if scale == 1 and input_scale == 1:
        return c.emit(ops.Elu(float(alpha)), x)
    below = (x * input_scale if input_scale != 1 else x).expm1() * (alpha * scale)
    return F.where(x.gt(constant(c, 0, x.dtype)), x * scale, below)


@aten("softplus")
def softplus(c: Call, x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = x if beta == 1 else x * beta
    soft = c.emit(ops.Softplus(), scaled)
    soft = soft if beta == 1 else soft / beta
    return F.where(scaled.gt(constant(c, threshold, x.dtype)), x, soft)


@aten("log_sigmoid")
def log_sigmoid(c: Call, x: Tensor) -> Tensor:
    return c.emit(ops.Softplus(), x.neg()).neg()


@aten("prelu", "_prelu_kernel")
def prelu(c: Call, x: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim == 1 and x.ndim > 1 and not c.is_one(weight.shape[0]):
        weight = weight.reshape(weight.shape[0], *([1] * (x.ndim - 2)))
    elif weight.ndim == 1 and x.ndim != 1:
        weight = weight.reshape(*([1] * x.ndim))
    return F.where(x.gt(constant(c, 0, x.dtype)), x, x * weight)


@aten("nan_to_num")
def nan_to_num(c: Call, x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    if not x.dtype.is_float:
        return x
    top = _LARGEST[x.dtype]
    high, low = (top if posinf is None else posinf), (-top if neginf is None else neginf)
    y = F.where(x.isnan(), constant(c, 0.0 if nan is None else nan, x.dtype), x)
    y = F.where(x.eq(constant(c, math.inf, x.dtype)), constant(c, high, x.dtype), y)
    return F.where(x.eq(constant(c, -math.inf, x.dtype)), constant(c, low, x.dtype), y)


_LARGEST = {DType.f16: 65504.0, DType.bf16: 3.3895313892515355e38, DType.f32: 3.4028234663852886e38, DType.f64: 1.7976931348623157e308}


@aten("logit")
def logit(c: Call, x: Tensor, eps: float | None = None) -> Tensor:
    y = x.to(c.dtype)
    y = y if eps is None else y.clamp(eps, 1 - eps)
    return (y / (1.0 - y)).log()


@aten("xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other")
def xlogy(c: Call, a: Any, b: Any) -> Tensor:
    x, y = c.alike(a, b)
    zero = constant(c, 0, c.dtype)
    return F.where(y.isnan(), y, F.where(x.eq(zero), zero, x * y.log()))


@aten("hypot")
def hypot(c: Call, a: Tensor, b: Tensor) -> Tensor:
    """The root of the sum of squares, in f64: no square overflows or vanishes that f32 could hold."""
    x, y = (t.to(DType.f64) for t in c.alike(a, b))
    return (x.square() + y.square()).sqrt().to(c.dtype)


@aten("erfc", "special_erfc")
def erfc(c: Call, x: Tensor) -> Tensor:
    """``1 - erf(x)``, in f64 where that is no loss."""
    wide = x.to(c.dtype).to(DType.f64)
    return (1.0 - wide.erf()).to(c.dtype)


@aten("deg2rad")
def deg2rad(c: Call, x: Tensor) -> Tensor:
    return x.to(c.dtype) * (math.pi / 180)


@aten("rad2deg")
def rad2deg(c: Call, x: Tensor) -> Tensor:
    return x.to(c.dtype) * (180 / math.pi)
