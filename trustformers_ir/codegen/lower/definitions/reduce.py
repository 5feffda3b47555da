"""Pointwise definitions of reductions: one fold per output element.

The last dimension folds in 16 lanes and a fixed tree, the others in order. A sum of f32 takes at most 256 such steps at a time; what those give
is added up in f64. That is part of the meaning, not of the schedule, so the bits do not depend on threads, batch split or vector width, and
the error does not grow with the number of terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trustformers_ir.codegen.kernel_ir.nodes import Binary, Const, Expr, cast, const, fma, reduce, select, unary
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype, define
from trustformers_ir.codegen.lower.indexing import Index
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.nn import normalised_axes
from trustformers_ir.ir.schema import Op


def fold(d: Definer, kind: str, x: Value, axes: Sequence[int], index: Index, dtype: DType | None = None) -> Expr:
    """Fold ``x`` over ``axes``; ``index`` has one entry per dimension of x, those of the folded axes being ignored."""

    def build() -> Expr:
        if kind == "sum" and dtype is None:
            return total(d, x, axes, index, lambda element: element)
        bound = d.reduce_axes(x.type.shape, axes)
        body = d.lifted(x, tuple(bound.get(i, e) for i, e in enumerate(index)))
        return reduce(kind, tuple(bound.values()), body if dtype is None else cast(body, dtype))

    return d.once((kind, x, *_outside(axes, index), dtype), build)


def total(d: Definer, x: Value, axes: Sequence[int], index: Index, body: Callable[[Expr], Expr]) -> Expr:
    """The sum of ``body`` of each element of ``x`` over ``axes``.

    A product that is inlined here is rounded before it is added, as if it had been stored: ``fma(a, b, -0)`` is exactly that, where a bare
    product under a sum would become a chain of fused multiply-adds and fusing would change bits.
    """
    blocks = d.blocked_axes(x.type.shape, axes, compute_dtype(x.type.dtype))
    element = d.lifted(x, tuple(blocks.places.get(i, e) for i, e in enumerate(index)))
    if isinstance(element, Binary) and element.op == "mul" and element.dtype.is_float:
        element = fma(element.a, element.b, -0.0)
    return blocks.sum(body(element))


def _outside(axes: Sequence[int], index: Index) -> tuple[tuple[int, ...], Index]:
    """What identifies a fold: its axes and the index everywhere else."""
    return tuple(axes), tuple(e for i, e in enumerate(index) if i not in axes)


def spread(o: Operation, axes: Sequence[int], keepdims: bool, index: Index) -> Index:
    """The result's index with a place for every dimension of the operand (0 at the folded ones)."""
    rank = o.inputs[0].type.rank
    if keepdims:
        return tuple(const(0) if i in axes else index[i] for i in range(rank))
    kept = iter(index)
    return tuple(const(0) if i in axes else next(kept) for i in range(rank))


def _axes(o: Operation) -> tuple[int, ...]:
    axes: tuple[int, ...] = o.op.axes  # type: ignore[attr-defined]
    return tuple(a % o.inputs[0].type.rank for a in axes)


def _keepdims(o: Operation) -> bool:
    return bool(o.op.keepdims)  # type: ignore[attr-defined]


_FOLDS: dict[type[Op], str] = {ops.ReduceSum: "sum", ops.ReduceMax: "max", ops.ReduceMin: "min", ops.ReduceProd: "prod"}


