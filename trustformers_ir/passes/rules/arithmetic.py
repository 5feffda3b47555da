"""Arithmetic: neutral elements, signs, idempotent functions, constants moved together, complex numbers taken apart.

``x + 0.0`` is no identity (it turns -0.0 into 0.0), ``x + -0.0`` and ``x - 0.0`` are. Floats are never reassociated; integers wrap, so they
form a ring and may be.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dtypes import BOOL, FLOATS, INTS, REAL, DType
from trustformers_ir.ir.ops import (
    Abs,
    Add,
    And,
    BinaryOp,
    Cast,
    Ceil,
    Clamp,
    Conj,
    Div,
    Eq,
    Exp,
    Exp2,
    Floor,
    FloorDiv,
    Imag,
    IsFinite,
    IsInf,
    IsNan,
    MakeComplex,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Ne,
    Neg,
    Or,
    Pow,
    Real,
    Reciprocal,
    Relu,
    Round,
    Sigmoid,
    Sign,
    Sub,
    Trunc,
    Xor,
)
from trustformers_ir.ir.rewriting import Match, Rule, constant_of, fitted, node, splat, splat_of, var
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.passes.rules.common import Test, anything, becomes, everywhere, exactly, give, inner, integer, same_op, scalar_type

x, y = var("x"), var("y")
_SIGNED = frozenset(d for d in REAL if d.is_signed)
_UNSIGNED = frozenset(d for d in INTS if not d.is_signed)
_ROUNDINGS = (Floor, Ceil, Round, Trunc)
_NEVER_NEGATIVE = (Exp, Exp2, Sigmoid)  # at least +0.0, or NaN


def _complex_zero(real: float, imag: float) -> Test:
    return lambda s: s.dtype.kind == "c" and struct.pack("dd", s.real, s.imag) == struct.pack("dd", real, imag)


def _any_of(*tests: Test) -> Test:
    return lambda s: any(t(s) for t in tests)


def _power_of_two(scalar: np.ndarray) -> bool:
    """A float whose reciprocal the dtype holds exactly, so that dividing by it is multiplying by that."""
    dtype = DType.from_numpy(scalar.dtype)
    if not dtype.is_float or not np.isfinite(scalar) or scalar == 0 or abs(math.frexp(float(scalar))[0]) != 0.5:
        return False
    inverse = np.float64(1 / float(scalar)) if abs(float(scalar)) > 2.0**-1024 else np.float64(math.inf)
    return bool(np.isfinite(inverse)) and float(round_to(inverse, dtype)) == inverse


NEUTRAL = (
    Rule("add_zero", "x + 0 = x for integers", node(Add, x, splat(exactly(0, INTS))), give("x")),
    Rule(
        "add_negative_zero",
        "x + -0.0 = x",
        node(Add, x, splat(_any_of(exactly(-0.0, FLOATS), _complex_zero(-0.0, -0.0)))),
        give("x"),
    ),
    Rule("sub_zero", "x - 0 = x, x - 0.0 = x", node(Sub, x, splat(_any_of(exactly(0.0), _complex_zero(0.0, 0.0)))), give("x")),
    Rule(
        "zero_sub",
        "0 - x = -x for integers, -0.0 - x = -x",
        node(Sub, splat(_any_of(exactly(0, INTS), exactly(-0.0, FLOATS))), x),
        becomes(Neg(), "x"),
    ),
    Rule("mul_one", "x * 1 = x", node(Mul, x, splat(exactly(1))), give("x")),
    Rule("mul_zero", "x * 0 = 0 for integers", node(Mul, var("x", INTS), splat(exactly(0, INTS))), everywhere(0)),
    Rule(
        "mul_minus_one",
        "x * -1 = -x",
        node(Mul, x, splat(_any_of(exactly(-1), integer(lambda d: d.max, _UNSIGNED)))),
        becomes(Neg(), "x"),
    ),
    Rule("div_one", "x / 1 = x", node(Div, x, splat(exactly(1))), give("x")),
    Rule("div_minus_one", "x / -1 = -x", node(Div, x, splat(exactly(-1))), becomes(Neg(), "x")),
    Rule("one_div", "1 / x = reciprocal(x)", node(Div, splat(exactly(1)), var("x", FLOATS)), becomes(Reciprocal(), "x")),
    Rule(
        "div_power_of_two",
        "x / 2**k = x * 2**-k",  # both are the rounding of one exact value
        node(Div, var("x", FLOATS), splat(_power_of_two, "c")),
        lambda m, b: fitted(b, b(Mul(), m["x"], constant_of(b, 1 / float(m.scalar("c")), scalar_type(m))), m.type),
    ),
    Rule("floor_div_one", "x // 1 = x for integers", node(FloorDiv, x, splat(exactly(1, INTS))), give("x")),
    Rule("mod_one", "x % 1 = 0 for integers", node(Mod, x, splat(exactly(1, INTS))), everywhere(0)),
    Rule("pow_one", "x ** 1 = x", node(Pow, x, splat(exactly(1))), give("x")),
    Rule("pow_zero", "x ** 0 = 1, of NaN too", node(Pow, x, splat(_any_of(exactly(0.0), exactly(-0.0)))), everywhere(1)),
    Rule("one_pow", "1 ** x = 1, of NaN too", node(Pow, splat(exactly(1)), x), everywhere(1)),
    Rule(
        "pow_two",
        "x ** 2 = x * x where float64 holds the square exactly",
        node(Pow, var("x", REAL - {DType.f64}), splat(exactly(2))),
        becomes(Mul(), "x", "x"),
    ),
)


SIGNS = (
    Rule("neg_neg", "-(-x) = x", node(Neg, node(Neg, x)), give("x")),
    Rule("add_neg", "x + (-y) = x - y", node(Add, x, node(Neg, y)), becomes(Sub(), "x", "y")),
    Rule("sub_neg", "x - (-y) = x + y", node(Sub, x, node(Neg, y)), becomes(Add(), "x", "y")),
    Rule("neg_sub", "-(x - y) = y - x for integers", node(Neg, node(Sub, var("x", INTS), y)), becomes(Sub(), "y", "x")),
    Rule("sub_self", "x - x = 0 for integers", node(Sub, var("x", INTS), x), everywhere(0)),
    Rule("add_sub_cancel", "(x + y) - y = x for integers", node(Sub, node(Add, var("x", INTS), y), y), give("x")),
    Rule("sub_add_cancel", "(x - y) + y = x for integers", node(Add, node(Sub, var("x", INTS), y), y), give("x")),
    Rule("mul_neg_neg", "(-x) * (-y) = x * y", node(Mul, node(Neg, var("x", REAL)), node(Neg, y)), becomes(Mul(), "x", "y")),
    Rule("div_neg_neg", "(-x) / (-y) = x / y", node(Div, node(Neg, var("x", FLOATS)), node(Neg, y)), becomes(Div(), "x", "y")),
    Rule("abs_neg", "|-x| = |x| for signed numbers", node(Abs, node(Neg, var("x", _SIGNED))), becomes(Abs(), "x")),
    Rule("abs_abs", "||x|| = |x|", node(Abs, node(Abs, x, name="inner")), inner),
    Rule("abs_unsigned", "|x| = x for unsigned integers", node(Abs, var("x", _UNSIGNED)), give("x")),
    Rule("abs_mul_abs", "|x| * |x| = x * x", node(Mul, node(Abs, var("x", REAL)), node(Abs, x)), becomes(Mul(), "x", "x")),
    Rule("sign_sign", "sign(sign(x)) = sign(x)", node(Sign, node(Sign, x, name="inner")), inner),
    Rule("neg_floor_neg", "-floor(-x) = ceil(x)", node(Neg, node(Floor, node(Neg, x))), becomes(Ceil(), "x")),
    Rule("neg_ceil_neg", "-ceil(-x) = floor(x)", node(Neg, node(Ceil, node(Neg, x))), becomes(Floor(), "x")),
    Rule(
        "test_of_sign",
        "is_nan, is_inf and is_finite do not see the sign",
        node((IsNan, IsInf, IsFinite), node((Neg, Abs), var("x", FLOATS))),
        same_op("x"),
    ),
)


ROUNDING = (
    Rule("round_rounded", "floor, ceil, round, trunc of a whole number: nothing", node(_ROUNDINGS, node(_ROUNDINGS, ..., name="inner")), inner),
    Rule("round_integer", "integers are whole", node(_ROUNDINGS, var("x", INTS)), give("x")),
    Rule(
        "round_cast",
        "an integer cast to float is whole",
        node(_ROUNDINGS, node(Cast, var("x", INTS | BOOL), name="inner")),
        inner,
    ),
    Rule("is_nan_cast", "an integer cast to float is no NaN", node(IsNan, node(Cast, var("x", INTS | BOOL))), everywhere(0)),
)


def _merged(m: Match) -> Clamp:
    """The clamp that two clamps one after another are."""
    first, second = _bounds(m.op("inner")), _bounds(m.op())
    low, high = (min(max(bound, second[0]), second[1]) for bound in first)
    return Clamp(low, None if high == math.inf else high)


def _bounds(clamp: Clamp) -> tuple[float, float]:
    return (-math.inf if clamp.low is None else clamp.low, math.inf if clamp.high is None else clamp.high)


def _mergeable(m: Match) -> str | None:
    """Bounds that round to zero are left alone: which zero wins a tie is nobody's business."""
    for low, high in (_bounds(m.op("inner")), _bounds(m.op())):
        if low > high:
            return "the bounds are crossed"
        if low == 0 or high == 0:
            return "a bound is zero"
    return None


