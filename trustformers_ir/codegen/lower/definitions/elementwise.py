"""Pointwise definitions of elementwise ops."""

from __future__ import annotations

import math

from trustformers_ir.codegen.kernel_ir.nodes import Const, Expr, binary, cast, const, eq, ne, select, unary
from trustformers_ir.codegen.lower.definer import Definer, Rule, compute_dtype, define
from trustformers_ir.codegen.lower.indexing import Index
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op

# --- table rows: graph op -> one kernel IR operator ------------------------------------------------------------------------------------

_UNARY: dict[type[Op], str] = {
    ops.Neg: "neg", ops.Abs: "abs", ops.Sign: "sign", ops.Floor: "floor", ops.Ceil: "ceil", ops.Trunc: "trunc", ops.Round: "round_even",
    ops.Sqrt: "sqrt", ops.Rsqrt: "rsqrt", ops.Reciprocal: "recip", ops.Exp: "exp", ops.Exp2: "exp2", ops.Expm1: "expm1", ops.Log: "log",
    ops.Log1p: "log1p", ops.Log2: "log2", ops.Log10: "log10", ops.Sin: "sin", ops.Cos: "cos", ops.Tan: "tan", ops.Asin: "asin",
    ops.Acos: "acos", ops.Atan: "atan", ops.Sinh: "sinh", ops.Cosh: "cosh", ops.Tanh: "tanh", ops.Asinh: "asinh", ops.Acosh: "acosh",
    ops.Atanh: "atanh", ops.Erf: "erf", ops.Sigmoid: "sigmoid", ops.LogicalNot: "not", ops.BitwiseNot: "not", ops.IsNan: "isnan",
}  # fmt: skip

_BINARY: dict[type[Op], str] = {
    ops.Add: "add", ops.Sub: "sub", ops.Mul: "mul", ops.Div: "div", ops.FloorDiv: "floordiv", ops.Mod: "mod", ops.Pow: "pow",
    ops.Minimum: "min", ops.Maximum: "max", ops.Atan2: "atan2", ops.And: "and", ops.Or: "or", ops.Xor: "xor", ops.ShiftLeft: "shl",
    ops.ShiftRight: "shr", ops.Eq: "eq", ops.Ne: "ne", ops.Lt: "lt", ops.Le: "le", ops.Gt: "gt", ops.Ge: "ge",
}  # fmt: skip

_IDENTITY_ON_INTEGERS = frozenset({"floor", "ceil", "trunc", "round_even"})


def _unary_rule(name: str) -> Rule:
    def rule(d: Definer, o: Operation, index: Index, result: int) -> Expr:
        x = d.operand(o, 0, index)
        if not x.dtype.is_float and name in _IDENTITY_ON_INTEGERS:
            return x
        if not x.dtype.is_float and name == "abs" and not x.dtype.is_signed:
            return x
        return d.finish(o, result, unary(name, x))

    return rule


def _binary_rule(name: str) -> Rule:
    def rule(d: Definer, o: Operation, index: Index, result: int) -> Expr:
        return d.finish(o, result, combine(name, d.operand(o, 0, index), d.operand(o, 1, index)))

    return rule


def combine(name: str, a: Expr, b: Expr) -> Expr:
    """A binary operator on two lifted operands; bool arithmetic is done on the lattice (add = or, mul = and, min = and, max = or)."""
    if a.dtype is DType.bool:
        name = {"min": "and", "max": "or", "mul": "and", "add": "or"}.get(name, name)
    if name == "pow" and not a.dtype.is_float:
        return integer_power(a, b)
    if a.dtype is DType.i64 and name in ("add", "sub", "mul") and _may_wrap(name, a, b):
        return cast(binary(name, cast(a, DType.u64), cast(b, DType.u64)), DType.i64)
    return binary(name, a, b)


_SURE = 1 << 40  # sums of index values and constants below this stay far from 2^63


def _may_wrap(name: str, a: Expr, b: Expr) -> bool:
    """Arithmetic of the program on values made of axes and dims, which must not pass for an address: those are taken never to overflow."""
    if not (a.pure_index and b.pure_index):
        return False
    return name == "mul" or any(isinstance(x, Const) and abs(x.value) >= _SURE for x in (a, b))


def integer_power(a: Expr, b: Expr) -> Expr:
    """``a ** b`` by squaring over the bits of b, wrapping; a negative exponent gives the truncated reciprocal (1, -1, or 0)."""
    one, zero = Const(1, a.dtype), Const(0, a.dtype)
    out: Expr = one
    base = a
    for i in range(b.dtype.bits - (1 if b.dtype.is_signed else 0)):
        bit = cast(binary("and", binary("shr", b, Const(i, b.dtype)), Const(1, b.dtype)), a.dtype)
        out = out * (((base ^ one) & (zero - bit)) ^ one)  # base or 1, without a branch: a tower of 63 selects would be 2^63 paths
        base = base * base
    if not b.dtype.is_signed:
        return out
    odd = ne(binary("and", b, Const(1, b.dtype)), Const(0, b.dtype))
    minus_one = Const(-1, a.dtype)
    inverse = select(eq(a, one), one, select(eq(a, minus_one), select(odd, minus_one, one), zero))
    return select(b < 0, inverse, out)


for _kind, _name in _UNARY.items():
    define(_kind)(_unary_rule(_name))
for _kind, _name in _BINARY.items():
    define(_kind)(_binary_rule(_name))

# --- activations -----------------------------------------------------------------------------------------------------------------------


