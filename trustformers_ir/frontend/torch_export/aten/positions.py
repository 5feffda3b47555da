"""Sorting, searching and counting."""

from __future__ import annotations

from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import SymExpr
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops import ScatterReduce
from trustformers_ir.ir.tensor import Tensor, as_tensor

SORTED = "give the axis a fixed size, or take torch.topk with a constant k"


def _ranked(c: Call, x: Tensor, k: Any, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        return x, F.tensor(0)
    if (isinstance(k, int) and k == 0) or any(isinstance(d, int) and d == 0 for d in x.shape):
        types = [t for t in c.results if t is not None]
        return F.zeros(*types[0].shape, dtype=x.dtype), F.zeros(*types[0].shape, dtype=DType.i64)
    y = x.to(DType.u8) if x.dtype is DType.bool else x
    values, at = c.emit_all(ops.TopK(k, dim % x.ndim, largest), y)
    return values.to(x.dtype), at


@aten("topk")
def topk(c: Call, x: Tensor, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    return _ranked(c, x, k, dim, largest)


@aten("sort")
def sort(c: Call, x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return _ranked(c, x, x.shape[dim] if x.ndim else 1, dim, descending)


@aten("sort.stable")
def sort_stable(c: Call, x: Tensor, *, stable: Any = None, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return sort(c, x, dim, descending)


@aten("argsort", "argsort.stable")
def argsort(c: Call, x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Tensor:
    return sort(c, x, dim, descending)[1]


@aten("kthvalue")
def kthvalue(c: Call, x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        return x, F.tensor(0)
    values, at = sort(c, x, dim)
    shape = c.shape
    axis = dim % x.ndim
    return tuple(t.narrow(axis, k - 1, 1).reshape(*shape) for t in (values, at))  # type: ignore[return-value]


@aten("median.dim")
def median(c: Call, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of two; the first NaN when there is one."""
    if x.ndim == 0:
        return x, F.tensor(0)
    size = x.shape[dim]
    if isinstance(size, SymExpr):
        raise Refused(f"the median of an axis of {size} elements", SORTED)
    values, at = sort(c, x, dim)
    axis = dim % x.ndim
    value, where = (t.narrow(axis, (size - 1) // 2, 1) for t in (values, at))
    if x.dtype.is_float:
        nan = x.isnan()
        some = c.emit(ops.ReduceAny((axis,), True), nan)
        first = c.emit(ops.ArgMax(axis, True), nan.to(DType.u8))
        value = F.where(some, constant(c, float("nan"), x.dtype), value)
        where = F.where(some, first, where)
    return value.reshape(*c.shape), where.reshape(*c.shape)


@aten("median")
def median_all(c: Call, x: Tensor) -> Tensor:
    return median(c, x.flatten(), 0)[0].reshape()


@aten("nanmedian")
def nanmedian_all(c: Call, x: Tensor) -> Tensor:
    return _nanmedian(c, x.flatten(), 0)[0].reshape()


@aten("nanmedian.dim")
def nanmedian(c: Call, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        return x, F.tensor(0)
    value, at = _nanmedian(c, x, dim % x.ndim)
    return value.reshape(*c.shape), at.reshape(*c.shape)


def _nanmedian(c: Call, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The lower median of what is no NaN, which a sort puts last."""
    values, at = _ranked(c, x, x.shape[axis], axis, False)
    count = x.isnan().logical_not() if x.dtype.is_float else x.eq(x)
    middle = ((count.long().sum(axis, True) - 1).clamp(0, None)) // 2
    return values.gather(axis, middle), at.gather(axis, middle)


@aten("bucketize.Tensor", "bucketize.Scalar")
def bucketize(c: Call, x: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    return _placed(c, x, boundaries, right)


@aten("searchsorted.Tensor", "searchsorted.Scalar")
def searchsorted(
    c: Call, sequence: Tensor, x: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Tensor | None = None
) -> Tensor:
    if sorter is not None:
        sequence = sequence.gather(-1, sorter)
    if sequence.ndim == 1:
        return _placed(c, x, sequence, right or side == "right")
    return _placed(c, x, sequence.unsqueeze(-2), right or side == "right")


def _placed(c: Call, x: Any, boundaries: Tensor, right: bool) -> Tensor:
    """How many boundaries lie before each element; NaN lies behind all."""
    y, b = c.compared(x, boundaries)
    y = y.unsqueeze(-1)
    inside = b.le(y) if right else b.lt(y)
    if y.dtype.is_float:
        inside = inside.logical_or(y.isnan() if right else y.isnan().logical_and(b.isnan().logical_not()))
    return inside.long().sum(-1).to(c.dtype).reshape(*c.shape)


@aten("isin.Tensor_Tensor", "isin.Tensor_Scalar", "isin.Scalar_Tensor")
def isin(c: Call, x: Any, among: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    if isinstance(among, Tensor) and isinstance(among.numel(), int) and among.numel() == 0:
        return F.full(c.shape, invert, DType.bool) if c.shape else as_tensor(invert, DType.bool)
    y, a = c.compared(x, among)
    found = y.unsqueeze(-1).eq(a.flatten())
    hit = c.emit(ops.ReduceAny((found.ndim - 1,)), found)
    return hit.logical_not() if invert else hit


@aten("histc")
def histc(c: Call, x: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    """How many elements lie in each of ``bins`` cells of one width; the last holds its upper end."""
    y = x.flatten().to(DType.f64)
    if any(isinstance(d, int) and d == 0 for d in x.shape):
        return F.zeros(bins, dtype=c.dtype)
    if min == max == 0:
        low, high = y.amin(), y.amax()
        same = low.eq(high)
        low, high = F.where(same, low - 1.0, low), F.where(same, high + 1.0, high)
    elif min == max:
        low, high = F.tensor(float(min) - 1.0, "f64"), F.tensor(float(max) + 1.0, "f64")
    else:
        low, high = F.tensor(float(min), "f64"), F.tensor(float(max), "f64")
    inside = y.ge(low).logical_and(y.le(high))
    cell = ((y - low) * float(bins) / (high - low)).floor().clamp(0, bins - 1).long()
    hits = F.where(inside, cell, bins).unsqueeze(-1).eq(F.arange(bins))
    return hits.long().sum(0).to(c.dtype)


@aten("bincount")
def bincount(c: Call, x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    (size,) = c.shape
    if isinstance(size, SymExpr):
        raise Refused("how many counts there are follows from the largest element", "count into a fixed number of bins: one_hot(x, n).sum(0)", True)
    ones = F.full(x.shape, 1, c.dtype) if weights is None else weights.to(c.dtype)
    zeros = F.zeros(size, dtype=c.dtype)
    return c.emit(ops.ScatterElements(0, ScatterReduce.ADD), zeros, x.long(), ones)
