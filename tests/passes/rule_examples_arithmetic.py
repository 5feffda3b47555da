"""Graphs on which the rules of arithmetic and of casts fire, and graphs on which they must not."""

from __future__ import annotations

import math

from rule_harness import Example, Graph

from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dtypes import BOOL, COMPLEXES, FLOATS, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.ops import (
    Abs,
    Add,
    And,
    Cast,
    Ceil,
    Clamp,
    Conj,
    Div,
    Dropout,
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
    Relu,
    Round,
    Sigmoid,
    Sign,
    Sub,
    Trunc,
    Xor,
)
from trustformers_ir.ir.ops.elementwise import casts_eighths
from trustformers_ir.passes.rules.casts import lossless

SIGNED_INTS = [d for d in INTS if d.is_signed]
UNSIGNED = [d for d in INTS if not d.is_signed]
SIGNED = [d for d in REAL if d.is_signed]
ROUNDINGS = [Floor, Ceil, Round, Trunc]
PARTS = [DType.f32, DType.f64]


def with_splat(op: type, value: object, dtypes: object, first: bool = False) -> Example:
    """``op(x, value)``, or with the constant first."""

    def example(g: Graph) -> Value:
        x = g.arg(dtypes)  # type: ignore[arg-type]
        s = g.splat(value, x)
        if op.commutative:  # type: ignore[attr-defined]
            return g.either(op(), x, s)
        return g(op(), s, x) if first else g(op(), x, s)

    return example


def chain(*kinds: object, dtypes: object) -> Example:
    """Ops of one operand, the first one innermost. A list is a random choice."""

    def example(g: Graph) -> Value:
        value = g.arg(dtypes)  # type: ignore[arg-type]
        for kind in kinds:
            value = g((g.pick(kind) if isinstance(kind, list) else kind)(), value)  # type: ignore[operator]
        return value

    return example


def negated_pair(g: Graph, op: type, dtypes: object) -> Value:
    x = g.arg(dtypes)  # type: ignore[arg-type]
    y = g.other(x)
    return g(op(), g(Neg(), x), g(Neg(), y))


def cast_chain(fits: object) -> Example:
    """Two casts whose three dtypes satisfy the predicate."""
    chains = [
        (s, m, t)
        for s in DType
        for m in DType
        for t in DType
        if (not s.is_complex or m.is_complex or m is DType.bool)
        and (not m.is_complex or t.is_complex or t is DType.bool)
        and all(casts_eighths(*pair) for pair in ((s, m), (m, t), (s, t)))
        and fits(s, m, t)  # type: ignore[operator]
    ]
    return lambda g: _casts(g, *g.pick(chains))


def _casts(g: Graph, source: DType, middle: DType, target: DType) -> Value:
    return g(Cast(target), g(Cast(middle), g.arg(source)))


def _saturates(s: DType, m: DType, t: DType) -> bool:
    return not s.is_float and m.is_float and t.is_integer and not lossless(s, t)


def associate(g: Graph, kinds: list[type], dtypes: object, same: bool = True) -> Value:
    """``(x op c1) op c2`` with random constants."""
    x = g.arg(dtypes)  # type: ignore[arg-type]
    dtype = x.type.dtype
    values = [int(v) for v in g.rng.integers(dtype.min, dtype.max, 2, endpoint=True, dtype=dtype.numpy)]
    first = g.pick(kinds)
    second = first if same else g.pick([k for k in kinds if k is not first])
    return g.either(second(), g.either(first(), x, g.splat(values[0], x)), g.splat(values[1], x))


def clamp_pair(g: Graph, dtype: DType, first: tuple[float | None, float | None], second: tuple[float | None, float | None]) -> Value:
    return g(Clamp(*second), g(Clamp(*first), g.arg(dtype)))


def random_clamps(g: Graph) -> Value:
    dtype = g.pick(SIGNED)
    bounds: list[tuple[float | None, float | None]] = []
    for _ in range(2):
        low, high = sorted(float(v) for v in g.rng.choice([-60, -7, -2, -1, 1, 2, 5, 90], 2))
        fraction = 0.1 if dtype.is_float and g.coin() else 0.0
        form = g.pick([0, 1, 2, 3])
        bounds.append((None if form == 1 else low - fraction, None if form == 2 else high + fraction))
    return clamp_pair(g, dtype, bounds[0], bounds[1])