def gelu(x: Expr, approximate: ops.Approximate) -> Expr:
    """Gaussian error linear unit (Hendrycks & Gimpel, 2016): ``x * Phi(x)``, with erf or with the tanh approximation."""
    if approximate is ops.Approximate.TANH:
        inner = (x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)
        return x * 0.5 * (unary("tanh", inner) + 1.0)
    return x * unary("normal_cdf", x)


@define(ops.Gelu)
def _gelu(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Gelu)
    return d.finish(o, result, gelu(d.operand(o, 0, index), o.op.approximate))


@define(ops.Relu)
def _relu(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    return d.finish(o, result, binary("max", x, Const(0, x.dtype)))


@define(ops.Silu)
def _silu(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    return d.finish(o, result, x * unary("sigmoid", x))


@define(ops.Softplus)
def _softplus(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)  # log(1 + exp(x)) without overflow
    return d.finish(o, result, binary("max", x, Const(0, x.dtype)) + unary("log1p", unary("exp", -abs(x))))


@define(ops.Elu)
def _elu(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Elu)
    x = d.operand(o, 0, index)
    return d.finish(o, result, select(x > 0, x, unary("expm1", x) * o.op.alpha))


@define(ops.LeakyRelu)
def _leaky_relu(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.LeakyRelu)
    x = d.operand(o, 0, index)
    return d.finish(o, result, select(x >= 0, x, x * o.op.slope))


@define(ops.HardSwish)
def _hard_swish(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    gate = binary("min", binary("max", x + 3.0, Const(0, x.dtype)), Const(6, x.dtype))
    return d.finish(o, result, x * (gate / 6.0))


@define(ops.HardSigmoid)
def _hard_sigmoid(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    return d.finish(o, result, binary("min", binary("max", x + 3.0, Const(0, x.dtype)), Const(6, x.dtype)) / 6.0)


@define(ops.Mish)
def _mish(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Misra, "Mish", 2019: ``x * tanh(log(1 + e^x))``. With ``w = e^x (e^x + 2)`` the tanh is ``w / (w + 2)``, exact at both ends."""
    x = d.operand(o, 0, index)
    e = unary("exp", binary("min", x, Const(30, x.dtype)))  # past 30 the factor is 1
    w = e * (e + 2.0)
    return d.finish(o, result, x * (w / (w + 2.0)))


# --- predicates, selection, conversion ---------------------------------------------------------------------------------------------------


@define(ops.IsInf)
def _is_inf(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    return eq(abs(x), Const(math.inf, x.dtype))


@define(ops.IsFinite)
def _is_finite(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = d.operand(o, 0, index)
    return abs(x) < Const(math.inf, x.dtype)


@define(ops.Select)
def _select(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    a, b = (d.operand(o, i, index) for i in (1, 2))
    return d.finish(o, result, select(d.operand(o, 0, index), a, b))


@define(ops.Clamp)
def _clamp(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Clamp)
    x = d.operand(o, 0, index)
    if o.op.low is not None:
        x = binary("max", x, _bound(o.op.low, x.dtype, up=True))
    if o.op.high is not None:
        x = binary("min", x, _bound(o.op.high, x.dtype, up=False))
    return d.finish(o, result, x)


def _bound(value: float, dtype: DType, up: bool) -> Const:
    if dtype.is_float:
        return Const(value, dtype)
    if math.isinf(value):
        return Const(dtype.max if value > 0 else dtype.min, dtype)
    whole = math.ceil(value) if up else math.floor(value)
    return Const(min(max(whole, dtype.min), dtype.max), dtype)


@define(ops.Cast)
def _cast(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return convert(d.at(o.inputs[0], index), o.result.type.dtype)


def convert(x: Expr, dtype: DType) -> Expr:
    """One rounding from ``x`` to ``dtype``; narrow floats reach integers and bool through f32, which holds them exactly."""
    if dtype is not x.dtype:
        x = cast(x, compute_dtype(x.dtype))
    return cast(x, dtype)


@define(ops.BitCast)
def _bitcast(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Through the signed integer of that width, which has all bits."""
    x, dtype = d.at(o.inputs[0], index), o.result.type.dtype
    whole = unary("bits", x) if x.dtype.is_float else cast(x, DType.parse(f"i{x.dtype.bits}"))
    if not dtype.is_float:
        return cast(whole, dtype)
    if dtype is DType.bf16:  # the upper half of an f32
        return cast(unary("from_bits", binary("shl", cast(whole, DType.i32), Const(16, DType.i32))), dtype)
    return unary("from_bits", whole)


@define(ops.Dropout)
def _dropout(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return d.at(o.inputs[0], index)


# --- constants ---------------------------------------------------------------------------------------------------------------------------


@define(ops.Constant)
def _constant(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Constant)
    literal = o.op.value
    splat = literal.splat
    if splat is not None:
        return Const(splat, literal.dtype)
    flat = literal.array.reshape(-1).tolist()
    if not flat:
        return Const(0, literal.dtype)  # of an empty tensor no element is ever asked for
    position = d.flat.linear(index, literal.shape)
    out: Expr = Const(flat[-1], literal.dtype)
    for i in range(len(flat) - 2, -1, -1):  # the frontend and folding keep inline constants small; large ones are weights
        out = select(eq(position, const(i)), Const(flat[i], literal.dtype), out)
    return out


@define(ops.Iota)
def _iota(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return convert(_narrowed(index[0], o.result.type.dtype), o.result.type.dtype)


@define(ops.DimSize)
def _dim_size(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    from_dim = d.count((o.op.size,), DType.i64) if isinstance(o.op, ops.DimSize) else const(0)
    return cast(from_dim, o.result.type.dtype)


def _narrowed(position: Expr, dtype: DType) -> Expr:
    return cast(position, DType.f32) if dtype in (DType.f16, DType.bf16) else position
