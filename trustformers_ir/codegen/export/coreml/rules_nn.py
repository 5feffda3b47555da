"""Products, convolutions, norms, rotary embeddings and attention in MIL."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.emitter import Emitter, rule
from trustformers_ir.codegen.export.coreml.rules_elementwise import whole
from trustformers_ir.codegen.export.coreml.rules_shape import part, row
from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.nn import normalised_axes
from trustformers_ir.ir.types import ROW_MAJOR


def widened(e: Emitter, v: Value) -> Any:
    """A value in f32, whose sums keep their digits."""
    return e.cast(e.value(v), v.type.dtype, DType.f32)


@rule(ops.MatMul)
def _matmul(e: Emitter, o: Operation) -> Any:
    a, b = o.inputs
    x, y = e.value(a), e.value(b)
    x = e("expand_dims", x=x, axes=[0]) if a.type.rank == 1 else x
    y = e("expand_dims", x=y, axes=[1]) if b.type.rank == 1 else y
    z = e("matmul", x=x, y=y)
    gone = [axis for axis, v in ((-2, a), (-1, b)) if v.type.rank == 1]
    return e("squeeze", x=z, axes=gone) if gone else z


@rule(ops.Linear)
def _linear(e: Emitter, o: Operation) -> Any:
    """``x @ weight.T + bias``: ``linear`` of MIL where it takes it, which is what weights are compressed for."""
    x, weight, bias = o.operands
    assert x is not None and weight is not None
    if weight.type.layout != ROW_MAJOR:
        raise Unsupported("its weight is packed")
    y, matrix = e.value(x), e.cast(e.value(weight), weight.type.dtype, x.type.dtype)
    added = None if bias is None else e.value(bias)
    still = matrix.op is not None and (matrix.op.op_type == "const" or matrix.op.op_type.startswith("constexpr"))
    if still and x.type.rank in (2, 3) and (added is None or added.val is not None):
        return e("linear", x=y, weight=matrix, **({} if added is None else {"bias": added}))
    y = e("expand_dims", x=y, axes=[0]) if x.type.rank == 1 else y
    y = e("matmul", x=y, y=matrix, transpose_y=True)
    y = y if added is None else e("add", x=y, y=added)
    return e("squeeze", x=y, axes=[0]) if x.type.rank == 1 else y


@rule(ops.Conv1d, ops.Conv2d)
def _conv(e: Emitter, o: Operation) -> Any:
    op = o.op
    assert isinstance(op, (ops.Conv1d, ops.Conv2d))
    if not o.result.type.dtype.is_float:
        raise Unsupported("Core ML convolves floats")
    if isinstance(op, ops.Conv1d):
        strides, dilations, pads = [op.stride], [op.dilation], list(op.padding)
    else:
        strides, dilations, pads = list(op.stride), list(op.dilation), list(op.padding)
    x, weight, bias = o.operands
    assert x is not None and weight is not None
    matrix, added = e.value(weight), None if bias is None else e.value(bias)
    inside = added is not None and added.val is not None
    more = {"bias": added} if inside else {}
    y = e(
        "conv", x=e.value(x), weight=matrix, strides=strides, pad_type="custom", pad=pads, dilations=dilations, groups=op.groups, **more
    )  # fmt: skip
    if added is None or inside:
        return y
    return e("add", x=y, y=e("expand_dims", x=added, axes=list(range(1, len(strides) + 1))))


@rule(ops.LayerNorm)
def _layer_norm(e: Emitter, o: Operation) -> Any:
    assert isinstance(o.op, ops.LayerNorm)
    x, weight, bias = o.operands
    assert x is not None
    count = normalised_axes(*o.operand_types[1:])
    axes = list(range(-count, 0))
    parameters = {n: e.value(v) for n, v in (("gamma", weight), ("beta", bias)) if v is not None}
    if all(p.val is not None for p in parameters.values()):
        return e("layer_norm", x=e.value(x), axes=axes, epsilon=e.like(o.op.eps, x), **parameters)
    given = widened(e, x)
    off = e("sub", x=given, y=e("reduce_mean", x=given, axes=axes, keep_dims=True))
    variance = e("reduce_mean", x=e("mul", x=off, y=off), axes=axes, keep_dims=True)
    y = e("real_div", x=off, y=e("sqrt", x=e("add", x=variance, y=np.float32(o.op.eps))))
    y = y if weight is None else e("mul", x=y, y=widened(e, weight))
    y = y if bias is None else e("add", x=y, y=widened(e, bias))
    return e.cast(y, DType.f32, x.type.dtype)


@rule(ops.RmsNorm)
def _rms_norm(e: Emitter, o: Operation) -> Any:
    """Zhang and Sennrich 2019."""
    assert isinstance(o.op, ops.RmsNorm)
    x, weight = o.operands
    assert x is not None
    axes = list(range(-normalised_axes(o.operand_types[1]), 0))
    given = widened(e, x)
    square = e("reduce_mean", x=e("mul", x=given, y=given), axes=axes, keep_dims=True)
    y = e("real_div", x=given, y=e("sqrt", x=e("add", x=square, y=np.float32(o.op.eps))))
    if weight is not None:
        scale = widened(e, weight)
        y = e("mul", x=y, y=e("add", x=scale, y=np.float32(o.op.offset)) if o.op.offset else scale)
    return e.cast(y, DType.f32, x.type.dtype)


@rule(ops.Rope)
def _rope(e: Emitter, o: Operation) -> Any:
    """Su et al. 2021: ``(a, b)`` to ``(a cos - b sin, b cos + a sin)``, for neighbours or for the halves of what turns."""
    assert isinstance(o.op, ops.Rope)
    x, cos, _ = o.inputs
    features, half, rank = x.type.shape[-1], cos.type.shape[-1], x.type.rank
    assert isinstance(half, int) and isinstance(features, int)
    given, c, s = (widened(e, v) for v in o.inputs)
    if o.op.interleaved:
        a, b = (part(e, given, rank, -1, n, 2 * half - 1 + n, 2) for n in (0, 1))
    else:
        a, b = part(e, given, rank, -1, 0, half), part(e, given, rank, -1, half, 2 * half)
    first = e("sub", x=e("mul", x=a, y=c), y=e("mul", x=b, y=s))
    second = e("add", x=e("mul", x=b, y=c), y=e("mul", x=a, y=s))
    if o.op.interleaved:
        if rank + 1 > 5:
            raise Unsupported("arrays have at most 5 axes")
        both = e("stack", values=[first, second], axis=-1)
        turned = [e.reshape(both, (*x.type.shape[:-1], half, 2), (*x.type.shape[:-1], 2 * half))]
    else:
        turned = [first, second]
    rest = [part(e, given, rank, -1, 2 * half, features)] if features > 2 * half else []
    y = e("concat", values=[*turned, *rest], axis=-1) if len(turned) + len(rest) > 1 else turned[0]
    return e.cast(y, DType.f32, x.type.dtype)


@rule(ops.Attention, ops.CachedAttention)
def _attention(e: Emitter, o: Operation) -> Any:
    """Vaswani et al. 2017, section 3.2.1. A query that sees no key gives zeros: weights of keys that are not seen are put to 0 behind the softmax,
    whose row would be even, or NaN, otherwise."""
    op = o.op
    assert isinstance(op, ops.Attention)
    q, k, v, mask, bias, *cached = o.operands
    assert q is not None and k is not None and v is not None
    batch, heads, queries, features = q.type.shape
    kv_heads, keys, values = k.type.shape[1], k.type.shape[2], v.type.shape[3]
    grouped = heads != kv_heads
    whole, rows = (batch, heads, queries, keys), (batch, kv_heads, heads // kv_heads * queries, keys)
    given = e.value(q)
    if op.scale is None and not isinstance(features, int):
        raise Unsupported("the number of features is not known")
    scale = op.scale if op.scale is not None else 1 / math.sqrt(features)  # type: ignore[arg-type]
    given = e("mul", x=given, y=e.like(scale, q))  # before the product, whose sums stay smaller so
    if grouped:  # queries of a group behind each other, so that no key is repeated
        given = e.reshape(given, q.type.shape, (*rows[:3], features))
    scores = e("matmul", x=given, y=e.value(k), transpose_y=True)
    scores = e.reshape(scores, rows, whole) if grouped else scores
    if op.softcap is not None:
        cap = e.like(op.softcap, q)
        scores = e("mul", x=e("tanh", x=e("real_div", x=scores, y=cap)), y=cap)
    if bias is not None:
        scores = e("add", x=scores, y=e.cast(e.value(bias), bias.type.dtype, q.type.dtype))
    start = e("reshape", x=e.value(cached[0]), shape=np.array([-1, 1, 1, 1], np.int32)) if cached and cached[0] is not None else None
    seen = _seen(e, op, queries, keys, None if mask is None else e.value(mask), start)
    if seen is not None:  # in f16 the least number of f32 is minus infinity
        least = -65504.0 if q.type.dtype is DType.f16 else float(np.finfo(np.float32).min)
        scores = e("select", cond=seen, a=scores, b=e.like(least, q))
    weights = e("softmax", x=scores, axis=-1)
    if seen is not None:
        weights = e("select", cond=seen, a=weights, b=e.like(0, q))
    weights = e.reshape(weights, whole, rows) if grouped else weights
    y = e("matmul", x=weights, y=e.value(v))
    return e.reshape(y, (*rows[:3], values), (batch, heads, queries, values)) if grouped else y


def _seen(e: Emitter, op: ops.Attention, queries: Any, keys: Any, mask: Any, start: Any) -> Any:
    """Which key each query sees; None for all. ``start``: where the first query of each text stands, ``[batch, 1, 1, 1]``; None: so that the last
    one stands at the last key."""
    conditions = [] if mask is None else [mask]
    if op.causal or op.window is not None:
        position, key = e("expand_dims", x=row(e, queries), axes=[1]), row(e, keys)
        if start is not None:
            position = e("add", x=position, y=start)
        elif keys - queries != 0:
            position = e("add", x=position, y=e.scalar(keys - queries))
        if op.causal:
            conditions.append(e("less_equal", x=key, y=position))
        if op.window is not None:
            conditions.append(e("greater", x=key, y=e("sub", x=position, y=np.int32(op.window))))
    out: Any = None
    for c in conditions:
        out = c if out is None else e("logical_and", x=out, y=c)
    return out


@rule(ops.PackedAttention)
def _packed_attention(e: Emitter, o: Operation) -> Any:
    """One attention over all that lie behind each other, in which each sees its own."""
    op = o.op
    assert isinstance(op, ops.PackedAttention)
    q, k, v, q_starts, k_starts = o.inputs
    tokens, heads, features = q.type.shape
    keys, kv_heads, values = k.type.shape[0], k.type.shape[1], v.type.shape[2]
    if not isinstance(features, int) and op.scale is None:
        raise Unsupported("the number of features is not known")
    scale = op.scale if op.scale is not None else 1 / math.sqrt(features)  # type: ignore[arg-type]
    x, y, z = (e("transpose", x=e.value(t), perm=[1, 0, 2]) for t in (q, k, v))
    x = e("mul", x=x, y=e.like(scale, q))
    groups = heads // kv_heads
    x = e.reshape(x, (heads, tokens, features), (kv_heads, groups * tokens, features))
    scores = e.reshape(e("matmul", x=x, y=y, transpose_y=True), (kv_heads, groups * tokens, keys), (heads, tokens, keys))
    if op.softcap is not None:
        cap = e.like(op.softcap, q)
        scores = e("mul", x=e("tanh", x=e("real_div", x=scores, y=cap)), y=cap)
    # of each token, [tokens, 1]: where its keys begin and end, and at which of them it stands
    i, j, far = e("expand_dims", x=row(e, tokens), axes=[1]), row(e, keys), np.int32(1 << 30)
    own, theirs = (e("expand_dims", x=e.value(t), axes=[0]) for t in (q_starts, k_starts))
    begun = e("less_equal", x=own, y=i)

    def of(starts: Any, before: bool) -> Any:
        a, b = (starts, -far) if before else (far, starts)
        return e("reduce_max" if before else "reduce_min", x=_chosen(e, begun, a, b, (tokens, q_starts.type.shape[0])), axes=[1], keep_dims=True)

    first, end = of(theirs, True), of(theirs, False)
    seen = e("logical_and", x=e("greater_equal", x=j, y=first), y=e("less", x=j, y=end))
    for there in (e("greater", x=first, y=-far), e("less", x=end, y=far)):  # it is in a sequence at all
        seen = e("logical_and", x=seen, y=there)
    position = e("sub", x=e("add", x=i, y=end), y=of(own, False))
    if op.causal:
        seen = e("logical_and", x=seen, y=e("less_equal", x=j, y=position))
    if op.window is not None:
        seen = e("logical_and", x=seen, y=e("greater", x=j, y=e("sub", x=position, y=np.int32(op.window))))
    least = -65504.0 if q.type.dtype is DType.f16 else float(np.finfo(np.float32).min)
    weights = e("softmax", x=e("select", cond=seen, a=scores, b=e.like(least, q)), axis=-1)
    weights = e("select", cond=seen, a=weights, b=e.like(0, q))
    weights = e.reshape(weights, (heads, tokens, keys), (kv_heads, groups * tokens, keys))
    made = e.reshape(e("matmul", x=weights, y=z), (kv_heads, groups * tokens, values), (heads, tokens, values))
    return e("transpose", x=made, perm=[1, 0, 2])


def _chosen(e: Emitter, cond: Any, a: Any, b: Any, shape: Any) -> Any:
    """One of two integers, one of them a row, for each place of a matrix."""
    wide = [x if isinstance(x, np.int32) else e.spread(x, (1, shape[1]), shape) for x in (a, b)]
    return e("select", cond=cond, a=wide[0], b=wide[1])


@rule(ops.CacheWrite)
def _cache_write(e: Emitter, o: Operation) -> Any:
    """A slice of a state; elsewhere each place takes its new row, or what it has."""
    cache, rows, start = o.inputs
    batch, _, places, _ = cache.type.shape
    count = rows.type.shape[2]
    x, new, at = e.value(cache), e.value(rows), e.value(start)
    if e.has_states and batch == 1:
        others, after = [True, True, False, True], e("add", x=at, y=e.scalar(count))
        begin, end = (e("concat", values=[e.constant([0, 0], DType.i32), p, e.constant([0], DType.i32)], axis=0) for p in (at, after))
        return e("slice_update", x=x, update=new, begin=begin, end=end, begin_mask=others, end_mask=others)
    dtype = cache.type.dtype
    number = e("sub", x=row(e, places), y=e("expand_dims", x=at, axes=[1]))  # of the row of each place, [batch, places]
    inside = e("logical_and", x=e("greater_equal", x=number, y=np.int32(0)), y=e("less", x=number, y=e.scalar(count)))
    safe = e("minimum", x=e("maximum", x=number, y=np.int32(0)), y=e("sub", x=e.scalar(count), y=np.int32(1)))
    tall = e("transpose", x=whole(e, new, dtype), perm=[0, 2, 1, 3])
    spread = e("transpose", x=e("gather", x=tall, indices=safe, axis=1, batch_dims=1), perm=[0, 2, 1, 3])
    y = e("select", cond=e("expand_dims", x=inside, axes=[1, 3]), a=spread, b=whole(e, x, dtype))
    return e("cast", x=y, dtype="bool") if dtype is DType.bool else y


@rule(ops.ExpertMatMul)
def _expert_matmul(e: Emitter, o: Operation) -> Any:
    """The matrix of each row is gathered: right, but a matrix for each row is in memory then."""
    x, weight, experts = o.inputs
    if experts.type.rank + 2 > 5:
        raise Unsupported("arrays have at most 5 axes")
    chosen = e("gather", x=e.value(weight), indices=e.value(experts), axis=0)  # [..., k, n]
    rows = e("expand_dims", x=e.value(x), axes=[-2])
    return e("squeeze", x=e("matmul", x=rows, y=chosen), axes=[-2])
