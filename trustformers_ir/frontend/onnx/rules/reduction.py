"""Folds along axes: sums, extremes, norms of vectors, running sums, softmax, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable

from trustformers_ir.frontend.onnx.linear import determinant
from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import Node, emit, onnx_op, widened
from trustformers_ir.frontend.onnx.rules.shape import axes_of
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import where
from trustformers_ir.ir.tensor import Tensor

Axes = tuple[int, ...]


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return emit(x, ops.ReduceSum(axes, keep))


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.dtype.is_float:
        return emit(x, ops.ReduceMean(axes, keep))
    return emit(x.to(DType.f64), ops.ReduceMean(axes, keep)).to(x.dtype)


def _extreme(op: type[ops.ReduceOp]) -> Callable[[Tensor, Axes, bool], Tensor]:
    def fold(x: Tensor, axes: Axes, keep: bool) -> Tensor:
        if x.dtype is DType.bool:
            return emit(x.to(DType.u8), op(axes, keep)).to(DType.bool)
        return emit(x, op(axes, keep))

    return fold


def _through_f32(f: Callable[[Tensor, Axes, bool], Tensor]) -> Callable[[Tensor, Axes, bool], Tensor]:
    """Several steps in f32 where elements are narrower, in f64 where they are whole numbers; rounded once."""

    def fold(x: Tensor, axes: Axes, keep: bool) -> Tensor:
        wide = widened(x) if x.dtype.is_float else x.to(DType.f64)
        return f(wide, axes, keep).to(x.dtype)

    return fold


def _log_sum_exp(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return emit(x, ops.ReduceLogSumExp(axes, keep))


_FOLDS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": lambda x, axes, keep: emit(x, ops.ReduceProd(axes, keep)),
    "ReduceMax": _extreme(ops.ReduceMax),
    "ReduceMin": _extreme(ops.ReduceMin),
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": _through_f32(lambda x, axes, keep: _sum(x * x, axes, keep).sqrt()),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": _through_f32(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "ReduceLogSumExp": _through_f32(_log_sum_exp),
}


@onnx_op(*_FOLDS)
def _reduce(n: Node) -> Tensor:
    x = n.t(0)
    axes = axes_of(n, 1, 13 if n.op == "ReduceSum" else 18, x.ndim)
    if not axes:
        axes = [] if n.attr("noop_with_empty_axes", 0) else list(range(x.ndim))
    n.require(len(set(axes)) == len(axes), "an axis is named twice")
    keep = bool(n.attr("keepdims", 1))
    if n.op in _EMPTY and any(n.same(x.shape[a], 0) for a in axes):
        value = _EMPTY[n.op]
        low = value if x.dtype.is_float else {-math.inf: x.dtype.min, math.inf: x.dtype.max}[value]
        shape = [1 if a in axes else d for a, d in enumerate(x.shape) if keep or a not in axes]
        return fixed(low, x.dtype).expand(*shape)
    return _FOLDS[n.op](x, tuple(sorted(axes)), keep)


_EMPTY = {"ReduceMax": -math.inf, "ReduceMin": math.inf, "ReduceLogSumExp": -math.inf}


@onnx_op("ArgMax", "ArgMin")
def _arg(n: Node) -> Tensor:
    x = n.t(0)
    axis = n.axis(x.ndim, 0)
    keep = bool(n.attr("keepdims", 1))
    op = ops.ArgMax if n.op == "ArgMax" else ops.ArgMin
    if not n.attr("select_last_index", 0):
        return emit(x, op(axis, keep))
    last = emit(emit(x, ops.Flip(axis)), op(axis, keep))
    size = x.shape[axis]
    return -last + (size - 1)


@onnx_op("CumSum", "CumProd")
def _scan(n: Node) -> Tensor:
    x = n.t(0)
    axis = n.place(n.scalar(1), x.ndim)
    op = ops.CumSum if n.op == "CumSum" else ops.CumProd
    return emit(x, op(axis, bool(n.attr("reverse", 0)), bool(n.attr("exclusive", 0))))


@onnx_op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(n: Node) -> Tensor:
    """Before opset 13 the axes from ``axis`` on are one."""
    x = n.t(0)
    axis = n.axis(x.ndim, -1 if n.version >= 13 else 1)
    if n.version < 13:
        flat = x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))
        return _softmax_along(n, flat, 1).reshape(*x.shape)
    return _softmax_along(n, x, axis)


def _softmax_along(n: Node, x: Tensor, axis: int) -> Tensor:
    if n.op == "Softmax" and x.dtype is DType.f16:  # rounded at each step, as the body that the specification gives
        e = emit(x - emit(x, ops.ReduceMax((axis,), True)), ops.Exp())
        return e / emit(e, ops.ReduceSum((axis,), True))
    if n.op == "Softmax":
        return emit(x, ops.Softmax(axis))
    if n.op == "LogSoftmax":
        return emit(x, ops.LogSoftmax(axis))
    best = emit(x, ops.ArgMax(axis, False))
    return emit(best, ops.OneHot(x.shape[axis], x.dtype)).movedim(-1, axis)


@onnx_op("TopK")
def _top_k(n: Node) -> list[Tensor]:
    x = n.t(0)
    axis = n.axis(x.ndim, -1)
    k = n.attr("k") if n.version < 10 else n.dims(1)[0]
    if isinstance(k, int) and k == 0:
        empty = x.narrow(axis, 0, 0)
        return [empty, empty.to(DType.i64)]
    return n.many(ops.TopK(k, axis, bool(n.attr("largest", 1))), x)


@onnx_op("LpNormalization")
def _lp_normalization(n: Node) -> Tensor:
    x = widened(n.t(0))
    axis, p = n.axis(x.ndim, -1), n.attr("p", 2)
    if p == 2:
        size = (x * x).sum(axis, True).sqrt()
    elif p == 1:
        size = x.abs().sum(axis, True)
    else:
        raise Refused(f"the norm with p = {p}", broken=True)
    return where(size == 0.0, x * 0.0, x / size).to(n.t(0).dtype)


@onnx_op("Det")
def _det(n: Node) -> Tensor:
    """Elimination with pivoting, one column after the other; of matrices of a constant size."""
    x = n.t(0)
    size = n.whole(x.shape[-1], "the size of the matrices")
    if size > 16:
        raise Refused(f"the determinant of matrices of size {size}", "a size of at most 16")
    return determinant(x)
