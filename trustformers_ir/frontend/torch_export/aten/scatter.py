"""Writes at computed positions: a copy of the tensor with the updates in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.aten.index import positions, together
from trustformers_ir.frontend.torch_export.aten.movement import c_slice
from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant, filled
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops import ScatterReduce
from trustformers_ir.ir.tensor import Tensor, as_tensor

_REDUCES = {
    "add": ScatterReduce.ADD, "sum": ScatterReduce.ADD, "multiply": ScatterReduce.MUL, "prod": ScatterReduce.MUL,
    "amax": ScatterReduce.MAX, "amin": ScatterReduce.MIN,
}  # fmt: skip


def _put(c: Call, x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: ScatterReduce = ScatterReduce.NONE) -> Tensor:
    """``scatter`` of the part of the source that the index covers; scalars count as one element."""
    if x.ndim == 0:
        return _put(c, x.reshape(1), 0, index.reshape(1), source.reshape(1), reduce).reshape()
    if index.ndim == 0:
        index, source = index.reshape(1), source.reshape(1)
    if any(isinstance(d, int) and d == 0 for d in index.shape):
        return x
    for axis, size in enumerate(index.shape):
        if size != source.shape[axis]:
            source = c_slice(c, source, axis, 0, size)
    if x.dtype is DType.bool and reduce is not ScatterReduce.NONE:
        made = c.emit(ops.ScatterElements(dim % x.ndim, reduce), x.to(DType.i64), index.long(), source.to(DType.i64))
        return made.bool()
    return c.emit(ops.ScatterElements(dim % x.ndim, reduce), x, index.long(), source.to(x.dtype))


@aten("scatter.src", "scatter.reduce")
def scatter_src(c: Call, x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str | None = None) -> Tensor:
    return _put(c, x, dim, index, src, ScatterReduce.NONE if reduce is None else _REDUCES[reduce])


@aten("scatter.value", "scatter.value_reduce")
def scatter_value(c: Call, x: Tensor, dim: int, index: Tensor, value: Any, *, reduce: str | None = None) -> Tensor:
    source = filled(c, value, index.shape, x.dtype)
    return _put(c, x, dim, index, source, ScatterReduce.NONE if reduce is None else _REDUCES[reduce])


@aten("scatter_add")
def scatter_add(c: Call, x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    return _put(c, x, dim, index, src, ScatterReduce.ADD)


@aten("scatter_reduce.two")
def scatter_reduce(c: Call, x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    """Without ``include_self``, elements that something is written to begin as the neutral one."""
    if reduce == "mean":
        return _scatter_mean(c, x, dim, index, src, include_self)
    kind = _REDUCES[reduce]
    if include_self:
        return _put(c, x, dim, index, src, kind)
    neutral = _neutral(kind, x.dtype)
    start = _put(c, x, dim, index, filled(c, neutral, index.shape, x.dtype))
    return _put(c, start, dim, index, src, kind)


def _scatter_mean(c: Call, x: Tensor, dim: int, index: Tensor, src: Tensor, include_self: bool) -> Tensor:
    wide = DType.f32 if x.dtype in HALVES else x.dtype
    one = filled(c, 1, index.shape, wide)
    start = x.to(wide) if include_self else _put(c, x.to(wide), dim, index, filled(c, 0, index.shape, wide))
    total = _put(c, start, dim, index, src.to(wide), ScatterReduce.ADD)
    base = filled(c, 1 if include_self else 0, x.shape, wide)
    count = F.maximum(_put(c, base, dim, index, one, ScatterReduce.ADD), constant(c, 1, wide))
    op = ops.Div() if wide.is_float else ops.FloorDiv()
    return c.emit(op, total, count).to(x.dtype)


def _neutral(kind: ScatterReduce, dtype: DType) -> Any:
    if kind is ScatterReduce.ADD:
        return 0
    if kind is ScatterReduce.MUL:
        return 1
    if dtype.is_float:
        return float("-inf") if kind is ScatterReduce.MAX else float("inf")
    return dtype.min if kind is ScatterReduce.MAX else dtype.max


@aten("index_put", "_unsafe_index_put")
def index_put(c: Call, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, unsafe: bool = False) -> Tensor:
    mask = indices[0] if len(indices) == 1 else None
    if mask is not None and mask.dtype is DType.bool:
        return _masked_put(c, x, mask, values, accumulate)
    found = positions(c, x, indices)
    y, at, order, shape = together(c, x, found)
    m = at.shape[-1]
    assert isinstance(m, int)
    apart = order[:m] != list(range(order[0], order[0] + m))
    rest = y.shape[m:]
    front = 0 if apart else order[0]
    # values broadcast to x[indices]: [kept axes before, positions, kept axes after]; the positions go first
    before, after = rest[:front], rest[front:]
    updates = values.to(x.dtype).expand(*before, *shape, *after) if (*before, *shape, *after) else values.to(x.dtype).reshape()
    n = len(shape)
    updates = updates.permute(*range(front, front + n), *range(front), *range(front + n, updates.ndim)) if updates.ndim else updates
    if not shape:
        at, updates = at.unsqueeze(0), updates.unsqueeze(0)
    if any(isinstance(d, int) and d == 0 for d in updates.shape):
        return x
    kind = ScatterReduce.ADD if accumulate else ScatterReduce.NONE
    if x.dtype is DType.bool and accumulate:
        made = c.emit(ops.ScatterNd(kind), y.to(DType.i64), at, updates.to(DType.i64)).bool()
    else:
        made = c.emit(ops.ScatterNd(kind), y, at, updates)
    return made.permute(*(order.index(i) for i in range(x.ndim)))


def _masked_put(c: Call, x: Tensor, mask: Tensor, values: Tensor, accumulate: bool) -> Tensor:
    """``x[mask] = value``: one value for all, or one row for each row that the mask chooses, in their order."""
    if x.dtype is DType.bool and accumulate:
        raise Refused("bools added to those that a mask chooses", "use logical_or")
    rest = x.ndim - mask.ndim
    spread = mask.reshape(*mask.shape, *([1] * rest))
    if values.ndim <= rest or (values.ndim == rest + 1 and c.is_one(values.shape[0])):
        v = values.to(x.dtype)
        v = v.reshape(*v.shape[1:]) if values.ndim == rest + 1 else v
        return F.where(spread, x + v if accumulate else v, x)
    if values.ndim != rest + 1:
        raise Refused("values for the elements that a mask chooses, of another shape than one row for each", "use torch.where or masked_scatter")
    flat = mask.flatten()
    place = (flat.long().cumsum(0) - 1).clamp(0, None)
    rows = values.to(x.dtype).index_select(0, place.minimum(values.shape[0] - 1)).reshape(*x.shape)
    return F.where(spread, x + rows if accumulate else rows, x)


@aten("_unsafe_masked_index_put_accumulate")
def masked_index_put(c: Call, x: Tensor, mask: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    at = [None if i is None else F.where(mask, i.long(), 0) for i in indices]
    return index_put(c, x, at, F.where(mask, values, constant(c, 0, x.dtype)), True)


@aten("masked_scatter")
def masked_scatter(c: Call, x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Elements of the source, in order, where the mask holds: the n-th of them is the n-th of the source."""
    whole = mask.expand(*c.shape) if mask.shape != c.shape else mask
    y = x.expand(*c.shape) if x.shape != c.shape else x
    place = (whole.flatten().long().cumsum(0) - 1).clamp(0, None)
    flat = source.to(x.dtype).flatten()
    rows = flat.index_select(0, place.minimum(flat.shape[0] - 1)).reshape(*c.shape)
    return F.where(whole, rows, y)


