"""Graphs on which the rules of bits, comparisons and selection fire, and graphs on which they must not."""

from __future__ import annotations

from rule_examples_arithmetic import UNSIGNED, twice, with_splat
from rule_harness import Example, Graph

from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dtypes import ANY, BOOL, FLOATS, INTS, NUMERIC, REAL, DType
from trustformers_ir.ir.ops import (
    And,
    BitwiseNot,
    Eq,
    Ge,
    Gt,
    Le,
    LogicalNot,
    Lt,
    Ne,
    Neg,
    Or,
    Select,
    ShiftLeft,
    ShiftRight,
    Sub,
    Xor,
)

WHOLE = INTS | BOOL
ORDERS = [Lt, Le, Gt, Ge]


def ones(dtype: DType) -> int:
    return -1 if dtype.is_signed else dtype.max


def inverted(g: Graph, x: Value) -> Value:
    """``~x`` in one of its spellings."""
    return g(LogicalNot() if x.type.dtype is DType.bool and g.coin() else BitwiseNot(), x)


def with_inverse(op: type) -> Example:
    return lambda g: g.either(op(), x := g.arg(WHOLE), inverted(g, x))


def absorbed(outer: type, inner: type) -> Example:
    return lambda g: g.either(outer(), x := g.arg(WHOLE), g.either(inner(), x, g.other(x)))


def compared(g: Graph, kinds: list[type], dtypes: object) -> Value:
    x = g.arg(dtypes)  # type: ignore[arg-type]
    return g(g.pick(kinds)(), x, g.other(x))


def close(g: Graph, dtypes: object) -> tuple[Value, Value]:
    """Two arguments that are often equal."""
    x = g.arg(dtypes, bounds=(0, 3))  # type: ignore[arg-type]
    y = g.other(x)
    g.bounds[-1] = (0, 3)
    return x, y


def three(g: Graph) -> tuple[Value, Value, Value]:
    """A condition and two values that broadcast with it."""
    x = g.arg()
    c = g.other(x)
    c.type = c.type.with_dtype(DType.bool)
    return c, x, g.other(x)


def chosen(g: Graph, kinds: list[type], dtypes: object, crossed: bool = False) -> Value:
    x, y = close(g, dtypes)
    condition = g(g.pick(kinds)(), x, y)
    return g(Select(), condition, y, x) if crossed else g(Select(), condition, x, y)


def select_inner(g: Graph, first: bool, same: bool = True) -> Value:
    """``select(c, select(c, x, y), z)`` or with the inner one last."""
    c, x, y = three(g)
    z = g.other(x)
    d = c if same else g.arg(DType.bool, c.type.shape)
    inside = g(Select(), d, x, y)
    return g(Select(), c, inside, z) if first else g(Select(), c, z, inside)


