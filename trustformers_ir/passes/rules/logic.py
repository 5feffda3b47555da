"""Bits, booleans, comparisons and selection.

Comparisons with NaN are false except ``ne``: ``eq(x, x)`` is true only where the dtype has no NaN, and ``not (x < y)`` is ``x >= y`` only there.
"""

from __future__ import annotations

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dtypes import BOOL, FLOATS, INTS, DType
from trustformers_ir.ir.ops import (
    And,
    BitwiseNot,
    CompareOp,
    Eq,
    Ge,
    Gt,
    IsNan,
    Le,
    LogicalNot,
    Lt,
    Maximum,
    Minimum,
    Ne,
    Neg,
    Or,
    Select,
    ShiftLeft,
    ShiftRight,
    Sub,
    Xor,
)
from trustformers_ir.ir.rewriting import Match, Rule, fitted, node, splat, splat_of, var
from trustformers_ir.passes.rules.common import all_ones, anything, becomes, everywhere, exactly, give, integer, same_op

x, y, c = var("x"), var("y"), var("c", BOOL)
_WHOLE = INTS | BOOL
_ZERO = splat(exactly(0, _WHOLE))
_ONES = splat(all_ones)
_TRUE = splat(exactly(1, BOOL))
_FALSE = splat(exactly(0, BOOL))
_NOTS = (BitwiseNot, LogicalNot)
_LOWEST = splat(integer(lambda d: d.min, INTS))
_HIGHEST = splat(integer(lambda d: d.max, INTS))

# what a comparison becomes with its operands exchanged, and negated (where there is no NaN)
SWAPPED: dict[type[CompareOp], type[CompareOp]] = {Lt: Gt, Gt: Lt, Le: Ge, Ge: Le}
NEGATED: dict[type[CompareOp], type[CompareOp]] = {Lt: Ge, Ge: Lt, Le: Gt, Gt: Le, Eq: Ne, Ne: Eq}
_ORDERS = (Lt, Le, Gt, Ge)


def _ones(dtype: DType) -> int:
    return -1 if dtype.is_signed else dtype.max


def _inverted(m: Match, b: Builder) -> Value:
    return fitted(b, b(LogicalNot() if m.type.dtype is DType.bool else BitwiseNot(), m["x"]), m.type)


BITS = (
    Rule("and_self", "x & x = x", node(And, x, x), give("x")),
    Rule("or_self", "x | x = x", node(Or, x, x), give("x")),
    Rule("xor_self", "x ^ x = 0", node(Xor, x, x), everywhere(0)),
    Rule("and_zero", "x & 0 = 0", node(And, x, _ZERO), everywhere(0)),
    Rule("and_ones", "x & 11…1 = x", node(And, x, _ONES), give("x")),
    Rule("or_zero", "x | 0 = x", node(Or, x, _ZERO), give("x")),
    Rule("or_ones", "x | 11…1 = 11…1", node(Or, x, _ONES), everywhere(_ones)),
    Rule("xor_zero", "x ^ 0 = x", node(Xor, x, _ZERO), give("x")),
    Rule("xor_ones", "x ^ 11…1 = ~x", node(Xor, x, _ONES), _inverted),
    Rule("xor_xor", "(x ^ y) ^ y = x", node(Xor, node(Xor, x, y), y), give("x")),
    Rule("and_not_self", "x & ~x = 0", node(And, x, node(_NOTS, x)), everywhere(0)),
    Rule("or_not_self", "x | ~x = 11…1", node(Or, x, node(_NOTS, x)), everywhere(_ones)),
    Rule("and_or_absorb", "x & (x | y) = x", node(And, x, node(Or, x, y)), give("x")),
    Rule("or_and_absorb", "x | (x & y) = x", node(Or, x, node(And, x, y)), give("x")),
    Rule("not_not", "~~x = x", node(_NOTS, node(_NOTS, x)), give("x")),
    Rule("not_bool", "~x = not x for booleans", node(BitwiseNot, var("x", BOOL)), becomes(LogicalNot(), "x")),
    Rule("shift_zero", "x << 0 = x >> 0 = x", node((ShiftLeft, ShiftRight), x, _ZERO), give("x")),
    Rule(
        "shift_out",
        "x << k = 0 for k outside of 0 … width - 1",
        node(ShiftLeft, x, splat(lambda s: not 0 <= int(s) < 8 * s.dtype.itemsize)),
        everywhere(0),
    ),
    Rule("zero_shifted", "0 << x = 0 >> x = 0", node((ShiftLeft, ShiftRight), _ZERO, x), everywhere(0)),
)


def _negated(m: Match, b: Builder) -> Value:
    return b(NEGATED[type(m.op("inner"))](), m["x"], m["y"])