def make_complex(g: Graph) -> tuple[Value, Value, Value]:
    x = g.arg(PARTS)
    y = g.other(x)
    return x, y, g(MakeComplex(), x, y)


def rounded_cast(g: Graph, source: object, target: object) -> Value:
    return g(g.pick(ROUNDINGS)(), g(Cast(g.pick(target)), g.arg(source)))  # type: ignore[arg-type]


def mixed_case(g: Graph, op: type, inner: type, dtypes: object) -> Value:
    """``op(x, inner(x, y))``."""
    x = g.arg(dtypes)  # type: ignore[arg-type]
    return g.either(op(), x, g.either(inner(), x, g.other(x)))


def and_neg(g: Graph, op: type, dtypes: object) -> Value:
    """``op(x, -y)``."""
    x = g.arg(dtypes)  # type: ignore[arg-type]
    y = g(Neg(), g.other(x))
    return g.either(op(), x, y) if op.commutative else g(op(), x, y)  # type: ignore[attr-defined]


def twice(g: Graph, op: type, dtypes: object) -> Value:
    x = g.arg(dtypes)  # type: ignore[arg-type]
    return g(op(), x, x)


def cancel(g: Graph, outer: type, inner: type, dtypes: object) -> Value:
    x = g.arg(dtypes)  # type: ignore[arg-type]
    y = g.other(x)
    below = g.either(inner(), x, y) if inner.commutative else g(inner(), x, y)  # type: ignore[attr-defined]
    return g.either(outer(), below, y) if outer.commutative else g(outer(), below, y)  # type: ignore[attr-defined]


def powers_of_two(g: Graph) -> Value:
    x = g.arg(FLOATS)
    exponent = int(g.rng.integers(-14, 15))
    return g(Div(), x, g.splat(g.pick([1, -1]) * 2.0**exponent, x))


