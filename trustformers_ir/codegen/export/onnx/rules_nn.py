"""Products, convolutions, norms, rotary embeddings and attention as ONNX nodes."""

from __future__ import annotations

import math

import numpy as np

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.onnx.emitter import ELEMENTS, Emitter, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops.nn import normalised_axes
from trustformers_ir.ir.types import ROW_MAJOR


def widened(e: Emitter, v: Value) -> tuple[str, DType]:
    """A value in a dtype whose sums keep their digits."""
    dtype = v.type.dtype
    wide = DType.f32 if dtype in HALVES else dtype
    return e.cast(e.value(v), dtype, wide), wide


@rule(ops.MatMul)
def _matmul(e: Emitter, o: Operation) -> str:
    return e("MatMul", e.operand(o, 0), e.operand(o, 1))


@rule(ops.Linear)
def _linear(e: Emitter, o: Operation) -> str:
    """``x @ weight.T + bias``: a weight is stored as ``[terms, outputs]``, so that nothing is transposed when it runs."""
    x, weight, bias = o.operands
    assert x is not None and weight is not None
    if weight.type.layout != ROW_MAJOR:
        raise Unsupported("its weight is packed")
    y = e("MatMul", e.value(x), e.cast(transposed(e, weight), weight.type.dtype, x.type.dtype))
    return y if bias is None else e("Add", y, e.value(bias))


def transposed(e: Emitter, v: Value) -> str:
    """The transpose of a matrix: of a weight, as it is stored."""
    found = e.weight_of(v)
    if found is not None:
        return e.weight(found[0], transposed=True, dtype=found[1])
    rank = v.type.rank
    return e("Transpose", e.value(v), perm=[*range(rank - 2), rank - 1, rank - 2])


@rule(ops.Einsum)
def _einsum(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.Einsum)
    if "..." in o.op.equation and len({v.type.rank for v in o.inputs}) > 1:
        raise Unsupported("axes of an ellipsis are of different number")
    return e("Einsum", *(e.value(v) for v in o.inputs), equation=o.op.equation)


@rule(ops.Conv1d, ops.Conv2d)
def _conv(e: Emitter, o: Operation) -> str:
    op = o.op
    assert isinstance(op, (ops.Conv1d, ops.Conv2d))
    if isinstance(op, ops.Conv1d):
        strides, dilations, pads = [op.stride], [op.dilation], list(op.padding)
    else:
        top, bottom, left, right = op.padding
        strides, dilations, pads = list(op.stride), list(op.dilation), [top, left, bottom, right]
    given = [None if v is None else e.value(v) for v in o.operands]
    return e("Conv", *given, strides=strides, dilations=dilations, pads=pads, group=op.groups)


@rule(ops.LayerNorm)
def _layer_norm(e: Emitter, o: Operation) -> str:
    assert isinstance(o.op, ops.LayerNorm)
    x, weight, bias = o.operands
    assert x is not None
    axes = normalised_axes(*o.operand_types[1:])
    row = [d for d in x.type.shape[-axes:] if isinstance(d, int)]
    if weight is None and len(row) < axes:
        raise Unsupported("it has no weight, and rows whose length is not known")
    scale = e.constant(np.ones(row), x.type.dtype) if weight is None else e.value(weight)
    if x.type.dtype is not DType.f64:
        shift = None if bias is None else e.value(bias)
        return e("LayerNormalization", e.value(x), scale, shift, axis=-axes, epsilon=o.op.eps)
    last = e.constant(np.arange(-axes, 0), DType.i64)  # LayerNormalization computes in f32
    off = e("Sub", e.value(x), e("ReduceMean", e.value(x), last, keepdims=1))
    variance = e("ReduceMean", e("Mul", off, off), last, keepdims=1)
    y = e("Mul", e("Div", off, e("Sqrt", e("Add", variance, e.constant(o.op.eps, DType.f64)))), scale)
    return y if bias is None else e("Add", y, e.value(bias))


@rule(ops.RmsNorm)
def _rms_norm(e: Emitter, o: Operation) -> str:
    """Zhang and Sennrich 2019; computed in f32 where x has 16 bits, as the definition is rounded once."""
    assert isinstance(o.op, ops.RmsNorm)
    x, weight = o.operands
    assert x is not None
    axes = normalised_axes(o.operand_types[1])
    given, wide = widened(e, x)
    square = e("ReduceMean", e("Mul", given, given), e.constant(np.arange(-axes, 0), DType.i64), keepdims=1)
    y = e("Div", given, e("Sqrt", e("Add", square, e.constant(o.op.eps, wide))))
    if weight is not None:
        scale, _ = widened(e, weight)
        y = e("Mul", y, e("Add", scale, e.constant(o.op.offset, wide)) if o.op.offset else scale)
    return e.cast(y, wide, x.type.dtype)