FIRES: dict[str, list[Example]] = {
    "and_self": [lambda g: twice(g, And, WHOLE)],
    "or_self": [lambda g: twice(g, Or, WHOLE)],
    "xor_self": [lambda g: twice(g, Xor, WHOLE)],
    "and_zero": [with_splat(And, 0, WHOLE)],
    "and_ones": [with_splat(And, ones, WHOLE)],
    "or_zero": [with_splat(Or, 0, WHOLE)],
    "or_ones": [with_splat(Or, ones, WHOLE)],
    "xor_zero": [with_splat(Xor, 0, WHOLE)],
    "xor_ones": [with_splat(Xor, ones, WHOLE)],
    "xor_xor": [lambda g: g.either(Xor(), g.either(Xor(), x := g.arg(WHOLE), y := g.other(x)), y)],
    "and_not_self": [with_inverse(And)],
    "or_not_self": [with_inverse(Or)],
    "and_or_absorb": [absorbed(And, Or)],
    "or_and_absorb": [absorbed(Or, And)],
    "not_not": [lambda g: inverted(g, inverted(g, g.arg(WHOLE)))],
    "not_bool": [lambda g: g(BitwiseNot(), g.arg(BOOL))],
    "shift_zero": [with_splat(ShiftLeft, 0, INTS), with_splat(ShiftRight, 0, INTS)],
    "shift_out": [with_splat(ShiftLeft, lambda d: d.bits, INTS), with_splat(ShiftLeft, lambda d: d.max, INTS), with_splat(ShiftLeft, -1, INTS)],
    "zero_shifted": [with_splat(ShiftLeft, 0, INTS, first=True), with_splat(ShiftRight, 0, INTS, first=True)],
    "not_equal": [lambda g: g(LogicalNot(), compared(g, [Eq, Ne], ANY)), lambda g: g(LogicalNot(), g(g.pick([Eq, Ne])(), *close(g, ANY)))],
    "not_order": [lambda g: g(LogicalNot(), compared(g, ORDERS, WHOLE)), lambda g: g(LogicalNot(), g(g.pick(ORDERS)(), *close(g, WHOLE)))],
    "equal_self": [lambda g: twice(g, g.pick([Eq, Le, Ge]), WHOLE)],
    "differ_self": [lambda g: twice(g, g.pick([Lt, Gt]), REAL | BOOL)],
    "ne_self": [lambda g: twice(g, Ne, WHOLE)],
    "nan_test": [lambda g: twice(g, Ne, FLOATS)],
    "compare_constant": [lambda g: g(g.pick(ORDERS)(), g.splat(1, x := g.arg(REAL | BOOL, bounds=(0, 2))), x)],
    "eq_true": [with_splat(Eq, True, BOOL)],
    "ne_false": [with_splat(Ne, False, BOOL)],
    "eq_false": [with_splat(Eq, False, BOOL)],
    "ne_true": [with_splat(Ne, True, BOOL)],
    "ge_lowest": [with_splat(Ge, lambda d: d.min, INTS)],
    "lt_lowest": [with_splat(Lt, lambda d: d.min, INTS)],
    "le_highest": [with_splat(Le, lambda d: d.max, INTS)],
    "gt_highest": [with_splat(Gt, lambda d: d.max, INTS)],
    "compare_negated": [
        lambda g: g(g.pick([Eq, Ne])(), g(Neg(), x := g.arg(NUMERIC)), g(Neg(), g.other(x))),
        lambda g: g(g.pick([Eq, Ne])(), *(g(Neg(), v) for v in close(g, NUMERIC))),
    ],
    "difference_zero": [
        lambda g: g.either(g.pick([Eq, Ne])(), d := g(Sub(), x := g.arg(INTS), g.other(x)), g.splat(0, d)),
        lambda g: g.either(g.pick([Eq, Ne])(), d := g(Sub(), *close(g, INTS)), g.splat(0, d)),
    ],
    "select_true": [lambda g: g(Select(), g.splat(True, (t := three(g))[0]), t[1], t[2])],
    "select_false": [lambda g: g(Select(), g.splat(False, (t := three(g))[0]), t[1], t[2])],
    "select_same": [lambda g: g(Select(), (t := three(g))[0], t[1], t[1])],
    "select_not": [lambda g: g(Select(), inverted(g, (t := three(g))[0]), t[1], t[2])],
    "select_cond": [lambda g: g(Select(), c := g.arg(BOOL), g.splat(True, c), g.splat(False, c))],
    "select_not_cond": [lambda g: g(Select(), c := g.arg(BOOL), g.splat(False, c), g.splat(True, c))],
    "select_inner_true": [lambda g: select_inner(g, first=True)],
    "select_inner_false": [lambda g: select_inner(g, first=False)],
    "select_smaller": [lambda g: chosen(g, [Lt, Le], INTS)],
    "select_larger": [lambda g: chosen(g, [Gt, Ge], INTS)],
}