FIRES: dict[str, list[Example]] = {
    "add_zero": [with_splat(Add, 0, INTS)],
    "add_negative_zero": [with_splat(Add, -0.0, FLOATS), with_splat(Add, complex(-0.0, -0.0), COMPLEXES)],
    "sub_zero": [with_splat(Sub, 0, REAL), with_splat(Sub, 0j, COMPLEXES)],
    "zero_sub": [with_splat(Sub, 0, INTS, first=True), with_splat(Sub, -0.0, FLOATS, first=True)],
    "mul_one": [with_splat(Mul, 1, REAL)],
    "mul_zero": [with_splat(Mul, 0, INTS)],
    "mul_minus_one": [with_splat(Mul, -1, SIGNED), with_splat(Mul, lambda d: d.max, UNSIGNED)],
    "div_one": [with_splat(Div, 1, FLOATS)],
    "div_minus_one": [with_splat(Div, -1, FLOATS)],
    "one_div": [with_splat(Div, 1, FLOATS, first=True)],
    "div_power_of_two": [powers_of_two, with_splat(Div, 2.0**-1000, [DType.f64]), with_splat(Div, 2.0**126, [DType.f32, DType.bf16])],
    "floor_div_one": [with_splat(FloorDiv, 1, INTS)],
    "mod_one": [with_splat(Mod, 1, INTS)],
    "pow_one": [with_splat(Pow, 1, REAL)],
    "pow_zero": [with_splat(Pow, 0, REAL), with_splat(Pow, -0.0, FLOATS)],
    "one_pow": [with_splat(Pow, 1, REAL, first=True)],
    "pow_two": [with_splat(Pow, 2, REAL - {DType.f64})],
    "neg_neg": [chain(Neg, Neg, dtypes=NUMERIC)],
    "add_neg": [lambda g: and_neg(g, Add, NUMERIC)],
    "sub_neg": [lambda g: and_neg(g, Sub, NUMERIC)],
    "neg_sub": [lambda g: g(Neg(), g(Sub(), x := g.arg(INTS), g.other(x)))],
    "sub_self": [lambda g: twice(g, Sub, INTS)],
    "add_sub_cancel": [lambda g: cancel(g, Sub, Add, INTS)],
    "sub_add_cancel": [lambda g: cancel(g, Add, Sub, INTS)],
    "mul_neg_neg": [lambda g: negated_pair(g, Mul, REAL)],
    "div_neg_neg": [lambda g: negated_pair(g, Div, FLOATS)],
    "abs_neg": [chain(Neg, Abs, dtypes=SIGNED)],
    "abs_abs": [chain(Abs, Abs, dtypes=NUMERIC)],
    "abs_unsigned": [chain(Abs, dtypes=UNSIGNED)],
    "abs_mul_abs": [lambda g: g(Mul(), g(Abs(), x := g.arg(REAL)), g(Abs(), x))],
    "sign_sign": [chain(Sign, Sign, dtypes=REAL)],
    "neg_floor_neg": [chain(Neg, Floor, Neg, dtypes=REAL)],
    "neg_ceil_neg": [chain(Neg, Ceil, Neg, dtypes=REAL)],
    "test_of_sign": [chain([Neg, Abs], [IsNan, IsInf, IsFinite], dtypes=FLOATS)],
    "round_rounded": [chain(ROUNDINGS, ROUNDINGS, dtypes=REAL)],
    "round_integer": [chain(ROUNDINGS, dtypes=INTS)],
    "round_cast": [lambda g: rounded_cast(g, INTS | BOOL, REAL)],
    "is_nan_cast": [lambda g: g(IsNan(), g(Cast(g.pick(FLOATS)), g.arg(INTS | BOOL)))],
    "max_self": [lambda g: twice(g, Maximum, REAL)],
    "min_self": [lambda g: twice(g, Minimum, REAL)],
    "max_lowest": [with_splat(Maximum, -math.inf, FLOATS), with_splat(Maximum, lambda d: d.min, INTS)],
    "min_highest": [with_splat(Minimum, math.inf, FLOATS), with_splat(Minimum, lambda d: d.max, INTS)],
    "max_highest": [with_splat(Maximum, lambda d: d.max, INTS)],
    "min_lowest": [with_splat(Minimum, lambda d: d.min, INTS)],
    "max_min_absorb": [lambda g: mixed_case(g, Maximum, Minimum, INTS)],
    "min_max_absorb": [lambda g: mixed_case(g, Minimum, Maximum, INTS)],
    "relu_relu": [chain(Relu, Relu, dtypes=REAL)],
    "relu_unsigned": [chain(Relu, dtypes=UNSIGNED)],
    "relu_positive": [chain([Exp, Exp2, Sigmoid], [Relu, Abs], dtypes=FLOATS)],
    "clamp_nothing": [
        lambda g: g(Clamp(-math.inf, g.pick([None, math.inf])), g.arg(REAL)),
        lambda g: g(Clamp((x := g.arg(INTS)).type.dtype.min, x.type.dtype.max), x),
    ],
    "clamp_clamp": [random_clamps, lambda g: clamp_pair(g, DType.f16, (1e-30, 5.0), (-1e-30, 3.0))],
    "constant_right": [lambda g: g(g.pick([Add, Mul, Eq, Ne])(), g.splat(3, x := g.arg(NUMERIC)), x)],
    "combine_constants": [
        lambda g: associate(g, [Add, Mul, And, Or, Xor], INTS),
        lambda g: g.either(op := g.pick([And, Or, Xor])(), g.either(op, x := g.arg(BOOL), g.splat(g.coin(), x)), g.splat(g.coin(), x)),
    ],
    "conj_conj": [chain(Conj, Conj, dtypes=COMPLEXES)],
    "real_conj": [chain(Conj, Real, dtypes=COMPLEXES)],
    "real_of_parts": [lambda g: g(Real(), make_complex(g)[2])],
    "imag_of_parts": [lambda g: g(Imag(), make_complex(g)[2])],
    "parts_of_complex": [lambda g: g(MakeComplex(), g(Real(), x := g.arg(COMPLEXES)), g(Imag(), x))],
    "cast_nothing": [lambda g: g(Cast((x := g.arg()).type.dtype), x)],
    "cast_cast": [cast_chain(lambda s, m, t: lossless(s, m) and not _saturates(s, m, t))],
    "cast_low_bits": [cast_chain(lambda s, m, t: s.is_integer and m.is_integer and t.is_integer and t.bits <= m.bits)],
    "real_cast": [
        lambda g: g(Real(), g(Cast(DType.c64), g.arg((REAL | BOOL) - {DType.i64, DType.u64}))),
        lambda g: g(Real(), g(Cast(DType.c128), g.arg(REAL | BOOL))),
    ],
    "imag_cast": [lambda g: g(Imag(), g(Cast(g.pick(COMPLEXES)), g.arg(REAL | BOOL)))],
    "dropout": [lambda g: g(Dropout(0.5), g.arg(FLOATS))],
}

