"""``x[...]`` on symbolic tensors: integers, slices, None, Ellipsis, and integer tensors.

A subscript is applied in three steps: integers and slices become slices of one axis each, then integer tensors become one gather, then
axes are dropped and added by one reshape. Bounds follow numpy: a slice is clamped to the axis, an integer has to lie inside. Integers
beside integer tensors count as plain selections (as in torch). The axes of several tensors stay in place when they stand together,
else they come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.ir.core import Value
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim, SymExpr, UndecidedDim, floordiv, maximum, minimum
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.index import Gather, GatherNd
from trustformers_ir.ir.ops.shape import Concat, Expand, Flip, Reshape, Slice, Transpose
from trustformers_ir.ir.tracing import Trace, decided, trace_error, user_site


@dataclass(frozen=True)
class _Entry:
    """What happens to one axis of the operand (``axis`` None: a new axis of size 1)."""

    axis: int | None
    key: Any

    @property
    def keeps(self) -> bool:
        return isinstance(self.key, slice)


def subscript(trace: Trace, x: Value, key: Any) -> Value:
    """``x[key]``; a key entry is an int, a dim, a slice of those, None, Ellipsis, or a value (integer tensor)."""
    entries = _entries(trace, x, key if isinstance(key, tuple) else (key,))
    for e in entries:
        if e.axis is not None and not isinstance(e.key, Value):
            x = _slice(trace, x, e.axis, e.key) if isinstance(e.key, slice) else _select(trace, x, e.axis, e.key)
    gathered = [e for e in entries if isinstance(e.key, Value)]
    if gathered:
        return _gather(trace, x, entries, gathered)
    return _reshaped(trace, x, [1 if e.axis is None else x.type.shape[e.axis] for e in entries if e.axis is None or e.keeps])


def slice_axis(trace: Trace, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """``x[start:stop:step]`` along one axis, without an operation when that is all of it."""
    if step == 1 and start == 0 and stop == x.type.shape[axis]:
        return x
    return trace.emit(Slice(axis, start, stop, step), x)


def _entries(trace: Trace, x: Value, keys: tuple[Any, ...]) -> list[_Entry]:
    rank = x.type.rank
    consuming = sum(1 for k in keys if k is not None and k is not Ellipsis)
    dots = [i for i, k in enumerate(keys) if k is Ellipsis]
    if len(dots) > 1:
        raise trace_error(Code.TRACE_UNSUPPORTED, "an index has at most one '...'")
    if consuming > rank:
        raise trace_error(Code.TRACE_SHAPE, f"{consuming} indices into a tensor of rank {rank}, {x.type}", "remove some of the indices")
    fill: tuple[Any, ...] = (slice(None),) * (rank - consuming)
    at = dots[0] if dots else len(keys)
    axis = 0
    entries: list[_Entry] = []
    for k in (*keys[:at], *fill, *keys[at + 1 :]):
        if k is None:
            entries.append(_Entry(None, None))
            continue
        entries.append(_Entry(axis, _key(trace, k)))
        axis += 1
    return entries


def _key(trace: Trace, k: Any) -> Any:
    if isinstance(k, (bool, np.bool_)):
        raise _boolean("a bool")
    if isinstance(k, np.integer):
        return int(k)
    if isinstance(k, (int, SymExpr)):
        return k
    if isinstance(k, slice):
        return slice(*(int(b) if isinstance(b, np.integer) else b for b in (k.start, k.stop, k.step)))
    if isinstance(k, (list, np.ndarray)):
        array = np.asarray(k)
        if array.dtype == np.bool_ and array.ndim == 1:
            array = np.flatnonzero(array)
        k = trace.constant(array if array.size else array.astype(np.int64))
    if isinstance(k, Value):
        if k.type.dtype is DType.bool:
            raise _boolean("a boolean tensor")
        if not k.type.dtype.is_integer:
            raise trace_error(Code.TRACE_UNSUPPORTED, f"a tensor of {k.type.dtype} is no index", "indices are integers: x.to(i64)")
        return k
    help = "an index is an int, a slice, None, ... or an integer tensor"
    raise trace_error(Code.TRACE_UNSUPPORTED, f"{type(k).__name__} is no index", help)


def _boolean(what: str) -> CompilerError:
    message = f"indexing with {what} gives a tensor whose size only the run knows"
    return trace_error(Code.TRACE_CONTROL_FLOW, message, "keep the size: where(mask, x, 0), or x.masked_fill(~mask, 0)")


def _slice(trace: Trace, x: Value, axis: int, key: slice) -> Value:
    step = 1 if key.step is None else key.step
    if not isinstance(step, int) or isinstance(step, bool) or step == 0:
        raise trace_error(Code.TRACE_UNSUPPORTED, f"the step of a slice is a constant other than 0, not {step!r}")
    size = x.type.shape[axis]
    if step < 0:
        if key.start is not None or key.stop is not None:
            help = "slice first and reverse then: x[a:b][::-1]"
            raise trace_error(Code.TRACE_UNSUPPORTED, "a slice with a negative step and bounds", help)
        x, step = trace.emit(Flip(axis), x), -step
        return slice_axis(trace, x, axis, 0, size, step)
    start = 0 if key.start is None else clamped(trace, key.start, size)
    stop = size if key.stop is None else clamped(trace, key.stop, size)
    if not trace.module.facts.is_less_equal(start, stop):
        stop = start if trace.module.facts.is_less_equal(stop, start) else maximum(start, stop)
    return slice_axis(trace, x, axis, start, stop, step)


def clamped(trace: Trace, limit: Any, size: Dim) -> Dim:
    """A bound of a slice counted from 0 and clamped to ``0 .. size``, as Python does."""
    if isinstance(limit, bool) or not isinstance(limit, (int, SymExpr)):
        if isinstance(limit, Value):
            message = "a slice with a bound that is a tensor has a size that only the run knows"
            raise trace_error(Code.TRACE_CONTROL_FLOW, message, "slice with ints or with dims from .shape, or mask with where")
        raise trace_error(Code.TRACE_UNSUPPORTED, f"the bound of a slice is an int or a dim, not {type(limit).__name__}")
    facts = trace.module.facts
    bound: Dim = limit
    if not facts.is_less_equal(0, bound):
        try:
            facts.less_equal(bound, -1)
        except UndecidedDim as error:
            raise decided(user_site(), error) from None
        bound = size + bound
        if not facts.is_less_equal(0, bound):
            bound = maximum(0, bound)
    if facts.is_less_equal(bound, size):
        return bound
    return size if facts.is_less_equal(size, bound) else minimum(bound, size)


def _select(trace: Trace, x: Value, axis: int, index: Dim) -> Value:
    """One position of an axis, which stays with size 1."""
    size, facts = x.type.shape[axis], trace.module.facts
    try:
        inside = facts.less_equal(index, size - 1)
        if not facts.less_equal(0, index):
            inside, index = facts.less_equal(0, index + size), index + size
    except UndecidedDim as error:
        raise decided(user_site(), error) from None
    if not inside:
        message = f"the index is out of range for axis {axis} of {x.type}"
        raise trace_error(Code.TRACE_SHAPE, message, f"valid indices of that axis are -{size} .. {size} - 1")
    return slice_axis(trace, x, axis, index, index + 1)


def _gather(trace: Trace, x: Value, entries: list[_Entry], gathered: list[_Entry]) -> Value:
    """Integer tensors in ``gathered``; the other axes are sliced already."""
    if len(gathered) > 1:
        return _gather_many(trace, x, entries, gathered)
    (entry,) = gathered
    assert entry.axis is not None
    sizes, chosen = x.type.shape, entry.key.type.shape
    x = trace.emit(Gather(entry.axis), x, entry.key)
    out: list[Dim] = []
    for e in entries:
        if e.axis is None or e.keeps:
            out.append(1 if e.axis is None else sizes[e.axis])
        elif e is entry:
            out.extend(chosen)
    return _reshaped(trace, x, out)


def _gather_many(trace: Trace, x: Value, entries: list[_Entry], gathered: list[_Entry]) -> Value:
    """Several integer tensors are broadcast together: their axes are moved to the front and read by one gather_nd."""
    axes = [e.axis for e in gathered if e.axis is not None]
    kept = [e.axis for e in entries if e.keeps and e.axis is not None]
    dropped = [a for a in range(x.type.rank) if a not in axes and a not in kept]
    sizes = [x.type.shape[a] for a in (*axes, *kept)]
    x = _reshaped(trace, transposed(trace, x, (*axes, *kept, *dropped)), sizes)
    indices = _together(trace, [e.key for e in gathered])
    x = trace.emit(GatherNd(), x, indices)
    rank = indices.type.rank - 1
    # x is now [axes of the indices, kept axes]; the former go behind the first `front` of the axes that remain beside them
    positions = [i for i, e in enumerate(entries) if isinstance(e.key, Value)]
    remaining = [(i, e) for i, e in enumerate(entries) if e.keeps or e.axis is None]
    apart = any(positions[0] < i < positions[-1] for i, _ in remaining)
    front = 0 if apart else sum(1 for i, _ in remaining if i < positions[0])
    kept_front = sum(1 for _, e in remaining[:front] if e.keeps)
    rest = range(rank, x.type.rank)
    x = transposed(trace, x, (*rest[:kept_front], *range(rank), *rest[kept_front:]))
    shape = iter(x.type.shape)
    out: list[Dim] = [next(shape) if e.keeps else 1 for _, e in remaining[:front]]
    out += [next(shape) for _ in range(rank)]
    out += [next(shape) if e.keeps else 1 for _, e in remaining[front:]]
    return _reshaped(trace, x, out)


def transposed(trace: Trace, x: Value, perm: tuple[int, ...]) -> Value:
    return x if perm == tuple(range(x.type.rank)) else trace.emit(Transpose(perm), x)


def _together(trace: Trace, indices: list[Value]) -> Value:
    """Index tensors broadcast against each other and stacked along a new last axis, as i64."""
    rank = max(i.type.rank for i in indices)
    shape: list[Dim] = [1] * rank
    for v in indices:
        for position, d in enumerate(reversed(v.type.shape), 1):
            if not trace.module.facts.is_equal(d, 1):
                shape[-position] = d
    columns = []
    for v in indices:
        v = trace.cast(v, DType.i64)
        if v.type.shape != tuple(shape):
            v = trace.emit(Expand(tuple(shape)), v)
        columns.append(_reshaped(trace, v, [*shape, 1]))
    return trace.emit(Concat(rank), *columns)


def _reshaped(trace: Trace, x: Value, shape: list[Dim]) -> Value:
    return x if tuple(shape) == x.type.shape else trace.emit(Reshape(tuple(shape)), x)


def inferred_shape(trace: Trace, x: Value, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """``shape`` with one -1 replaced by what is left of x's elements."""
    unknown = [i for i, d in enumerate(shape) if isinstance(d, int) and d == -1]
    if not unknown:
        return shape
    if len(unknown) > 1:
        raise trace_error(Code.TRACE_SHAPE, f"a shape has at most one -1, not {list(shape)}")
    known: Dim = 1
    for i, d in enumerate(shape):
        known = known if i == unknown[0] else known * d
    if isinstance(known, int) and known <= 0:
        raise trace_error(Code.TRACE_SHAPE, f"-1 in {list(shape)} cannot be computed: the other sizes hold no element", "write the size")
    rest = floordiv(x.type.elements, known)
    return (*shape[: unknown[0]], rest, *shape[unknown[0] + 1 :])