NEAR: dict[str, list[Example]] = {
    "xor_self": [lambda g: g(Xor(), x := g.arg(WHOLE), g.other(x))],
    "and_zero": [with_splat(And, ones, WHOLE)],
    "and_ones": [with_splat(And, 1, INTS)],
    "or_zero": [with_splat(Or, 1, WHOLE)],
    "or_ones": [with_splat(Or, 1, INTS)],
    "xor_zero": [with_splat(Xor, 1, WHOLE)],
    "xor_ones": [with_splat(Xor, 1, INTS)],
    "xor_xor": [lambda g: g(Xor(), g(Xor(), x := g.arg(WHOLE), g.other(x)), g.other(x))],
    "and_not_self": [lambda g: g(And(), x := g.arg(WHOLE), inverted(g, g.other(x)))],
    "or_not_self": [lambda g: g(Or(), x := g.arg(WHOLE), inverted(g, g.other(x)))],
    "and_or_absorb": [lambda g: g(And(), x := g.arg(WHOLE), g(Or(), g.other(x), g.other(x)))],
    "or_and_absorb": [lambda g: g(Or(), x := g.arg(WHOLE), g(And(), g.other(x), g.other(x)))],
    "not_bool": [lambda g: g(BitwiseNot(), g.arg(INTS))],
    "shift_zero": [with_splat(ShiftLeft, 1, INTS), with_splat(ShiftRight, 1, INTS)],
    "shift_out": [with_splat(ShiftLeft, lambda d: d.bits - 1, INTS), with_splat(ShiftRight, lambda d: d.bits, INTS)],
    "zero_shifted": [with_splat(ShiftLeft, 1, INTS, first=True), with_splat(ShiftRight, -1, INTS - {*UNSIGNED}, first=True)],
    "not_order": [lambda g: g(LogicalNot(), compared(g, ORDERS, FLOATS))],
    "equal_self": [lambda g: twice(g, g.pick([Eq, Le, Ge]), FLOATS)],
    "ne_self": [lambda g: twice(g, Ne, FLOATS)],
    "nan_test": [lambda g: g(Ne(), x := g.arg(FLOATS), g.other(x)), lambda g: twice(g, Eq, FLOATS)],
    "compare_constant": [lambda g: g(g.pick(ORDERS)(), x := g.arg(REAL | BOOL), g.splat(1, x))],
    "eq_true": [with_splat(Eq, False, BOOL), with_splat(Eq, 1, INTS)],
    "ne_false": [with_splat(Ne, True, BOOL)],
    "eq_false": [with_splat(Eq, True, BOOL)],
    "ne_true": [with_splat(Ne, False, BOOL)],
    "ge_lowest": [with_splat(Ge, lambda d: d.max, INTS), with_splat(Ge, float("-inf"), FLOATS)],
    "lt_lowest": [with_splat(Lt, lambda d: d.max, INTS), with_splat(Lt, lambda d: d.min, INTS, first=True)],
    "le_highest": [with_splat(Le, lambda d: d.min, INTS), with_splat(Le, float("inf"), FLOATS)],
    "gt_highest": [with_splat(Gt, lambda d: d.min, INTS)],
    "compare_negated": [
        lambda g: g(g.pick(ORDERS)(), g(Neg(), x := g.arg(REAL)), g(Neg(), g.other(x))),
        lambda g: g(g.pick([Eq, Ne])(), *(g(Neg(), x) if i else x for i, x in enumerate(close(g, NUMERIC)))),
    ],
    "difference_zero": [
        lambda g: g(Eq(), d := g(Sub(), x := g.arg(FLOATS), g.other(x)), g.splat(0, d)),
        lambda g: g(Eq(), d := g(Sub(), x := g.arg(FLOATS), x), g.splat(0, d)),
        lambda g: g(g.pick(ORDERS)(), d := g(Sub(), x := g.arg(INTS), g.other(x)), g.splat(0, d)),
    ],
    "select_same": [lambda g: g(Select(), *three(g))],
    "select_cond": [lambda g: g(Select(), g.arg(BOOL), g.splat(1, DType.i32), g.splat(0, DType.i32))],
    "select_inner_true": [lambda g: select_inner(g, first=False), lambda g: select_inner(g, first=True, same=False)],
    "select_inner_false": [lambda g: select_inner(g, first=True), lambda g: select_inner(g, first=False, same=False)],
    "select_smaller": [
        lambda g: chosen(g, [Lt, Le], FLOATS),
        lambda g: g(Select(), g(Lt(), x := g.arg(FLOATS), y := g.other(x)), x, y),
        lambda g: chosen(g, [Lt, Le], INTS, crossed=True),
    ],
    "select_larger": [
        lambda g: g(Select(), g(Gt(), x := g.arg(FLOATS), y := g.other(x)), x, y),
        lambda g: chosen(g, [Gt, Ge], INTS, crossed=True),
    ],
}