NEAR: dict[str, list[Example]] = {
    "add_zero": [with_splat(Add, 0.0, FLOATS), with_splat(Add, 1, INTS)],
    "add_negative_zero": [with_splat(Add, 0.0, FLOATS), with_splat(Add, 0j, COMPLEXES), with_splat(Add, complex(-0.0, 0.0), COMPLEXES)],
    "sub_zero": [with_splat(Sub, -0.0, FLOATS), with_splat(Sub, complex(-0.0, -0.0), COMPLEXES), with_splat(Sub, 0, REAL - {*UNSIGNED}, first=True)],
    "zero_sub": [with_splat(Sub, 0.0, FLOATS, first=True), with_splat(Sub, -0.0, FLOATS)],
    "mul_one": [with_splat(Mul, -1, SIGNED), with_splat(Mul, 1, COMPLEXES)],
    "mul_zero": [with_splat(Mul, 0.0, FLOATS)],
    "mul_minus_one": [with_splat(Mul, 1, REAL), with_splat(Mul, -1, COMPLEXES)],
    "div_one": [with_splat(Div, 1, FLOATS, first=True), with_splat(Div, 1, COMPLEXES)],
    "div_minus_one": [with_splat(Div, -1, FLOATS, first=True)],
    "div_power_of_two": [
        with_splat(Div, 3, FLOATS),
        with_splat(Div, 49, [DType.f32]),
        with_splat(Div, 0.0, FLOATS),
        with_splat(Div, math.inf, FLOATS),
        with_splat(Div, 2.0**-17, [DType.f16]),
        with_splat(Div, 2.0**-1074, [DType.f64]),
        with_splat(Div, 2.0**-149, [DType.f32]),
    ],
    "floor_div_one": [with_splat(FloorDiv, 1, FLOATS), with_splat(FloorDiv, 1, INTS, first=True)],
    "mod_one": [with_splat(Mod, 1, FLOATS), with_splat(Mod, 2, INTS), with_splat(Mod, 1, INTS, first=True)],
    "pow_one": [with_splat(Pow, 1, REAL, first=True)],
    "pow_zero": [with_splat(Pow, 0, REAL, first=True)],
    "one_pow": [with_splat(Pow, 1, REAL), with_splat(Pow, -1, SIGNED, first=True)],
    "pow_two": [lambda g: g(Pow(), x := g.arg(DType.f64, (40,), (-100, 100)), g.splat(2, x)), with_splat(Pow, 2, REAL, first=True)],
    "sub_self": [lambda g: twice(g, Sub, FLOATS)],
    "neg_sub": [lambda g: g(Neg(), g(Sub(), x := g.arg(FLOATS), x)), lambda g: g(Neg(), g(Sub(), x := g.arg(FLOATS), g.other(x)))],
    "add_sub_cancel": [lambda g: cancel(g, Sub, Add, FLOATS), lambda g: g(Sub(), y := g.arg(INTS), g(Add(), g.other(y), y))],
    "sub_add_cancel": [lambda g: cancel(g, Add, Sub, FLOATS), lambda g: g(Add(), g(Sub(), y := g.arg(INTS), g.other(y)), y)],
    "abs_neg": [chain(Neg, Abs, dtypes=UNSIGNED)],
    "abs_unsigned": [chain(Abs, dtypes=SIGNED)],
    "abs_mul_abs": [lambda g: g(Mul(), g(Abs(), x := g.arg(REAL)), g(Abs(), g.other(x)))],
    "mul_neg_neg": [lambda g: g(Mul(), g(Neg(), x := g.arg(REAL)), g.other(x))],
    "neg_floor_neg": [chain(Neg, Ceil, Neg, dtypes=REAL), chain(Neg, [Round, Trunc], Neg, dtypes=REAL), chain(Floor, Neg, dtypes=FLOATS)],
    "neg_ceil_neg": [chain(Neg, Floor, Neg, dtypes=REAL), chain(Ceil, Neg, dtypes=FLOATS)],
    "test_of_sign": [chain(Exp, [IsNan, IsInf, IsFinite], dtypes=FLOATS), chain(Abs, [IsNan, IsInf, IsFinite], dtypes=COMPLEXES)],
    "round_rounded": [chain(Neg, ROUNDINGS, dtypes=REAL)],
    "round_integer": [chain(ROUNDINGS, dtypes=FLOATS)],
    "round_cast": [lambda g: rounded_cast(g, FLOATS, FLOATS)],
    "is_nan_cast": [lambda g: g(IsNan(), g(Cast(g.pick(FLOATS)), g.arg(FLOATS)))],
    "max_lowest": [with_splat(Maximum, math.inf, FLOATS), with_splat(Maximum, lambda d: d.max, INTS), with_splat(Maximum, -65504, [DType.f16])],
    "min_highest": [with_splat(Minimum, -math.inf, FLOATS), with_splat(Minimum, lambda d: d.min, INTS)],
    "max_highest": [with_splat(Maximum, math.inf, FLOATS), with_splat(Maximum, lambda d: d.min, INTS)],
    "min_lowest": [with_splat(Minimum, -math.inf, FLOATS), with_splat(Minimum, lambda d: d.max, INTS)],
    "max_min_absorb": [lambda g: mixed_case(g, Maximum, Minimum, FLOATS)],
    "min_max_absorb": [lambda g: mixed_case(g, Minimum, Maximum, FLOATS)],
    "relu_unsigned": [chain(Relu, dtypes=SIGNED)],
    "relu_positive": [chain(Neg, [Relu, Abs], dtypes=FLOATS)],
    "clamp_nothing": [
        lambda g: g(Clamp(-1.0, math.inf), g.arg(SIGNED)),
        lambda g: g(Clamp((x := g.arg(INTS)).type.dtype.min + 1, x.type.dtype.max), x),
    ],
    "clamp_clamp": [
        lambda g: clamp_pair(g, g.pick(SIGNED), (5.0, 2.0), (-9.0, 3.0)),
        lambda g: clamp_pair(g, g.pick(SIGNED), (-3.0, 3.0), (2.0, 1.0)),
        lambda g: clamp_pair(g, g.pick(FLOATS), (-0.0, 2.0), (0.0, 3.0)),
        lambda g: clamp_pair(g, g.pick(FLOATS), (-5.0, -0.0), (0.0, 2.0)),
    ],
    "constant_right": [lambda g: g(g.pick([Sub, Maximum, Minimum])(), g.splat(0.0, x := g.arg(FLOATS)), x)],
    "combine_constants": [
        lambda g: associate(g, [Add, Mul, And, Or, Xor], INTS, same=False),
        lambda g: g(Add(), g(Add(), x := g.arg(FLOATS), g.splat(0.1, x)), g.splat(1e4, x)),
        lambda g: g(Mul(), g(Mul(), x := g.arg(FLOATS), g.splat(0.1, x)), g.splat(3, x)),
    ],
    "real_of_parts": [lambda g: g(Imag(), make_complex(g)[2])],
    "imag_of_parts": [lambda g: g(Real(), make_complex(g)[2])],
    "parts_of_complex": [lambda g: g(MakeComplex(), g(Imag(), x := g.arg(COMPLEXES)), g(Real(), x))],
    "cast_nothing": [lambda g: g(Cast(DType.f16), g.arg(DType.f32))],
    "cast_cast": [
        cast_chain(lambda s, m, t: not lossless(s, m)),
        cast_chain(_saturates),
        lambda g: _casts(g, DType.f64, DType.f32, DType.f16),
        lambda g: g(Cast(DType.f16), g(Cast(DType.f32), g.arg(DType.i64, (9,), (-(2**40), 2**40)))),
        lambda g: _casts(g, DType.f32, DType.f16, DType.f32),
    ],
    "cast_low_bits": [cast_chain(lambda s, m, t: s.is_integer and m.is_integer and t.is_integer and t.bits > m.bits)],
    "real_cast": [lambda g: g(Real(), g(Cast(g.pick(COMPLEXES)), g.arg(COMPLEXES))), lambda g: g(Real(), g(Cast(DType.c64), g.arg(DType.i64)))],
    "imag_cast": [lambda g: g(Imag(), g(Cast(g.pick(COMPLEXES)), g.arg(COMPLEXES)))],
}
