"""Attention in StableHLO. Scores and weights are f32 where the operands have 16 bits."""

from __future__ import annotations

import math

import numpy as np

from trustformers_ir.codegen.export.emitting import Unsupported
from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType

FAR = 1 << 62  # a position that nothing stands at


@rule(ops.Attention, ops.CachedAttention)
def _attention(e: Emitter, o: Operation) -> X:
    """Vaswani et al. 2017, section 3.2.1; queries of a group (Ainslie et al. 2023) are an axis of their own, so that no key is repeated."""
    op = o.op
    assert isinstance(op, ops.Attention)
    q, k, v = (e.operand(o, n) for n in range(3))
    batch, heads, queries, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    shape = (batch, heads, queries, keys)
    scores = _scores(e, op, e.reshape(q, (batch, kv_heads, group, *q.shape[2:])), k, shape)
    if o.operands[4] is not None:
        scores = e("add", scores, e.spread(e.wide(o, 4), shape))
    if isinstance(op, ops.CachedAttention):
        first = e.spread(e.cast(e.operand(o, 5), DType.i64), (batch, 1, queries, 1), [0])
    else:
        first = e.spread(e.scalar(keys - queries), (1, 1, queries, 1))
    position = e("add", first, e.iota(first.shape, 2))
    seen = [] if o.operands[3] is None else [e.spread(e.operand(o, 3), shape)]
    weights = _weights(e, scores, [*seen, *_visible(e, op, position, shape)])
    weights = e.reshape(weights, (batch, kv_heads, group, queries, keys))
    y = e.dot(weights, e.widened(v), [(0, 0), (1, 1)], [(4, 2)])
    return e.narrow(e.reshape(y, o.result.type.shape), o)


def _scores(e: Emitter, op: ops.Attention | ops.PackedAttention, q: X, k: X, shape: tuple[Dim, ...]) -> X:
    """Of queries ``[…, kv heads, group, queries, features]``, the leading axes running together with those of the keys."""
    lead = q.rank - 3
    scale = op.scale
    if scale is None:
        if not isinstance(q.shape[-1], int):
            raise Unsupported("the number of features is not known")
        scale = 1 / math.sqrt(q.shape[-1]) if q.shape[-1] else math.inf
    dots = e.dot(q, k, [(n, n) for n in range(lead)], [(q.rank - 1, k.rank - 1)])
    scores = e("multiply", e.reshape(dots, shape), scale)
    if op.softcap is None:
        return scores
    return e("multiply", e("tanh", e("divide", scores, op.softcap)), op.softcap)


def _visible(e: Emitter, op: ops.Attention | ops.PackedAttention, position: X, shape: tuple[Dim, ...]) -> list[X]:
    """What the position of each query lets it see: conditions of the shape of the scores."""
    conditions = []
    if op.causal or op.window is not None:
        key, own = e.iota(shape, len(shape) - 1), e.spread(position, shape)
        if op.causal:
            conditions.append(e.compare("LE", key, own))
        if op.window is not None:
            conditions.append(e.compare("GT", key, e("subtract", own, op.window)))
    return conditions


def _weights(e: Emitter, scores: X, conditions: list[X]) -> X:
    """The softmax over the keys that are seen; zeros where there are none, or where all scores are -inf."""
    if conditions:
        seen = conditions[0]
        for c in conditions[1:]:
            seen = e("and", seen, c)
        scores = e.select(seen, scores, -np.inf)
    top = e.reduce("maximum", scores, [-1], True)
    top = e.select(e.compare("EQ", top, -np.inf), 0, top)
    powers = e("exponential", e("subtract", scores, e.spread(top, scores.shape)))
    total = e.reduce("add", powers, [-1], True)
    total = e.select(e.compare("EQ", total, 0), 1, total)
    return e("divide", powers, e.spread(total, scores.shape))


@rule(ops.PackedAttention)
def _packed_attention(e: Emitter, o: Operation) -> X:
    """Where the sequence of a query begins and ends is found among the starts: the largest that is not above it, the smallest that is."""
    op = o.op
    assert isinstance(op, ops.PackedAttention)
    q, k, v = (e.transpose(e.operand(o, n), [1, 0, 2]) for n in range(3))  # [heads, tokens, features]
    q_starts, k_starts = (e.cast(e.operand(o, n), DType.i64) for n in (3, 4))
    heads, queries, _ = q.shape
    kv_heads, keys = k.shape[0], k.shape[1]
    group = heads // kv_heads
    shape = (heads, queries, keys)
    table = (queries, q_starts.shape[0])
    own, ours, theirs = e.iota(table, 0), e.spread(q_starts, table), e.spread(k_starts, table)
    behind = e.compare("GT", ours, own)
    first = e.reduce("maximum", e.select(behind, -1, theirs), [1])
    end = e.reduce("minimum", e.select(behind, theirs, FAR), [1])
    last = e.reduce("minimum", e.select(behind, ours, FAR), [1])
    inside = e("and", e.compare("GE", first, 0), e.compare("LT", last, FAR))
    position = e("subtract", e("add", e.iota((queries,), 0), end), last)
    key = e.iota(shape, 2)
    conditions = [
        e.spread(inside, shape, [1]),
        e.compare("LE", e.spread(first, shape, [1]), key),
        e.compare("LT", key, e.spread(end, shape, [1])),
        *_visible(e, op, e.reshape(position, (1, queries, 1)), shape),
    ]
    scores = _scores(e, op, e.reshape(q, (kv_heads, group, *q.shape[1:])), k, shape)
    weights = e.reshape(_weights(e, scores, conditions), (kv_heads, group, queries, keys))
    y = e.dot(weights, e.widened(v), [(0, 0)], [(3, 1)])  # [kv heads, group, queries, features]
    return e.narrow(e.transpose(e.reshape(y, (heads, queries, v.shape[2])), [1, 0, 2]), o)
