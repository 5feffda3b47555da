"""Pointwise definitions of shape ops: each output element is one input element; only the index changes."""

from __future__ import annotations

import math

from trustformers_ir.codegen.kernel_ir.nodes import Const, Expr, binary, const, select
from trustformers_ir.codegen.lower.definer import Definer, define
from trustformers_ir.codegen.lower.indexing import Index, broadcast_index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType


@define(ops.Reshape)
def _reshape(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = o.inputs[0]
    return d.at(x, d.flat.reshape(index, o.result.type.shape, x.type.shape))


@define(ops.Transpose)
def _transpose(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Transpose)
    source: list[Expr] = [const(0)] * len(index)
    for i, axis in enumerate(o.op.perm):
        source[axis] = index[i]
    return d.at(o.inputs[0], source)


@define(ops.Expand)
def _expand(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    x = o.inputs[0]
    return d.at(x, broadcast_index(index, x.type.shape, o.result.type.shape))


@define(ops.Slice)
def _slice(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Slice)
    axis = o.op.axis % len(index)
    moved = index[axis] * o.op.step + dim_expr(o.op.start)
    return d.at(o.inputs[0], (*index[:axis], moved, *index[axis + 1 :]))


@define(ops.Flip)
def _flip(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Flip)
    x = o.inputs[0]
    axis = o.op.axis % len(index)
    moved = dim_expr(x.type.shape[axis]) - 1 - index[axis]
    return d.at(x, (*index[:axis], moved, *index[axis + 1 :]))


@define(ops.Concat)
def _concat(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Concat)
    axis = o.op.axis % len(index)
    ends: list[Expr] = []
    end: Expr = const(0)
    for x in o.inputs:
        end = end + dim_expr(x.type.shape[axis])
        ends.append(end)
    out: Expr | None = None
    for i in range(len(o.inputs) - 1, -1, -1):
        x = o.inputs[i]
        if x.type.shape[axis] == 0:
            continue
        start = ends[i - 1] if i else const(0)
        element = d.at(x, (*index[:axis], index[axis] - start, *index[axis + 1 :]))
        out = element if out is None else select(index[axis] < ends[i], element, out)
    return Const(0, o.result.type.dtype) if out is None else out


@define(ops.Pad)
def _pad(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Pad)
    x = o.inputs[0]
    source: list[Expr] = []
    inside: Expr | None = None
    for i, low, high, size in zip(index, o.op.low, o.op.high, x.type.shape, strict=True):
        if low == 0 and high == 0:
            source.append(i)
            continue
        n = dim_expr(size)
        moved = i - dim_expr(low)
        if o.op.mode is ops.PadMode.CONSTANT:
            within = binary("and", moved >= 0, moved < n)
            inside = within if inside is None else binary("and", inside, within)
            source.append(moved)
        elif o.op.mode is ops.PadMode.EDGE:
            source.append(binary("min", binary("max", moved, const(0)), n - 1))
        else:  # reflect without repeating the edge: |moved|, then mirrored at n - 1
            from_left = abs(moved)
            source.append((n - 1) - abs((n - 1) - from_left))
    element = d.at(x, source)
    if inside is None:
        return element
    return select(inside, element, _fill(o.op.value, x.type.dtype))


@define(ops.Unfold)
def _unfold(d: Definer, o: Operation, index: Index, result: int) -> Expr:
    assert isinstance(o.op, ops.Unfold)
    x, n = o.inputs[0], len(o.op.windows)
    lead = x.type.rank - n
    source: list[Expr] = list(index[:lead])
    inside: Expr | None = None
    for i, (w, size) in enumerate(zip(o.op.windows, x.type.shape[lead:], strict=True)):
        at = index[lead + i] * w.stride + index[lead + n + i] * w.dilation
        if w.before or w.after:
            at = at - w.before
            within = binary("and", at >= 0, at < dim_expr(size))
            inside = within if inside is None else binary("and", inside, within)
        source.append(at)
    element = d.at(x, source)
    return element if inside is None else select(inside, element, _fill(o.op.value, x.type.dtype))


def _fill(value: float, dtype: DType) -> Const:
    if dtype.is_float or dtype is DType.bool:
        return Const(value if dtype.is_float else bool(value), dtype)
    return Const(int(value) if math.isfinite(value) else (dtype.max if value > 0 else dtype.min), dtype)