@rule(ops.Rope)
def _rope(e: Emitter, o: Operation) -> str:
    """Su et al. 2021: ``(a, b)`` to ``(a cos - b sin, b cos + a sin)``, for neighbours or for the halves of what turns."""
    assert isinstance(o.op, ops.Rope)
    x, cos, sin = o.inputs
    features, half = x.type.shape[-1], cos.type.shape[-1]
    if not isinstance(half, int) or not isinstance(features, int):
        raise Unsupported("the number of features is not known")
    given, wide = widened(e, x)
    c, s = (e.cast(x, narrow, wide) for x, narrow in (widened(e, cos), widened(e, sin)))
    last = e.constant([-1], DType.i64)

    def part(v: str, start: int, stop: int) -> str:
        return e("Slice", v, e.constant([start], DType.i64), e.constant([stop], DType.i64), last)

    if o.op.interleaved:
        turns = part(given, 0, 2 * half) if features > 2 * half else given
        pairs = e.reshape(turns, (*x.type.shape[:-1], 2 * half), (*x.type.shape[:-1], half, 2))
        a, b = (e("Squeeze", part(pairs, n, n + 1), last) for n in (0, 1))
    else:
        a, b = part(given, 0, half), part(given, half, 2 * half)
    first = e("Sub", e("Mul", a, c), e("Mul", b, s))
    second = e("Add", e("Mul", b, c), e("Mul", a, s))
    if o.op.interleaved:
        both = e("Concat", e("Unsqueeze", first, last), e("Unsqueeze", second, last), axis=-1)
        turned = [e.reshape(both, (*x.type.shape[:-1], half, 2), (*x.type.shape[:-1], 2 * half))]
    else:
        turned = [first, second]
    rest = [part(given, 2 * half, features)] if features > 2 * half else []
    y = e("Concat", *turned, *rest, axis=-1) if len(turned) + len(rest) > 1 else turned[0]
    return e.cast(y, wide, x.type.dtype)


@rule(ops.Attention)
def _attention(e: Emitter, o: Operation) -> str:
    """Vaswani et al. 2017, section 3.2.1. A query that sees no key gives zeros: the softmax of its row is even, so its result is put to 0 then. (To
    put weights to 0 would take ONNX Runtime longer: there are more of them than results.)"""
    op = o.op
    assert isinstance(op, ops.Attention)
    q, k, v, mask, bias = o.operands
    assert q is not None and k is not None and v is not None
    batch, heads, queries, features = q.type.shape
    kv_heads, keys, values = k.type.shape[1], k.type.shape[2], v.type.shape[3]
    group = heads // kv_heads
    dtype = q.type.dtype
    key, value = e.value(k), e.value(v)
    scores_shape = (batch, heads, queries, keys)
    if group == 1:
        dots = e("MatMul", e.value(q), e("Transpose", key, perm=[0, 1, 3, 2]))
    else:  # queries of a group behind each other, so that no key is repeated
        rows = e.reshape(e.value(q), q.type.shape, (batch, kv_heads, group * queries, features))
        dots = e("MatMul", rows, e("Transpose", key, perm=[0, 1, 3, 2]))
        dots = e.reshape(dots, (batch, kv_heads, group * queries, keys), scores_shape)
    if op.scale is None and not isinstance(features, int):
        raise Unsupported("the number of features is not known")
    scale = op.scale if op.scale is not None else 1 / math.sqrt(features)  # type: ignore[arg-type]
    scores = e("Mul", dots, e.constant(scale, dtype))
    if op.softcap is not None:
        cap = e.constant(op.softcap, dtype)
        scores = e("Mul", e("Tanh", e("Div", scores, cap)), cap)
    if bias is not None:
        scores = e("Add", scores, e.cast(e.value(bias), bias.type.dtype, dtype))
    seen, some = _seen(e, op, queries, keys, None if mask is None else e.value(mask))
    if seen is not None:
        scores = e("Where", seen, scores, e.constant(np.finfo(np.float32).min if dtype is not DType.f16 else -65504.0, dtype))
    weights = e("Softmax", scores, axis=-1)
    if group == 1:
        found = e("MatMul", weights, value)
    else:
        rows = e.reshape(weights, scores_shape, (batch, kv_heads, group * queries, keys))
        found = e.reshape(e("MatMul", rows, value), (batch, kv_heads, group * queries, values), (batch, heads, queries, values))
    return found if some is None else e("Where", some, found, e.constant(0.0, dtype))


def _seen(e: Emitter, op: ops.Attention, queries: object, keys: object, mask: str | None) -> tuple[str | None, str | None]:
    """Which key each query sees, and whether it sees any; None for all."""
    conditions = [] if mask is None else [mask]
    if op.causal or op.window is not None:

        def row(size: object) -> str:
            end = e("Squeeze", e.dim(size), e.constant([0], DType.i64))  # type: ignore[arg-type]
            return e("Range", e.constant(0, DType.i64), end, e.constant(1, DType.i64))

        behind = e("Sub", e.dim(keys), e.dim(queries))  # type: ignore[arg-type]
        position = e("Unsqueeze", e("Add", row(queries), behind), e.constant([1], DType.i64))
        key = row(keys)
        if op.causal:
            conditions.append(e("LessOrEqual", key, position))
        if op.window is not None:
            conditions.append(e("Greater", key, e("Sub", position, e.constant([op.window], DType.i64))))
    out: str | None = None
    for c in conditions:
        out = c if out is None else e("And", out, c)
    if out is None:
        return None, None
    count = e("ReduceSum", e("Cast", out, to=ELEMENTS[DType.i32]), e.constant([-1], DType.i64), keepdims=1)
    return out, e("Greater", count, e.constant(0, DType.i32))


@rule(ops.ExpertMatMul)
def _expert_matmul(e: Emitter, o: Operation) -> str:
    """The matrix of each row is gathered: right, but a matrix for each row is in memory then."""
    x, weight, experts = o.inputs
    chosen = e("Gather", e.value(weight), e.value(experts), axis=0)  # [..., k, n]
    rows = e("Unsqueeze", e.value(x), e.constant([-2], DType.i64))
    return e("Squeeze", e("MatMul", rows, chosen), e.constant([-2], DType.i64))
