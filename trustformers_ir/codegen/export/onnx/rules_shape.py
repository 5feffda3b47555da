"""Data movement, reductions, scans and reads at computed positions as ONNX nodes."""

from __future__ import annotations

import numpy as np

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.onnx.emitter import ELEMENTS, Emitter, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op

REDUCTIONS: dict[type[Op], str] = {
    ops.ReduceSum: "ReduceSum", ops.ReduceMean: "ReduceMean", ops.ReduceProd: "ReduceProd", ops.ReduceMax: "ReduceMax",
    ops.ReduceMin: "ReduceMin", ops.ReduceLogSumExp: "ReduceLogSumExp",
}  # fmt: skip


@rule(ops.Constant)
def _constant(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Constant)
    return e.constant(o.op.value.array, o.op.value.dtype)


@rule(ops.Iota)
def _iota(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Iota)
    size, dtype = o.op.size, o.op.dtype
    if isinstance(size, int):
        return e.constant(np.arange(size), dtype)
    end = e("Squeeze", e.dim(size), e.constant([0], DType.i64))
    return e.cast(e("Range", e.constant(0, DType.i64), end, e.constant(1, DType.i64)), DType.i64, dtype)


@rule(ops.DimSize)
def _dim(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.DimSize)
    return e.cast(e("Squeeze", e.dim(o.op.size), e.constant([0], DType.i64)), DType.i64, o.op.dtype)


@rule(ops.Reshape)
def _reshape(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Reshape)
    return e.reshape(e.operand(o, 0), o.inputs[0].type.shape, o.op.shape)


@rule(ops.Transpose)
def _transpose(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Transpose)
    if not o.op.perm:
        return e("Identity", e.operand(o, 0))
    return e("Transpose", e.operand(o, 0), perm=list(o.op.perm))


@rule(ops.Expand)
def _expand(e: Emitter, o: Operation) -> str:
    return e("Expand", e.operand(o, 0), e.shape(o.result.type.shape))


@rule(ops.Concat)
def _concat(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Concat)
    return e("Concat", *(e.value(v) for v in o.inputs), axis=o.op.axis)


@rule(ops.Slice)
def _slice(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Slice)
    axis = e.constant([o.op.axis % o.result.type.rank], DType.i64)
    return e("Slice", e.operand(o, 0), e.dim(o.op.start), e.dim(o.op.stop), axis, e.constant([o.op.step], DType.i64))


@rule(ops.Flip)
def _flip(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Flip)
    ends = (e.constant([n], DType.i64) for n in (-1, -(2**62), o.op.axis % o.result.type.rank, -1))
    return e("Slice", e.operand(o, 0), *ends)


@rule(ops.Pad)
def _pad(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Pad)
    value = e.like(o.op.value, o.result) if o.op.mode is ops.PadMode.CONSTANT else None
    return e("Pad", e.operand(o, 0), e.shape((*o.op.low, *o.op.high)), value, mode=o.op.mode.value)


# --- reductions ----------------------------------------------------------------------------------------------------------


def axes_of(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ReduceOp)
    return e.constant(np.array(o.op.axes, np.int64), DType.i64)


@rule(*REDUCTIONS)
def _reduce(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ReduceOp)
    x = e.operand(o, 0)
    if not o.op.axes:
        return e("Identity", x)
    dtype = o.result.type.dtype
    wide = DType.f32 if dtype.is_float and dtype.bits < 32 else dtype  # sums of 16-bit numbers are rounded once
    return e.cast(e(REDUCTIONS[type(o.op)], e.cast(x, dtype, wide), axes_of(e, o), keepdims=int(o.op.keepdims)), wide, dtype)


@rule(ops.ReduceAny, ops.ReduceAll)
def _reduce_bool(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ReduceOp)
    x = e.operand(o, 0)
    if not o.op.axes:
        return e("Identity", x)
    kind = "ReduceMax" if isinstance(o.op, ops.ReduceAny) else "ReduceMin"
    if e.opset >= 20:
        return e(kind, x, axes_of(e, o), keepdims=int(o.op.keepdims))
    whole = e(kind, e.cast(x, DType.bool, DType.i32), axes_of(e, o), keepdims=int(o.op.keepdims))
    return e.cast(whole, DType.i32, DType.bool)


