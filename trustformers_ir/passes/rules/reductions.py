"""Reductions over nothing, over one element, over reductions.

A float sum of one element is not that element: 0.0 + -0.0 is 0.0. Only integers and booleans may be reduced in one step instead of two.
"""

from __future__ import annotations

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dtypes import BOOL, INTS, REAL
from trustformers_ir.ir.ops import ArgReduceOp, ReduceAll, ReduceAny, ReduceMax, ReduceMin, ReduceOp, ReduceProd, ReduceSum, Reshape, ScanOp
from trustformers_ir.ir.rewriting import Match, Rule, constant_of, node, var
from trustformers_ir.passes.rules.common import everywhere, give

_SELECTING = (ReduceProd, ReduceMax, ReduceMin, ReduceAny, ReduceAll)  # of one element: that element, bit for bit
_FOLDS = (*_SELECTING, ReduceSum)
_EMPTY: dict[type[ReduceOp], int] = {ReduceSum: 0, ReduceProd: 1, ReduceAny: 0, ReduceAll: 1}
_REAL_OR_BOOL = REAL | BOOL
_WHOLE = INTS | BOOL


def _sizes_one(m: Match) -> str | None:
    longer = [m["x"].type.shape[a] for a in m.op().axes if not m.facts.is_equal(m["x"].type.shape[a], 1)]
    return None if not longer else f"an axis may be longer than 1 ({longer[0]})"


def _axis_is_one(m: Match) -> str | None:
    size = m["x"].type.shape[m.op().axis]
    return None if m.facts.is_equal(size, 1) else f"the axis may be longer than 1 ({size})"


def _is_inclusive(m: Match) -> str | None:
    return "the element itself is left out" if m.op().exclusive else _axis_is_one(m)


def _is_empty(m: Match) -> str | None:
    shape = m["x"].type.shape
    return None if any(m.facts.is_equal(shape[a], 0) for a in m.op().axes) else "no reduced axis is provably empty"


def _both_axes(m: Match) -> tuple[int, ...]:
    """The axes of x that the inner or the outer reduction folds."""
    first, outer = m.op("inner"), m.op()
    rank = m["x"].type.rank
    left = list(range(rank)) if first.keepdims else [a for a in range(rank) if a not in first.axes]
    return tuple(sorted({*first.axes, *(left[a] for a in outer.axes)}))


def _alike(m: Match) -> str | None:
    first, outer = m.op("inner"), m.op()
    if type(first) is not type(outer):
        return "the reductions differ"
    return None if first.keepdims == outer.keepdims else "one keeps its axes, the other does not"


def _folded_once(m: Match, b: Builder) -> Value:
    return b(type(m.op())(_both_axes(m), m.op().keepdims), m["x"])


RULES: tuple[Rule, ...] = (
    Rule(
        "reduce_ones",
        "product, max, min, any, all over axes of size 1 (or no axes)",
        node(_SELECTING, var("x", _REAL_OR_BOOL)),
        lambda m, b: b(Reshape(m.type.shape), m["x"]),
        _sizes_one,
    ),
    Rule(
        "sum_ones",
        "an integer sum over axes of size 1 (or no axes)",
        node(ReduceSum, var("x", INTS)),
        lambda m, b: b(Reshape(m.type.shape), m["x"]),
        _sizes_one,
    ),
    Rule(
        "reduce_empty",
        "a sum, product, any or all of nothing",
        node((ReduceSum, ReduceProd, ReduceAny, ReduceAll), var("x")),
        lambda m, b: constant_of(b, _EMPTY[type(m.op())], m.type),
        _is_empty,
    ),
    Rule(
        "reduce_reduce",
        "two reductions of integers or booleans are one",
        node(_FOLDS, node(_FOLDS, var("x", _WHOLE), name="inner")),
        _folded_once,
        _alike,
    ),
    Rule("scan_one", "a running sum or product along an axis of size 1", node(ScanOp, var("x", REAL)), give("x"), _is_inclusive),
    Rule("arg_one", "the position in an axis of size 1 is 0", node(ArgReduceOp, var("x")), everywhere(0), _axis_is_one),
)
