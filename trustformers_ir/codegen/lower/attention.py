"""Attention as one kernel: online softmax over fixed blocks of keys, memory linear in the number of keys.

Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention", 2022. For a tile of query rows and each
block of keys, by absolute position::

    s[i, j]  = score(q_i . k_j)                      (-inf where j may not be seen)
    m'       = max(m, max_j s);  c = exp(m - m');  p[i, j] = exp(s[i, j] - m')
    l        = l * c + sum_j p;  acc = acc * c + p @ v

and at the end ``out = acc / l`` (or acc, which is zero, for a row that sees nothing). Where m' is -inf, 0 takes its place; a NaN or a score
of +inf gives NaN through m and l, as in the reference. A block of masked keys leaves m, l and acc as they were, bit for bit (c is
exp(0) = 1, p is 0), and the blocks do not depend on threads or on the query tile: padding keys or splitting the batch changes no bit.

K is transposed once per head into scratch, in panels of 16 keys, so that the scores of 16 keys fill a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    PARALLEL,
    SCRATCH,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    Buffer,
    Const,
    Expr,
    Reduce,
    binary,
    cast,
    const,
    select,
    unary,
)
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.nn import AttentionMath, normalised, score_shift
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.lower.schedules import MachineShape
from trustformers_ir.ir.core import Operation

KEY_BLOCK = 64  # keys per softmax step: fixed on every machine, because it is part of the order of additions


def has_template(o: Operation) -> bool:
    """Whether the loops below can be written: head sizes are constants (the naive definition serves the rest)."""
    q, v = o.inputs[0], o.inputs[2]
    return isinstance(q.type.shape[3], int) and isinstance(v.type.shape[3], int)


def attention_nest(d: Definer, o: Operation, emit: Callable[[Index, Expr], Store], machine: MachineShape) -> tuple[Stmt, ...]:
    """The loops of one attention; ``emit`` stores the element at ``(b, h, i, e)`` given its value in the result's dtype."""
    a = AttentionMath(d, o)
    assert a.q is not None and a.k is not None and a.v is not None
    assert isinstance(a.features, int) and isinstance(a.value_features, int)
    q, k, v = a.q, a.k, a.v
    f = compute_dtype(q.type.dtype)
    tile = _Tile(machine.attention_rows, machine.attention_vectors)
    batch, heads = (Axis(n, dim_expr(q.type.shape[i]), PARALLEL) for i, n in enumerate(("b", "h")))
    kv_head, keys, queries = a.kv_head(heads), dim_expr(a.keys), dim_expr(a.queries)
    panels = (keys + (LANES - 1)) // LANES
    panels_per_block = KEY_BLOCK // LANES
    minus_infinity, zero = Const(-math.inf, f), Const(0, f)

    kt = Buffer("kt", f, (panels, a.features, LANES), space=SCRATCH)
    s = Buffer("s", f, (tile.rows, KEY_BLOCK), space=SCRATCH)
    acc = Buffer("acc", f, (tile.rows, a.value_features), space=SCRATCH)
    top, new_top, total, rescale = (Buffer(n, f, (tile.rows,), space=SCRATCH) for n in ("top", "new_top", "total", "rescale"))

    rows, block = Axis("tile", (queries + (tile.rows - 1)) // tile.rows, SEQ), Axis("block", (keys + (KEY_BLOCK - 1)) // KEY_BLOCK, SEQ)

    def query(i: Expr) -> Expr:
        return binary("min", rows * tile.rows + i, queries - 1)  # rows past the end repeat the last one

    def pack(p: Axis, x: Axis, lane: Axis) -> Stmt:
        key = p * LANES + lane
        return store(kt, (p, x, lane), select(key < keys, d.lifted(k, (batch, kv_head, key, x)), zero))

    def clear(i: Axis, e: Expr) -> Stmt:
        return store(acc, (i, e), zero)

    def score(i: Axis, e: Expr) -> Stmt:
        x = Axis("x", dim_expr(a.features), SEQ)
        j = block * KEY_BLOCK + e
        panel = binary("min", block * panels_per_block + e // LANES, panels - 1)
        dot = Reduce("sum", (x,), d.lifted(q, (batch, heads, query(i), x)) * kt[panel, x, e % LANES])
        return store(s, (i, e), select(j < keys, a.score(dot, batch, heads, query(i), j), minus_infinity))

    def shift(i: Axis) -> Expr:
        return score_shift(new_top[i])

    def maximum(i: Axis) -> Stmt:
        j = Axis("j", KEY_BLOCK, VECTOR)
        return store(new_top, i, binary("max", top[i], Reduce("max", (j,), s[i, j])))

    def weight(i: Axis, j: Axis) -> Stmt:
        return store(s, (i, j), unary("exp", s[i, j] - shift(i)))

    def add_up(i: Axis) -> Stmt:
        j = Axis("j", KEY_BLOCK, VECTOR)
        return store(total, i, total[i] * rescale[i] + Reduce("sum", (j,), s[i, j]))

    def accumulate(i: Axis, e: Expr) -> Stmt:
        j = Axis("j", binary("min", const(KEY_BLOCK), keys - block * KEY_BLOCK), SEQ)
        step = Reduce("sum", (j,), s[i, j] * d.lifted(v, (batch, kv_head, block * KEY_BLOCK + j, e)))
        return store(acc, (i, e), acc[i, e] * rescale[i] + step)

    def finish(i: Axis, e: Expr) -> Stmt:
        return emit((batch, heads, query(i), e), cast(normalised(acc[i, e], total[i]), o.result.type.dtype))

    p, x, lane = Axis("p", panels, SEQ), Axis("x", a.features, SEQ), Axis("lane", LANES, VECTOR)
    i, i2, j = (Axis(n, e, kind) for n, e, kind in (("i", tile.rows, SEQ), ("i", tile.rows, SEQ), ("j", KEY_BLOCK, VECTOR)))
    step = For(
        block,
        (
            tile.nest(KEY_BLOCK, score),
            For(i, (maximum(i), store(rescale, i, unary("exp", top[i] - shift(i))), For(j, (weight(i, j),)), add_up(i), store(top, i, new_top[i]))),
            tile.nest(a.value_features, accumulate),
        ),
    )
    start = For(i2, (store(top, i2, minus_infinity), store(total, i2, zero)))
    whole = For(rows, (start, tile.nest(a.value_features, clear), step, tile.nest(a.value_features, finish)))
    return (For(batch, (For(heads, (For(p, (For(x, (For(lane, (pack(p, x, lane),)),)),)), whole)),)),)


@dataclass(frozen=True)
class _Tile:
    """A register tile of ``rows`` by up to ``vectors`` vectors of 16 lanes."""

    rows: int
    vectors: int

    def nest(self, columns: int, body: Callable[[Axis, Expr], Stmt]) -> Stmt:
        """Loops over ``rows x columns``: groups of vectors in order, then the tile. Columns past the end are guarded."""
        parts = -(-columns // LANES)
        width = next(n for n in range(min(parts, self.vectors), 0, -1) if parts % n == 0)
        group, i = Axis("group", parts // width, SEQ), Axis("i", self.rows, UNROLL)
        part, lane = Axis("part", width, UNROLL), Axis("lane", LANES, VECTOR)
        column = (group * width + part) * LANES + lane if parts > width else part * LANES + lane
        guard = column < columns if columns % LANES else None
        tile = For(i, (For(part, (For(lane, (body(i, column),), guard),)),))
        return For(group, (tile,)) if parts > width else tile