def _bounds_nothing(m: Match) -> str | None:
    (low, high), dtype = _bounds(m.op()), m.type.dtype
    least, most = (dtype.min, dtype.max) if dtype.is_integer else (-math.inf, math.inf)
    return None if low <= least and high >= most else "a bound is inside the range"


BOUNDS = (
    Rule("max_self", "maximum(x, x) = x", node(Maximum, x, x), give("x")),
    Rule("min_self", "minimum(x, x) = x", node(Minimum, x, x), give("x")),
    Rule(
        "max_lowest",
        "maximum(x, -inf) = x",
        node(Maximum, x, splat(_any_of(exactly(-math.inf, FLOATS), integer(lambda d: d.min, INTS)))),
        give("x"),
    ),
    Rule(
        "min_highest",
        "minimum(x, inf) = x",
        node(Minimum, x, splat(_any_of(exactly(math.inf, FLOATS), integer(lambda d: d.max, INTS)))),
        give("x"),
    ),
    Rule("max_highest", "maximum(x, MAX) = MAX for integers", node(Maximum, x, splat(integer(lambda d: d.max, INTS))), everywhere(lambda d: d.max)),
    Rule("min_lowest", "minimum(x, MIN) = MIN for integers", node(Minimum, x, splat(integer(lambda d: d.min, INTS))), everywhere(lambda d: d.min)),
    Rule("max_min_absorb", "maximum(x, minimum(x, y)) = x for integers", node(Maximum, var("x", INTS), node(Minimum, x, y)), give("x")),
    Rule("min_max_absorb", "minimum(x, maximum(x, y)) = x for integers", node(Minimum, var("x", INTS), node(Maximum, x, y)), give("x")),
    Rule("relu_relu", "relu(relu(x)) = relu(x)", node(Relu, node(Relu, x, name="inner")), inner),
    Rule("relu_unsigned", "relu(x) = x for unsigned integers", node(Relu, var("x", _UNSIGNED)), give("x")),
    Rule(
        "relu_positive",
        "relu and abs of exp, exp2, sigmoid: nothing",
        node((Relu, Abs), node(_NEVER_NEGATIVE, ..., name="inner")),
        inner,
    ),
    Rule("clamp_nothing", "a clamp whose bounds exclude nothing", node(Clamp, x), give("x"), _bounds_nothing),
    Rule(
        "clamp_clamp",
        "two clamps are one",
        node(Clamp, node(Clamp, x, name="inner")),
        lambda m, b: b(_merged(m), m["x"]),
        _mergeable,
    ),
)


