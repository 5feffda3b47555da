"""Data movement, reductions, scans and reads at computed positions in MIL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.emitter import MOST_AXES, STORED, WORDS, Emitter, rule
from trustformers_ir.codegen.export.coreml.rules_elementwise import whole
from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op

REDUCTIONS: dict[type[Op], str] = {
    ops.ReduceSum: "reduce_sum", ops.ReduceMean: "reduce_mean", ops.ReduceProd: "reduce_prod", ops.ReduceMax: "reduce_max",
    ops.ReduceMin: "reduce_min", ops.ReduceLogSumExp: "reduce_log_sum_exp",
}  # fmt: skip
_MODES = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}


@rule(ops.Constant)
def _constant(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Constant)
    return e.constant(o.op.value.array, o.op.value.dtype)


def row(e: Emitter, size: Any) -> Any:
    """``i32[size]``: 0, 1, 2, ..."""
    if isinstance(size, int):
        return e.constant(np.arange(size), DType.i32)
    return e("range_1d", end=e.scalar(size), start=np.int32(0), step=np.int32(1))


@rule(ops.Iota)
def _iota(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Iota)
    return e.cast(row(e, o.op.size), DType.i32, o.op.dtype)


@rule(ops.DimSize)
def _dim(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.DimSize)
    x = e.scalar(o.op.size)
    return e.constant(o.op.size, o.op.dtype) if isinstance(o.op.size, int) else e.cast(x, DType.i32, o.op.dtype)


@rule(ops.Reshape)
def _reshape(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Reshape)
    return e.reshape(e.operand(o, 0), o.inputs[0].type.shape, o.op.shape)


@rule(ops.Transpose)
def _transpose(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Transpose)
    shape, perm = o.inputs[0].type.shape, list(o.op.perm)
    x = e.operand(o, 0)
    if len(shape) <= MOST_AXES:
        return e("transpose", x=x, perm=perm) if perm != sorted(perm) else x
    runs: list[list[int]] = []  # axes that stay side by side are one, those of size 1 none
    there = [axis for axis, d in enumerate(shape) if d != 1]
    for axis in (a for a in perm if a in there):
        if runs and there.index(axis) == there.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if len(runs) > MOST_AXES:
        raise Unsupported(f"arrays have at most {MOST_AXES} axes")
    order = sorted(runs)
    x = e.reshape(x, shape, [math.prod([shape[a] for a in run], start=1) for run in order])
    x = e("transpose", x=x, perm=[order.index(run) for run in runs]) if runs != order else x
    return e.reshape(x, [math.prod([shape[a] for a in run], start=1) for run in runs], o.result.type.shape)


@rule(ops.Expand)
def _expand(e: Emitter, o: Operation) -> Any:
    x = o.inputs[0]
    return e.spread(e.value(x), x.type.shape, o.result.type.shape)


@rule(ops.Concat)
def _concat(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Concat)
    dtype = o.result.type.dtype
    y = e("concat", values=[whole(e, e.value(v), dtype) for v in o.inputs], axis=o.op.axis)
    return e("cast", x=y, dtype="bool") if dtype is DType.bool else y


def part(e: Emitter, x: Any, rank: int, axis: int, start: Any, stop: Any, step: int = 1) -> Any:
    """What is between two positions of an axis; these are dims."""
    axis %= rank
    others = [a != axis for a in range(rank)]

    def ends(d: Any) -> Any:
        return e.shape([d if a == axis else 0 for a in range(rank)])

    strides = [step if a == axis else 1 for a in range(rank)]
    return e("slice_by_index", x=x, begin=ends(start), end=ends(stop), stride=strides, begin_mask=others, end_mask=others)


@rule(ops.Slice)
def _slice(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Slice)
    if o.op.step < 0:
        raise Unsupported("it goes backwards")
    return part(e, e.operand(o, 0), o.result.type.rank, o.op.axis, o.op.start, o.op.stop, o.op.step)


@rule(ops.Flip)
def _flip(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Flip)
    x, dtype = e.operand(o, 0), o.result.type.dtype
    y = e("reverse", x=whole(e, x, dtype), axes=[o.op.axis % o.result.type.rank])
    return e("cast", x=y, dtype="bool") if dtype is DType.bool else y


@rule(ops.Pad)
def _pad(e: Emitter, o: Operation) -> Any:
    """``pad`` of MIL takes floats; other numbers, which f32 may not hold, are put together out of pieces."""
    assert isinstance(o.op, ops.Pad)
    if o.op.mode is not ops.PadMode.CONSTANT:
        return _pad_mirrored(e, o)
    x, dtype, source = e.operand(o, 0), o.result.type.dtype, list(o.inputs[0].type.shape)
    x = whole(e, x, dtype)
    number = (np.int32 if dtype is DType.bool else STORED[dtype])(o.op.value)
    for axis, (low, high) in enumerate(zip(o.op.low, o.op.high, strict=True)):
        pieces = []
        for n in (low, high):
            shape = [n if a == axis else d for a, d in enumerate(source)]
            pieces.append(None if n == 0 else e("fill", shape=e.shape(shape), value=number))
        if pieces != [None, None]:
            x = e("concat", values=[p for p in (pieces[0], x, pieces[1]) if p is not None], axis=axis)
            source[axis] = source[axis] + low + high
    return e("cast", x=x, dtype="bool") if dtype is DType.bool else x


def _pad_mirrored(e: Emitter, o: Operation) -> Any:
    """An axis at a time: the edge, or what is behind it in reverse, before and behind."""
    assert isinstance(o.op, ops.Pad)
    x, rank, edge, source = e.operand(o, 0), o.result.type.rank, o.op.mode is ops.PadMode.EDGE, list(o.inputs[0].type.shape)
    for axis, (low, high) in enumerate(zip(o.op.low, o.op.high, strict=True)):
        if not isinstance(low, int) or not isinstance(high, int):
            raise Unsupported("how much is not known before it runs")
        size = source[axis]
        pieces = [x]
        if low:
            first = part(e, x, rank, axis, 0, 1) if edge else part(e, x, rank, axis, 1, 1 + low)
            pieces.insert(0, _repeated(e, first, rank, axis, low) if edge else e("reverse", x=first, axes=[axis]))
        if high:
            last = part(e, x, rank, axis, size - 1, size) if edge else part(e, x, rank, axis, size - 1 - high, size - 1)
            pieces.append(_repeated(e, last, rank, axis, high) if edge else e("reverse", x=last, axes=[axis]))
        x = e("concat", values=pieces, axis=axis) if len(pieces) > 1 else x
        source[axis] = size + low + high
    return x


def _repeated(e: Emitter, x: Any, rank: int, axis: int, count: int) -> Any:
    return e("tile", x=x, reps=[count if a == axis else 1 for a in range(rank)])


@dataclass(frozen=True)
class Windows:
    """What each window has of an array, not put together: too many axes. ``at``: of each axis from ``lead`` on, the positions
    ``i32[places, size]``."""

    array: Any
    lead: int
    at: tuple[Any, ...]

    def reduced(self, e: Emitter, o: Operation, kind: str) -> Any:
        """An axis after the other: of windows, these are the same as all at once. Sums of 16-bit numbers are rounded once."""
        assert isinstance(o.op, ops.ReduceOp)
        dtype = o.result.type.dtype
        wide = DType.f32 if dtype is DType.f16 else dtype
        x = e.cast(self.array, dtype, wide)
        for axis, at in enumerate(self.at, self.lead):
            x = e(kind, x=e("gather", x=x, indices=at, axis=axis), axes=[axis + 1], keep_dims=False)
        return e.cast(x, wide, dtype)


# --- reductions ----------------------------------------------------------------------------------------------------------


@rule(*REDUCTIONS)
def _reduce(e: Emitter, o: Operation) -> Any:
    """Sums of 16-bit numbers are rounded once."""
    assert isinstance(o.op, ops.ReduceOp)
    x, dtype = e.operand(o, 0), o.result.type.dtype
    if not o.op.axes:
        return x
    if isinstance(x, Windows):
        return x.reduced(e, o, REDUCTIONS[type(o.op)])
    wide = DType.f32 if dtype is DType.f16 else dtype
    y = e(REDUCTIONS[type(o.op)], x=e.cast(x, dtype, wide), axes=list(o.op.axes), keep_dims=o.op.keepdims)
    return e.cast(y, wide, dtype)


@rule(ops.ReduceAny, ops.ReduceAll)
def _reduce_bool(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.ReduceOp)
    x = e.operand(o, 0)
    if not o.op.axes:
        return x
    kind = "reduce_max" if isinstance(o.op, ops.ReduceAny) else "reduce_min"
    return e("cast", x=e(kind, x=e("cast", x=x, dtype="int32"), axes=list(o.op.axes), keep_dims=o.op.keepdims), dtype="bool")


@rule(ops.ReduceVar, ops.ReduceStd)
def _reduce_var(e: Emitter, o: Operation) -> Any:
    """Two passes; sums of 16-bit numbers in f32."""
    assert isinstance(o.op, ops.ReduceVar)
    x, dtype = o.inputs[0], o.result.type.dtype
    given, axes = e.cast(e.value(x), dtype, DType.f32), list(o.op.axes)
    off = e("sub", x=given, y=e("reduce_mean", x=given, axes=axes, keep_dims=True) if axes else given)
    squares = e("mul", x=off, y=off)
    total = e("reduce_sum", x=squares, axes=axes, keep_dims=o.op.keepdims) if axes else squares
    count: Any = 1
    for a in axes:
        count = count * x.type.shape[a]
    if isinstance(count, int):
        number: Any = np.float32(max(count - o.op.correction, 0))
    else:
        number = e("maximum", x=e("sub", x=e.scalar(count), y=np.int32(o.op.correction)), y=np.int32(0))
        number = e("cast", x=number, dtype="fp32")
    y = e("real_div", x=total, y=number)
    return e.cast(e("sqrt", x=y) if isinstance(o.op, ops.ReduceStd) else y, DType.f32, dtype)


@rule(ops.ArgMax, ops.ArgMin)
def _arg(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.ArgReduceOp)
    kind = "reduce_argmax" if isinstance(o.op, ops.ArgMax) else "reduce_argmin"
    return e(kind, x=whole(e, e.operand(o, 0), o.inputs[0].type.dtype), axis=o.op.axis, keep_dims=o.op.keepdims)


@rule(ops.TopK)
def _top_k(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.TopK)
    if not isinstance(o.op.k, int):
        raise Unsupported("how many is not known before it runs")
    return e("topk", x=e.operand(o, 0), k=o.op.k, axis=o.op.axis, ascending=not o.op.largest)


@rule(ops.CumSum)
def _cumsum(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.CumSum)
    dtype = o.result.type.dtype
    wide = DType.f32 if dtype is DType.f16 else dtype
    given = e.cast(e.operand(o, 0), o.inputs[0].type.dtype, wide)
    return e.cast(e("cumsum", x=given, axis=o.op.axis % o.result.type.rank, exclusive=o.op.exclusive, reverse=o.op.reverse), wide, dtype)


@rule(ops.Softmax)
def _softmax(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Softmax)
    return e("softmax", x=e.operand(o, 0), axis=o.op.axis)


@rule(ops.LogSoftmax)
def _log_softmax(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.LogSoftmax)
    x, dtype = e.operand(o, 0), o.result.type.dtype
    x = e.cast(x, dtype, DType.f32)
    off = e("sub", x=x, y=e("reduce_max", x=x, axes=[o.op.axis], keep_dims=True))
    total = e("log", x=e("reduce_sum", x=e("exp", x=off), axes=[o.op.axis], keep_dims=True), epsilon=np.float32(0))
    return e.cast(e("sub", x=off, y=total), DType.f32, dtype)


# --- computed positions --------------------------------------------------------------------------------------------------


def positions(e: Emitter, v: Value, size: Any) -> Any:
    """Positions along an axis of a size, counted from its beginning: MIL counts none from the end."""
    i = e.value(v)
    if i.val is not None and (np.asarray(i.val) >= 0).all():
        return i
    return e("select", cond=e("less", x=i, y=np.int32(0)), a=e("add", x=i, y=e.scalar(size)), b=i)


def _numbers(e: Emitter, o: Operation, number: int) -> Any:
    return whole(e, e.operand(o, number), o.inputs[number].type.dtype)


def _back(e: Emitter, o: Operation, y: Any) -> Any:
    return e("cast", x=y, dtype="bool") if o.result.type.dtype is DType.bool else y


@rule(ops.Gather)
def _gather(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.Gather)
    x, i = o.inputs
    return _back(e, o, e("gather", x=_numbers(e, o, 0), indices=positions(e, i, x.type.shape[o.op.axis]), axis=o.op.axis))


@rule(ops.GatherElements)
def _gather_elements(e: Emitter, o: Operation) -> Any:
    """``gather_along_axis`` reads as far as the positions go along the other axes, as it should; those it wants of equal length."""
    assert isinstance(o.op, ops.GatherElements)
    x, i = o.inputs
    axis, rank = o.op.axis % x.type.rank, x.type.rank
    given = _numbers(e, o, 0)
    for a in range(rank):
        if a != axis and x.type.shape[a] != i.type.shape[a]:
            given = part(e, given, rank, a, 0, i.type.shape[a])
    return _back(e, o, e("gather_along_axis", x=given, indices=positions(e, i, x.type.shape[axis]), axis=axis))


@rule(ops.GatherNd)
def _gather_nd(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.GatherNd)
    x, i = o.inputs
    return _back(e, o, e("gather_nd", x=_numbers(e, o, 0), indices=_places(e, x, i, o.op.batch_dims), batch_dims=o.op.batch_dims))


def _places(e: Emitter, x: Value, i: Value, batch: int) -> Any:
    """Positions along several axes, counted from their beginnings."""
    count = i.type.shape[-1]
    if not isinstance(count, int) or count == 0:
        raise Unsupported("its indices name no place")
    sizes = e.shape(x.type.shape[batch : batch + count])
    given = e.value(i)
    return e("select", cond=e("less", x=given, y=np.int32(0)), a=e("add", x=given, y=sizes), b=given)


@rule(ops.ScatterElements)
def _scatter_elements(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.ScatterElements)
    x, i, _ = o.inputs
    axis = o.op.axis % x.type.rank
    if any(a != axis and x.type.shape[a] != i.type.shape[a] for a in range(x.type.rank)):
        raise Unsupported("it writes to a part of an axis")
    at, mode = positions(e, i, x.type.shape[axis]), _MODES[o.op.reduce.value]
    return _back(e, o, e("scatter_along_axis", data=_numbers(e, o, 0), indices=at, updates=_numbers(e, o, 2), axis=axis, mode=mode))


@rule(ops.ScatterNd)
def _scatter_nd(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.ScatterNd)
    x, i, _ = o.inputs
    at, mode = _places(e, x, i, 0), _MODES[o.op.reduce.value]
    return _back(e, o, e("scatter_nd", data=_numbers(e, o, 0), indices=at, updates=_numbers(e, o, 2), mode=mode))


@rule(ops.Embedding)
def _embedding(e: Emitter, o: Operation) -> Any:
    table, ids = o.inputs
    return e("gather", x=e.value(table), indices=positions(e, ids, table.type.shape[0]), axis=0)


@rule(ops.OneHot)
def _one_hot(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.OneHot)
    hit = e("equal", x=e("expand_dims", x=e.operand(o, 0), axes=[-1]), y=row(e, o.op.depth))
    return hit if o.op.dtype is DType.bool else e("cast", x=hit, dtype=WORDS[STORED[o.op.dtype]])
