"""Reads and writes at computed positions in StableHLO.

Negative positions are counted from the end first. A file cannot fail: a read outside of a tensor gives its edge, a write there is left out. Where
positions are repeated and nothing is combined, the dialect promises no order; implementations on CPUs apply the updates one after the other.
"""

from __future__ import annotations

from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, rule
from trustformers_ir.codegen.export.stablehlo.rules_elementwise import converted
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.index import ScatterReduce

COMBINED: dict[ScatterReduce, str | None] = {
    ScatterReduce.NONE: None, ScatterReduce.ADD: "add", ScatterReduce.MUL: "multiply", ScatterReduce.MAX: "maximum", ScatterReduce.MIN: "minimum",
}  # fmt: skip


def positions(e: Emitter, i: X, size: Dim) -> X:
    """Along an axis of a size, as i64, counted from its beginning."""
    signed, i = i.dtype.is_signed, e.cast(i, DType.i64)
    if not signed:
        return i
    return e.select(e.compare("LT", i, 0), e("add", i, e.spread(e.scalar(size), i.shape)), i)


def vectors(e: Emitter, parts: list[X]) -> X:
    """Positions along several axes, of one shape, beside each other along a new last axis."""
    return e.concat([e.reshape(p, (*p.shape, 1)) for p in parts], -1)


def taken(e: Emitter, x: X, i: X, axis: int) -> X:
    """``x[p, i, q]``."""
    axis %= x.rank
    return e.gather(x, vectors(e, [positions(e, i, x.shape[axis])]), [axis], axis)


@rule(ops.Gather)
def _gather(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Gather)
    return taken(e, e.operand(o, 0), e.operand(o, 1), o.op.axis)


@rule(ops.Embedding)
def _embedding(e: Emitter, o: Operation) -> X:
    return taken(e, e.operand(o, 0), e.operand(o, 1), 0)


def _elements(e: Emitter, x: X, i: X, axis: int) -> X:
    """The place of each element of ``i``: what it says along the axis, its own along the others."""
    axis %= x.rank
    return vectors(e, [positions(e, i, x.shape[axis]) if a == axis else e.iota(i.shape, a) for a in range(x.rank)])


@rule(ops.GatherElements)
def _gather_elements(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.GatherElements)
    x, i = e.operand(o, 0), e.operand(o, 1)
    return e.gather(x, _elements(e, x, i, o.op.axis), range(x.rank))


def _places(e: Emitter, x: X, i: X, batch: int = 0) -> X:
    """What the last axis of ``i`` says, behind the places along axes that run together."""
    lead, count = i.shape[:-1], i.shape[-1]
    assert isinstance(count, int)
    parts = [e.iota(lead, a) for a in range(batch)]
    for n in range(count):
        parts.append(positions(e, e.reshape(e.part(i, -1, n, n + 1), lead), x.shape[batch + n]))
    return vectors(e, parts)


@rule(ops.GatherNd)
def _gather_nd(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.GatherNd)
    x, i, batch = e.operand(o, 0), e.operand(o, 1), o.op.batch_dims
    axes = range(batch + int(i.shape[-1]))  # type: ignore[arg-type]
    return e.gather(x, _places(e, x, i, batch), axes) if axes else e.spread(x, o.result.type.shape)


@rule(ops.ScatterElements)
def _scatter_elements(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.ScatterElements)
    x, i, updates = (e.operand(o, n) for n in range(3))
    return written(e, o, x, _elements(e, x, i, o.op.axis), updates, range(x.rank), o.op.reduce)


@rule(ops.ScatterNd)
def _scatter_nd(e: Emitter, o: Operation) -> X:
    """Where positions are along no axis, every update is of the whole: that of an axis of size 1 put before it."""
    assert isinstance(o.op, ops.ScatterNd)
    x, i, updates = (e.operand(o, n) for n in range(3))
    if i.shape[-1] == 0:
        whole = e.reshape(x, (1, *x.shape))
        at = e.full(0, DType.i64, (*i.shape[:-1], 1))
        return e.reshape(written(e, o, whole, at, updates, [0], o.op.reduce), x.shape)
    return written(e, o, x, _places(e, x, i), updates, range(int(i.shape[-1])), o.op.reduce)  # type: ignore[arg-type]


def written(e: Emitter, o: Operation, x: X, at: X, updates: X, axes: range | list[int], how: ScatterReduce) -> X:
    """With updates at places. Sums are rounded once."""
    kind = COMBINED[how]
    if kind is None:
        return e.scatter(x, at, updates, axes, None)
    return e.narrow(e.scatter(e.widened(x), at, e.widened(updates), axes, kind), o)


@rule(ops.OneHot)
def _one_hot(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.OneHot)
    ids, shape = e.cast(e.operand(o, 0), DType.i64), o.result.type.shape
    hit = e.compare("EQ", e.spread(e.reshape(ids, (*ids.shape, 1)), shape), e.iota(shape, len(shape) - 1))
    return converted(e, hit, o.op.dtype)


# --- caches of decoders ----------------------------------------------------------------------------------------------------


def _rows(e: Emitter, start: X, rows: X) -> tuple[X, X]:
    """Of each new token, ``i64[B, S]``, its sequence and its place in that."""
    shape = (rows.shape[0], rows.shape[2])
    return e.iota(shape, 0), e("add", e.spread(e.cast(start, DType.i64), shape, [0]), e.iota(shape, 1))


@rule(ops.CacheWrite)
def _cache_write(e: Emitter, o: Operation) -> X:
    cache, rows, start = (e.operand(o, n) for n in range(3))
    sequence, place = _rows(e, start, rows)
    return e.scatter(cache, vectors(e, [sequence, place]), e.transpose(rows, [0, 2, 1, 3]), [0, 2], None)


@rule(ops.PagedWrite)
def _paged_write(e: Emitter, o: Operation) -> X:
    pool, rows, start, pages = (e.operand(o, n) for n in range(4))
    sequence, place = _rows(e, start, rows)
    length = e.spread(e.scalar(pool.shape[2]), place.shape)
    entry = vectors(e, [sequence, e("divide", place, length)])
    page = e.gather(positions(e, pages, pool.shape[0]), entry, [0, 1])
    at = vectors(e, [page, e("remainder", place, length)])
    return e.scatter(pool, at, e.transpose(rows, [0, 2, 1, 3]), [0, 2], None)


@rule(ops.PagedRead)
def _paged_read(e: Emitter, o: Operation) -> X:
    pool, pages = e.operand(o, 0), e.operand(o, 1)
    read = taken(e, pool, pages, 0)  # [B, T, H, L, D]
    return e.reshape(e.transpose(read, [0, 2, 1, 3, 4]), o.result.type.shape)