@rule(ops.ReduceVar, ops.ReduceStd)
def _reduce_var(e: Emitter, o: Operation) -> str:
    """Two passes; sums of 16-bit numbers in f32."""
    assert isinstance(o.op, ops.ReduceVar)
    x, dtype = o.inputs[0], o.result.type.dtype
    wide = DType.f32 if dtype in (DType.f16, DType.bf16) else dtype
    given, axes, keep = e.cast(e.operand(o, 0), dtype, wide), axes_of(e, o), int(o.op.keepdims)
    if not o.op.axes:  # of one element each
        off = e("Sub", given, given)
        return e.cast(e("Div", off, e.constant(max(1 - o.op.correction, 0), wide)), wide, dtype)
    off = e("Sub", given, e("ReduceMean", given, axes, keepdims=1))
    count = e("ReduceProd", e.shape([x.type.shape[a] for a in o.op.axes]), e.constant([0], DType.i64), keepdims=0)
    count = e("Max", e("Sub", count, e.constant(o.op.correction, DType.i64)), e.constant(0, DType.i64))
    found = e("Div", e("ReduceSum", e("Mul", off, off), axes, keepdims=keep), e.cast(count, DType.i64, wide))
    return e.cast(e("Sqrt", found) if isinstance(o.op, ops.ReduceStd) else found, wide, dtype)


@rule(ops.ArgMax, ops.ArgMin)
def _arg(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ArgReduceOp)
    return e("ArgMax" if isinstance(o.op, ops.ArgMax) else "ArgMin", e.operand(o, 0), axis=o.op.axis, keepdims=int(o.op.keepdims))


@rule(ops.TopK)
def _top_k(e: Emitter, o: Operation) -> tuple[str, ...]:
    assert isinstance(o.op, ops.TopK)
    return e.several("TopK", 2, e.operand(o, 0), e.dim(o.op.k), axis=o.op.axis, largest=int(o.op.largest), sorted=1)


@rule(ops.CumSum)
def _cumsum(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.CumSum)
    flags = {"reverse": int(o.op.reverse), "exclusive": int(o.op.exclusive)}
    return e("CumSum", e.operand(o, 0), e.constant(o.op.axis % o.result.type.rank, DType.i64), **flags)


@rule(ops.Softmax, ops.LogSoftmax)
def _softmax(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, (ops.Softmax, ops.LogSoftmax))
    return e("Softmax" if isinstance(o.op, ops.Softmax) else "LogSoftmax", e.operand(o, 0), axis=o.op.axis)


# --- computed positions --------------------------------------------------------------------------------------------------


def index(e: Emitter, o: Operation, number: int) -> str:
    """Positions in a dtype that ONNX takes."""
    v = o.inputs[number]
    return e.value(v) if v.type.dtype in (DType.i32, DType.i64) else e.cast(e.value(v), v.type.dtype, DType.i64)


@rule(ops.Gather)
def _gather(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Gather)
    return e("Gather", e.operand(o, 0), index(e, o, 1), axis=o.op.axis)


@rule(ops.GatherElements)
def _gather_elements(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.GatherElements)
    return e("GatherElements", e.operand(o, 0), index(e, o, 1), axis=o.op.axis)


@rule(ops.GatherNd)
def _gather_nd(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.GatherNd)
    return e("GatherND", e.operand(o, 0), e.cast(e.operand(o, 1), o.inputs[1].type.dtype, DType.i64), batch_dims=o.op.batch_dims)


# Where nothing is reduced ONNX promises no order for repeated positions; here the last one counts, as ONNX Runtime has it too.


@rule(ops.ScatterElements)
def _scatter_elements(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ScatterElements)
    return e("ScatterElements", e.operand(o, 0), index(e, o, 1), e.operand(o, 2), axis=o.op.axis, reduction=o.op.reduce.value)


@rule(ops.ScatterNd)
def _scatter_nd(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.ScatterNd)
    if o.inputs[1].type.shape[-1] == 0:
        raise Unsupported("its indices name no place")
    indices = e.cast(e.operand(o, 1), o.inputs[1].type.dtype, DType.i64)
    return e("ScatterND", e.operand(o, 0), indices, e.operand(o, 2), reduction=o.op.reduce.value)


@rule(ops.Embedding)
def _embedding(e: Emitter, o: Operation) -> str:
    return e("Gather", e.operand(o, 0), index(e, o, 1), axis=0)


@rule(ops.OneHot)
def _one_hot(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.OneHot)
    ids = e("Unsqueeze", e.cast(e.operand(o, 0), o.inputs[0].type.dtype, DType.i64), e.constant([-1], DType.i64))
    if isinstance(o.op.depth, int):
        row = e.constant(np.arange(o.op.depth), DType.i64)
    else:
        end = e("Squeeze", e.dim(o.op.depth), e.constant([0], DType.i64))
        row = e("Range", e.constant(0, DType.i64), end, e.constant(1, DType.i64))
    hit = e("Equal", ids, row)
    return hit if o.op.dtype is DType.bool else e("Cast", hit, to=ELEMENTS[o.op.dtype])