def _combined(m: Match, b: Builder) -> Value:
    """``(x op c1) op c2 = x op (c1 op c2)``, the constants combined as the op itself does."""
    with np.errstate(over="ignore"):
        scalar = type(m.op()).ufunc(m.scalar("c1"), m.scalar("c2"))
    return fitted(b, b(m.op(), m["x"], constant_of(b, scalar, scalar_type(m))), m.type)


def _of_one_class(m: Match) -> str | None:
    return None if type(m.op("inner")) is type(m.op()) else "the two ops differ"


_SWAPPABLE: tuple[type[BinaryOp], ...] = (Add, Mul, And, Or, Xor, Eq, Ne)  # not minimum and maximum: a tie of zeros goes by position
_ASSOCIATIVE: tuple[type[BinaryOp], ...] = (Add, Mul, And, Or, Xor)

CONSTANTS = (
    Rule(
        "constant_right",
        "c op x = x op c for add, mul, and, or, xor, eq, ne",
        node(_SWAPPABLE, splat(anything), x, ordered=True),
        lambda m, b: fitted(b, b(m.op(), m["x"], m.root.operands[0]), m.type),
        lambda m: None if splat_of(m["x"]) is None else "both operands are constants",
    ),
    Rule(
        "combine_constants",
        "(x op c1) op c2 = x op (c1 op c2) for integers and booleans",
        node(_ASSOCIATIVE, node(_ASSOCIATIVE, var("x", INTS | BOOL), splat(anything, "c1"), name="inner"), splat(anything, "c2")),
        _combined,
        _of_one_class,
    ),
)

COMPLEX = (
    Rule("conj_conj", "conj(conj(x)) = x", node(Conj, node(Conj, x)), give("x")),
    Rule("real_conj", "real(conj(x)) = real(x)", node(Real, node(Conj, x)), becomes(Real(), "x")),
    Rule("real_of_parts", "real(make_complex(x, y)) = x", node(Real, node(MakeComplex, x, y)), give("x")),
    Rule("imag_of_parts", "imag(make_complex(x, y)) = y", node(Imag, node(MakeComplex, x, y)), give("y")),
    Rule("parts_of_complex", "make_complex(real(x), imag(x)) = x", node(MakeComplex, node(Real, x), node(Imag, x)), give("x")),
)

RULES: tuple[Rule, ...] = (*NEUTRAL, *SIGNS, *ROUNDING, *BOUNDS, *CONSTANTS, *COMPLEX)