def _rows(x: Tensor, dim: int, index: Tensor, source: Tensor) -> tuple[int, Tensor]:
    """An index along one axis, for every element of the source."""
    axis = dim % x.ndim
    shape = source.shape
    return axis, index.long().reshape(*([1] * axis), shape[axis], *([1] * (x.ndim - axis - 1))).expand(*shape)


@aten("index_add")
def index_add(c: Call, x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    s = source.to(x.dtype) if alpha == 1 else source.to(x.dtype) * constant(c, alpha, x.dtype)
    if x.ndim == 0:
        return index_add(c, x.reshape(1), 0, index.reshape(1), s.reshape(1)).reshape()
    axis, at = _rows(x, dim, index.flatten(), s)
    return _put(c, x, axis, at, s, ScatterReduce.ADD)


@aten("index_copy")
def index_copy(c: Call, x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    if x.ndim == 0:
        return source.to(x.dtype).reshape()
    axis, at = _rows(x, dim, index.flatten(), source)
    return _put(c, x, axis, at, source)


@aten("index_fill.int_Scalar", "index_fill.int_Tensor")
def index_fill(c: Call, x: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    if x.ndim == 0:
        return as_tensor(value, x.dtype)
    axis = dim % x.ndim
    index = index.flatten()
    shape = (*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :])
    source = filled(c, value, shape, x.dtype)
    axis, at = _rows(x, dim, index, source)
    return _put(c, x, axis, at, source)


@aten("index_reduce")
def index_reduce(c: Call, x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    if x.ndim == 0:
        return index_reduce(c, x.reshape(1), 0, index.reshape(1), source.reshape(1), reduce, include_self=include_self).reshape()
    axis, at = _rows(x, dim, index.flatten(), source)
    return scatter_reduce(c, x, axis, at, source, reduce, include_self=include_self)


@aten("put")
def put(c: Call, x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    kind = ScatterReduce.ADD if accumulate else ScatterReduce.NONE
    return _put(c, x.flatten(), 0, index.flatten(), source.flatten(), kind).reshape(*x.shape)