def _swapped(m: Match, b: Builder) -> Value:
    return fitted(b, b(SWAPPED[type(m.op())](), m["x"], m.root.operands[0]), m.type)


COMPARISONS = (
    Rule("not_equal", "not (x == y) = (x != y) and back", node(LogicalNot, node((Eq, Ne), x, y, name="inner", ordered=True)), _negated),
    Rule("not_order", "not (x < y) = (x >= y) where nothing is NaN", node(LogicalNot, node(_ORDERS, var("x", _WHOLE), y, name="inner")), _negated),
    Rule("equal_self", "x == x, x <= x, x >= x: true where nothing is NaN", node((Eq, Le, Ge), var("x", _WHOLE), x), everywhere(1)),
    Rule("differ_self", "x < x, x > x: false", node((Lt, Gt), x, x), everywhere(0)),
    Rule("ne_self", "x != x: false where nothing is NaN", node(Ne, var("x", _WHOLE), x), everywhere(0)),
    Rule("nan_test", "x != x = is_nan(x)", node(Ne, var("x", FLOATS), x), becomes(IsNan(), "x")),
    Rule(
        "compare_constant",
        "c < x = x > c: constants on the right",
        node(_ORDERS, splat(anything), x),
        _swapped,
        lambda m: None if splat_of(m["x"]) is None else "both operands are constants",
    ),
    Rule("eq_true", "(x == true) = x", node(Eq, var("x", BOOL), _TRUE), give("x")),
    Rule("ne_false", "(x != false) = x", node(Ne, var("x", BOOL), _FALSE), give("x")),
    Rule("eq_false", "(x == false) = not x", node(Eq, var("x", BOOL), _FALSE), becomes(LogicalNot(), "x")),
    Rule("ne_true", "(x != true) = not x", node(Ne, var("x", BOOL), _TRUE), becomes(LogicalNot(), "x")),
    Rule("ge_lowest", "x >= MIN: true", node(Ge, x, _LOWEST), everywhere(1)),
    Rule("lt_lowest", "x < MIN: false", node(Lt, x, _LOWEST), everywhere(0)),
    Rule("le_highest", "x <= MAX: true", node(Le, x, _HIGHEST), everywhere(1)),
    Rule("gt_highest", "x > MAX: false", node(Gt, x, _HIGHEST), everywhere(0)),
    Rule("compare_negated", "(-x == -y) = (x == y)", node((Eq, Ne), node(Neg, x), node(Neg, y)), same_op("x", "y")),
    Rule(
        "difference_zero",
        "(x - y == 0) = (x == y) for integers",  # not for floats: inf - inf is NaN, and a small difference may round to 0
        node((Eq, Ne), node(Sub, var("x", INTS), y), _ZERO),
        same_op("x", "y"),
    ),
)

_IS_LESS = (Lt, Le)
_IS_MORE = (Gt, Ge)

SELECTION = (
    Rule("select_true", "select(true, x, y) = x", node(Select, _TRUE, x, y), give("x")),
    Rule("select_false", "select(false, x, y) = y", node(Select, _FALSE, x, y), give("y")),
    Rule("select_same", "select(c, x, x) = x", node(Select, c, x, x), give("x")),
    Rule("select_not", "select(not c, x, y) = select(c, y, x)", node(Select, node(_NOTS, c), x, y), becomes(Select(), "c", "y", "x")),
    Rule("select_cond", "select(c, true, false) = c", node(Select, c, _TRUE, _FALSE), give("c")),
    Rule("select_not_cond", "select(c, false, true) = not c", node(Select, c, _FALSE, _TRUE), becomes(LogicalNot(), "c")),
    Rule(
        "select_inner_true",
        "select(c, select(c, x, _), y) = select(c, x, y)",
        node(Select, c, node(Select, c, x, var("_")), y),
        becomes(Select(), "c", "x", "y"),
    ),
    Rule(
        "select_inner_false",
        "select(c, x, select(c, _, y)) = select(c, x, y)",
        node(Select, c, x, node(Select, c, var("_"), y)),
        becomes(Select(), "c", "x", "y"),
    ),
    Rule(
        "select_smaller",
        "select(x < y, x, y) = minimum(x, y) for integers",
        node(Select, node(_IS_LESS, var("x", INTS), y), x, y),
        becomes(Minimum(), "x", "y"),
    ),
    Rule(
        "select_larger",
        "select(x > y, x, y) = maximum(x, y) for integers",
        node(Select, node(_IS_MORE, var("x", INTS), y), x, y),
        becomes(Maximum(), "x", "y"),
    ),
)


RULES: tuple[Rule, ...] = (*BITS, *COMPARISONS, *SELECTION)
