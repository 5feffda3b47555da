"""The property harness finds wrong rules: real rules with one mistake each, tried on the very examples of the rules they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rule_examples import FIRES, NEAR
from rule_harness import SEEDS, check_rule, killer

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import FLOATS, INTS, REAL
from trustformers_ir.ir.ops import (
    Abs,
    Add,
    And,
    Cast,
    Ceil,
    Clamp,
    Concat,
    Constant,
    Div,
    Eq,
    Floor,
    FloorDiv,
    Ge,
    Imag,
    IsFinite,
    IsNan,
    Le,
    LogicalNot,
    Lt,
    MakeComplex,
    Maximum,
    Minimum,
    Mod,
    Mul,
    Ne,
    Neg,
    Or,
    Pad,
    Pow,
    Real,
    ReduceMax,
    ReduceSum,
    Reshape,
    Select,
    ShiftLeft,
    ShiftRight,
    Slice,
    Sub,
    Transpose,
)
from trustformers_ir.ir.rewriting import Match, Rule, constant_of, fitted, node, splat, var
from trustformers_ir.passes.canonicalize import RULES
from trustformers_ir.passes.rules import arithmetic, logic, movement, reductions
from trustformers_ir.passes.rules.common import anything, becomes, everywhere, exactly, give, integer, scalar_type

x, y, c = var("x"), var("y"), var("c")
BY_NAME = {r.name: r for r in RULES.rules}
MUTANTS: dict[str, Rule] = {}
BASE: dict[str, str] = {}


def mutant(name: str, base: str, **changes: Any) -> None:
    """``base`` with a mistake, described by its name."""
    assert name not in MUTANTS
    MUTANTS[name], BASE[name] = replace(BY_NAME[base], **changes), base


def zero(s: Any) -> bool:
    """Forgets that there are two zeros."""
    return bool(s == 0)


def equals(value: float) -> Callable[[Any], bool]:
    return lambda s: bool(s == value)


# --- arithmetic --------------------------------------------------------------------------------------------------------------------

mutant("x + 0.0 is x", "add_zero", pattern=node(Add, x, splat(zero)))
mutant("x + 0.0 is x, of complex numbers too", "add_negative_zero", pattern=node(Add, x, splat(zero)))
mutant("x - -0.0 is x", "sub_zero", pattern=node(Sub, x, splat(zero)))
mutant("0 - x is x", "sub_zero", pattern=node(Sub, splat(exactly(0)), x))
mutant("0.0 - x is -x", "zero_sub", pattern=node(Sub, splat(zero), x))
mutant("x * 1 is x of complex infinities", "mul_one", pattern=node(Mul, x, splat(equals(1))))
mutant("x * -1 is x", "mul_one", pattern=node(Mul, x, splat(lambda s: bool(abs(s) == 1))))
mutant("x * 0.0 is 0", "mul_zero", pattern=node(Mul, x, splat(zero)))
mutant("x * -1 is |x|", "mul_minus_one", build=becomes(Abs(), "x"))
mutant("1 / x is x", "div_one", pattern=node(Div, splat(exactly(1)), x))
mutant("1 / x is x / 1", "one_div", build=give("x"))
mutant("x / c is x * (1 / c) for every c", "div_power_of_two", pattern=node(Div, var("x", FLOATS), splat(lambda s: bool(s != 0), "c")))
mutant(
    "x / c is x * c",
    "div_power_of_two",
    build=lambda m, b: fitted(b, b(Mul(), m["x"], constant_of(b, m.scalar("c"), scalar_type(m))), m.type),
)
mutant("x // 1 is x of floats", "floor_div_one", pattern=node(FloorDiv, x, splat(exactly(1))))
mutant("x % 1 is 0 of floats", "mod_one", pattern=node(Mod, x, splat(exactly(1))))
mutant("x ** 0 is 0", "pow_zero", build=everywhere(0))
mutant("x ** 1 is 1", "one_pow", pattern=node(Pow, x, splat(exactly(1))))
mutant("x ** 2 is x * x of f64", "pow_two", pattern=node(Pow, x, splat(exactly(2))))
mutant("x ** 2 is x + x", "pow_two", build=becomes(Add(), "x", "x"))
mutant("-(x - y) is y - x of floats", "neg_sub", pattern=node(Neg, node(Sub, x, y)))
mutant("-(x - y) is x - y", "neg_sub", build=becomes(Sub(), "x", "y"))
mutant("x + -y is y - x", "add_neg", build=becomes(Sub(), "y", "x"))
mutant("x - -y is x - y", "sub_neg", build=becomes(Sub(), "x", "y"))
mutant("x - x is 0 of floats", "sub_self", pattern=node(Sub, x, x))
mutant("(x + y) - y is x of floats", "add_sub_cancel", pattern=node(Sub, node(Add, x, y), y))
mutant("y - (x + y) is x", "add_sub_cancel", pattern=node(Sub, y, node(Add, x, y)))
mutant("|-x| is |x| of unsigned", "abs_neg", pattern=node(Abs, node(Neg, x)))
mutant("|x| is x", "abs_unsigned", pattern=node(Abs, x))
mutant("|x| * |y| is x * x", "abs_mul_abs", pattern=node(Mul, node(Abs, var("x", REAL)), node(Abs, y)))
mutant("-x * y is x * y", "mul_neg_neg", pattern=node(Mul, node(Neg, var("x", REAL)), y))
mutant("-floor(-x) is floor(x)", "neg_floor_neg", build=becomes(Floor(), "x"))
mutant("-floor(x) is ceil(x)", "neg_floor_neg", pattern=node(Neg, node(Floor, x)))
mutant("-ceil(-x) is ceil(x)", "neg_ceil_neg", build=becomes(Ceil(), "x"))
mutant("a float cast to float is whole", "round_cast", pattern=node((Floor, Ceil), node(Cast, x, name="inner")))
mutant("a float cast to float is no NaN", "is_nan_cast", pattern=node(IsNan, node(Cast, x)))
mutant("maximum(x, inf) is x", "max_lowest", pattern=node(Maximum, x, splat(equals(math.inf))))
mutant("maximum(x, MAX) is x", "max_lowest", pattern=node(Maximum, x, splat(integer(lambda d: d.max, INTS))))
mutant("maximum(x, minimum(x, y)) is x of floats", "max_min_absorb", pattern=node(Maximum, x, node(Minimum, x, y)))
mutant("maximum(x, minimum(x, y)) is y", "max_min_absorb", build=give("y"))
mutant("clamps with crossed bounds are one", "clamp_clamp", check=None)
mutant(
    "two clamps are the tighter bounds",
    "clamp_clamp",
    build=lambda m, b: b(Clamp(*_tighter(m)), m["x"]),
)
mutant("a clamp bounds nothing", "clamp_nothing", check=None)
mutant(
    "(x + c1) + c2 is x + (c1 + c2) of floats",
    "combine_constants",
    pattern=node((Add, Mul), node((Add, Mul), x, splat(anything, "c1"), name="inner"), splat(anything, "c2")),
)
mutant("(x + c1) * c2 is x * (c1 * c2)", "combine_constants", check=None)
mutant("c - x is x - c", "constant_right", pattern=replace(BY_NAME["constant_right"].pattern, kinds=(Sub,)))
mutant("make_complex(imag(x), real(x)) is x", "parts_of_complex", pattern=node(MakeComplex, node(Imag, x), node(Real, x)))
mutant("real(make_complex(x, y)) is y", "real_of_parts", build=give("y"))


def _tighter(m: Match) -> tuple[float, float]:
    first, second = arithmetic._bounds(m.op("inner")), arithmetic._bounds(m.op())
    return max(first[0], second[0]), min(first[1], second[1])


# --- casts -------------------------------------------------------------------------------------------------------------------------

mutant("every chain of casts is one cast", "cast_cast", check=None)
mutant("i8 -> f32 -> u8 wraps", "cast_cast", check=lambda m: None if m["x"].type.dtype in INTS else "not an integer")
mutant("integers are cut to the low bits they do not have", "cast_low_bits", check=None)
mutant("every cast is to x's own dtype", "cast_nothing", pattern=node(Cast, x))

# --- logic -------------------------------------------------------------------------------------------------------------------------

mutant("x ^ x is x", "xor_self", build=give("x"))
mutant("x & 1 is x", "and_ones", pattern=node(And, x, splat(equals(1))))
mutant("x | 1 is 1", "or_ones", pattern=node(Or, x, splat(equals(1))))
mutant("x & ~x is x", "and_not_self", build=give("x"))
mutant("x & ~y is 0", "and_not_self", pattern=node(And, x, node(logic._NOTS, y)))
mutant("x & (x | y) is y", "and_or_absorb", build=give("y"))
mutant("x << width - 1 is 0", "shift_out", pattern=node(ShiftLeft, x, splat(lambda s: not 0 <= int(s) < 8 * s.dtype.itemsize - 1)))
mutant("x >> width is 0", "shift_out", pattern=node(ShiftRight, x, splat(lambda s: not 0 <= int(s) < 8 * s.dtype.itemsize)))
mutant("x << 1 is x", "shift_zero", pattern=node((ShiftLeft, ShiftRight), x, splat(lambda s: int(s) in (0, 1))))
mutant("not (x < y) is x >= y with NaN", "not_order", pattern=node(LogicalNot, node((Lt, Le, Ge), x, y, name="inner")))
mutant("not (x == y) is x == y", "not_equal", build=lambda m, b: b(m.op("inner"), m["x"], m["y"]))
mutant("x == x with NaN", "equal_self", pattern=node((Eq, Le, Ge), x, x))
mutant("x != x is false with NaN", "ne_self", pattern=node(Ne, x, x))
mutant("x != x is is_finite(x)", "nan_test", build=becomes(IsFinite(), "x"))
mutant("c < x is x < c", "compare_constant", build=lambda m, b: fitted(b, b(m.op(), m["x"], m.root.operands[0]), m.type))
mutant(
    "c < x is x >= c",
    "compare_constant",
    build=lambda m, b: fitted(b, b(logic.NEGATED[type(m.op())](), m["x"], m.root.operands[0]), m.type),
)
mutant("x >= MAX is true", "ge_lowest", pattern=node(Ge, x, splat(integer(lambda d: d.max, INTS))))
mutant("x >= -inf is true of NaN", "ge_lowest", pattern=node(Ge, x, splat(equals(-math.inf))))
mutant("-x < -y is x < y", "compare_negated", pattern=node((Eq, Ne, Lt, Le), node(Neg, x), node(Neg, y)))
mutant("x - y == 0 is x == y of floats", "difference_zero", pattern=node((Eq, Ne), node(Sub, x, y), splat(zero)))
mutant("select(c, x, y) is x", "select_same", pattern=node(Select, c, x, y))
mutant("select(not c, x, y) is select(c, x, y)", "select_not", build=becomes(Select(), "c", "x", "y"))
mutant("select(c, true, false) is not c", "select_cond", build=becomes(LogicalNot(), "c"))
mutant("select(c, select(c, _, x), y) is select(c, x, y)", "select_inner_true", pattern=node(Select, c, node(Select, c, var("_"), x), y))
mutant("select(c, select(d, x, _), y) is select(c, x, y)", "select_inner_true", pattern=node(Select, c, node(Select, var("d"), x, var("_")), y))
mutant("select(x < y, x, y) is minimum(x, y) with NaN", "select_smaller", pattern=node(Select, node((Lt, Le), x, y), x, y))
mutant("select(x < y, x, y) is maximum(x, y)", "select_smaller", build=becomes(Maximum(), "x", "y"))
mutant("select(x < y, y, x) is minimum(x, y)", "select_smaller", pattern=node(Select, node((Lt, Le), x, y), y, x))

# --- movement and reductions -------------------------------------------------------------------------------------------------------


def _composed_backwards(m: Match, b: Builder) -> Value:
    first, second = m.op("inner").perm, m.op().perm
    return b(Transpose(tuple(second[p] for p in first)), m["x"])


def _without_offset(m: Match, b: Builder) -> Value:
    found = movement._part(m)
    assert found is not None
    return fitted(b, b(m.op(), found[0]), m.type)


def _without_step(m: Match, b: Builder) -> Value:
    outer, first = m.op(), m.op("inner")
    count = outer.stop - outer.start
    return fitted(b, b(Slice(outer.axis, first.start + outer.start, first.start + outer.start + count, outer.step), m["x"]), m.type)


def _high_and_low(m: Match, b: Builder) -> Value:
    outer, first = m.op(), m.op("inner")
    low = tuple(p + q for p, q in zip(outer.low, first.high, strict=True))
    high = tuple(p + q for p, q in zip(outer.high, first.low, strict=True))
    return fitted(b, b(Pad(low, high, outer.mode, outer.value), m["x"]), m.type)


def _unshifted_axes(m: Match, b: Builder) -> Value:
    return b(type(m.op())(tuple(sorted({*m.op().axes, *m.op("inner").axes})), m.op().keepdims), m["x"])


def _position_backwards(m: Match, b: Builder) -> Value:
    size = m["x"].type.shape[m.op().axis]
    position = size - 1 - movement._position(m)
    return b(Reshape(m.type.shape), b(Slice(m.op().axis % 3, position, position + 1), m["x"]))


def _all_zero(constant: Operation) -> bool:
    op = constant.op
    return isinstance(op, Constant) and constant.result.type.rank > 0 and bool((op.value.array == 0).all())


def _flattened_anyhow(m: Match, b: Builder) -> Value:
    values = [part for v in m.root.inputs for part in (v.producer.inputs if v.producer is not None and v.op_as(Concat) else [v])]
    return fitted(b, b(m.op(), *values), m.type)


mutant("transposes composed in the wrong order", "transpose_transpose", build=_composed_backwards)
mutant("every transpose is a reshape", "transpose_ones", check=None)
mutant("every transpose is nothing", "transpose_nothing", pattern=node(Transpose, x))
mutant("expand repeats whatever it is given", "move_one_element", check=None)
mutant(
    "0.0 and -0.0 are equal elements",
    "constant_splat",
    pattern=node(Constant, where=_all_zero),
    build=lambda m, b: constant_of(b, 0.0, m.type),
)
mutant("a broadcast always broadcasts itself", "broadcast_expand", check=None)
mutant("flips of any axes cancel", "flip_flip", check=None)
mutant("every flip is nothing", "flip_one", check=None)
mutant("slices of slices without the step", "slice_slice", build=_without_step)
mutant("slices of any axes are one", "slice_slice", check=None)
mutant("a slice of a concat without the offset", "slice_concat", build=_without_offset)
mutant("a slice with steps is everything", "slice_nothing", pattern=node(Slice, x))
mutant("a slice of a padding without the shift", "slice_pad", build=lambda m, b: fitted(b, b(m.op(), m["x"]), m.type))
mutant("every slice is inside of the padding", "slice_pad", check=None)
mutant("every axis of an expand is repeated", "slice_expand", check=None)
mutant(
    "concats of any axes are one",
    "concat_concat",
    pattern=node(Concat, ..., where=lambda o: any(v.op_as(Concat) for v in o.inputs)),
    build=_flattened_anyhow,
)
mutant("slices are put together in the wrong order", "concat_slices", build=lambda m, b: fitted(b, b(m.op(), *reversed(m.root.inputs)), m.type))
mutant("pads with 0.0 and -0.0 are one", "pad_pad", check=lambda m: None if m.op().value == m.op("inner").value else "different values")
mutant("pads of any mode are one", "pad_pad", check=lambda m: None if m.op("inner").mode == movement.PadMode.CONSTANT else "a mode")
mutant("pads before and after change places", "pad_pad", build=_high_and_low)
mutant("a gather counts from the other end", "gather_one", build=_position_backwards)
mutant("an i8 counts to 130", "gather_iota", check=None)
mutant("every reduction is over axes of size 1", "reduce_ones", check=None)
mutant("a sum of one float is that float", "sum_ones", pattern=node(ReduceSum, x))
mutant("the sum of nothing is 1", "reduce_empty", build=everywhere(1))
mutant("floats are summed in one step", "reduce_reduce", pattern=node((ReduceSum, ReduceMax), node((ReduceSum, ReduceMax), x, name="inner")))
mutant("a sum of maxima is a sum", "reduce_reduce", check=lambda m: None if m.op().keepdims == m.op("inner").keepdims else "axes")
mutant("the axes of two reductions are not shifted", "reduce_reduce", build=_unshifted_axes)
mutant("an exclusive scan of one element is that element", "scan_one", check=reductions._axis_is_one)
mutant("every position is 0", "arg_one", check=None)

SURVIVORS: set[str] = set()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name: str) -> None:
    base = BASE[name]
    how = killer(MUTANTS[name], [*FIRES[base], *NEAR.get(base, ())])
    assert (how is None) == (name in SURVIVORS), f"'{name}' {'survived' if how is None else 'was killed: ' + how}"


def test_enough_mutants() -> None:
    assert len(MUTANTS) >= 30
    assert set(MUTANTS) >= SURVIVORS
    assert len(SURVIVORS) * 30 <= len(MUTANTS)


def test_a_rule_that_does_not_fire_fails_the_property() -> None:
    never = replace(BY_NAME["neg_neg"], check=lambda m: "never")
    with pytest.raises(AssertionError, match="never"):
        check_rule(never, FIRES["neg_neg"], (), SEEDS)