@define(*_FOLDS)
def _fold(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    kind = _FOLDS[type(o.op)]
    x, axes, full = o.inputs[0], _axes(o), spread(o, _axes(o), _keepdims(o), index)
    out = o.result.type.dtype
    if x.type.dtype is DType.bool and kind in ("max", "min"):
        return fold(d, "any" if kind == "max" else "all", x, axes, full)
    return d.finish(o, result, fold(d, kind, x, axes, full, None if out.is_float else out))


@define(ops.ReduceAny, ops.ReduceAll)
def _any_all(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    kind = "any" if isinstance(o.op, ops.ReduceAny) else "all"
    return fold(d, kind, o.inputs[0], _axes(o), spread(o, _axes(o), _keepdims(o), index), DType.bool)


@define(ops.ReduceMean)
def _mean(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    return d.finish(o, result, mean(d, o.inputs[0], _axes(o), spread(o, _axes(o), _keepdims(o), index)))


def mean(d: Definer, x: Value, axes: Sequence[int], index: Index) -> Expr:
    added = fold(d, "sum", x, axes, index)
    return added / d.count([x.type.shape[a] for a in axes], added.dtype)


def variance(d: Definer, x: Value, axes: Sequence[int], index: Index, correction: int = 0) -> Expr:
    """Mean squared distance from the mean, in two passes (the one-pass formula cancels)."""

    def square(element: Expr) -> Expr:
        distance = element - mean(d, x, axes, index)
        return distance * distance

    squares = d.once(("squares", x, *_outside(axes, index)), lambda: total(d, x, axes, index, square))
    count = d.count([x.type.shape[a] for a in axes], squares.dtype)
    if correction:
        count = count - float(correction)
        count = select(count > 0, count, Const(0, count.dtype))
    return squares / count


@define(ops.ReduceVar, ops.ReduceStd)
def _var_std(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    correction: int = o.op.correction  # type: ignore[attr-defined]
    value = variance(d, o.inputs[0], _axes(o), spread(o, _axes(o), _keepdims(o), index), correction)
    return d.finish(o, result, unary("sqrt", value) if isinstance(o.op, ops.ReduceStd) else value)


@define(ops.ReduceLogSumExp)
def _logsumexp(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    full = spread(o, _axes(o), _keepdims(o), index)
    top, weights = shifted_exp_sum(d, o.inputs[0], _axes(o), full)
    return d.finish(o, result, top + unary("log", weights))


def shifted_exp_sum(d: Definer, x: Value, axes: Sequence[int], index: Index) -> tuple[Expr, Expr]:
    """``(m, sum exp(x - m))`` with m the maximum where it is finite, 0 otherwise."""
    top = fold(d, "max", x, axes, index)
    safe = select(abs(top) < Const(math.inf, top.dtype), top, Const(0, top.dtype))
    return safe, exp_sum(d, x, axes, index, safe, x.type.dtype)


def exp_sum(d: Definer, x: Value, axes: Sequence[int], index: Index, shift: Expr, dtype: DType) -> Expr:
    """``sum exp(x - shift)`` over the axes, on the way to a result of ``dtype``."""
    key = ("exp_sum", x, *_outside(axes, index), shift)
    return d.once(key, lambda: total(d, x, axes, index, lambda element: d.exp(element - shift, dtype)))


@define(ops.ArgMax, ops.ArgMin)
def _arg(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = o.inputs[0]
    axis: int = o.op.axis % x.type.rank  # type: ignore[attr-defined]
    kind = "argmax" if isinstance(o.op, ops.ArgMax) else "argmin"
    dtype = DType.i32 if x.type.dtype is DType.bool else None
    return fold(d, kind, x, (axis,), spread(o, (axis,), _keepdims(o), index), dtype)


@define(ops.Softmax, ops.LogSoftmax)
def _softmax(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = o.inputs[0]
    axis: int = o.op.axis % x.type.rank  # type: ignore[attr-defined]
    top = fold(d, "max", x, (axis,), index)
    dtype = o.result.type.dtype
    weights = exp_sum(d, x, (axis,), index, top, dtype)
    shifted = d.lifted(x, index) - top
    if isinstance(o.op, ops.LogSoftmax):
        return d.finish(o, result, shifted - unary("log", weights))
    return d.finish(o, result, d.quotient(d.exp(shifted, dtype), weights, dtype))


@define(ops.LayerNorm)
def _layer_norm(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Ba, Kiros & Hinton, "Layer Normalization", 2016."""
    assert isinstance(o.op, ops.LayerNorm)
    x, weight, bias = o.operands
    assert x is not None
    axes = _normalised_axes(o)
    scale = unary("recip", unary("sqrt", variance(d, x, axes, index) + o.op.eps))
    value = (d.lifted(x, index) - mean(d, x, axes, index)) * scale
    tail = index[x.type.rank - len(axes) :]
    if weight is not None:
        value = value * cast(d.lifted(weight, tail), value.dtype)
    if bias is not None:
        value = value + cast(d.lifted(bias, tail), value.dtype)
    return d.finish(o, result, value)


@define(ops.RmsNorm)
def _rms_norm(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    """Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019."""
    assert isinstance(o.op, ops.RmsNorm)
    x, weight = o.operands
    assert x is not None
    axes = _normalised_axes(o)
    squares = d.once(("mean_square", x, *_outside(axes, index)), lambda: total(d, x, axes, index, lambda element: element * element))
    square = squares / d.count([x.type.shape[a] for a in axes], squares.dtype)
    value = d.lifted(x, index) * unary("recip", unary("sqrt", square + o.op.eps))
    if weight is not None:
        gain = cast(d.lifted(weight, index[x.type.rank - len(axes) :]), value.dtype)
        value = value * (gain + o.op.offset if o.op.offset else gain)
    return d.finish(o, result, value)


def _normalised_axes(o: Operation) -> tuple[int, ...]:
    """The trailing dims that the weight (or else the bias) spans; the last one when there is neither."""
    x, *parameters = o.operands
    assert x is not None
    count = normalised_axes(*[None if p is None else p.type for p in parameters])
    return tuple(range(x.type.rank - count, x.type.rank))
