"""Reductions and scans. Sums of f16 and bf16 are taken in f32 by the ops themselves; dtypes are those that torch inferred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant, filled
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.tensor import Tensor


def axes_of(x: Tensor, dim: Any) -> tuple[int, ...]:
    """The axes that ATen names: None and the empty list are all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(x.ndim))
    dims = dim if isinstance(dim, (list, tuple)) else [dim]
    return tuple(sorted({d % x.ndim for d in dims})) if x.ndim else ()


def is_empty(x: Tensor) -> bool:
    return any(isinstance(d, int) and d == 0 for d in x.shape)


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The real and imaginary parts of complex numbers."""
    return x.apply(ops.Real()), x.apply(ops.Imag())


@aten("sum")
def sum_all(c: Call, x: Tensor, *, dtype: Any = None) -> Tensor:
    return c.emit(ops.ReduceSum(axes_of(x, None)), x.to(c.dtype))


@aten("sum.dim_IntList")
def sum_dim(c: Call, x: Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return c.emit(ops.ReduceSum(axes_of(x, dim), keepdim), x.to(c.dtype))


@aten("mean")
def mean_all(c: Call, x: Tensor, *, dtype: Any = None) -> Tensor:
    return c.emit(ops.ReduceMean(axes_of(x, None)), x.to(c.dtype))


@aten("mean.dim")
def mean_dim(c: Call, x: Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return c.emit(ops.ReduceMean(axes_of(x, dim), keepdim), x.to(c.dtype))


@aten("prod")
def prod_all(c: Call, x: Tensor, *, dtype: Any = None) -> Tensor:
    return _product(c, x, None, False)


@aten("prod.dim_int")
def prod_dim(c: Call, x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return _product(c, x, dim, keepdim)


def _product(c: Call, x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    if c.dtype is DType.bool:
        return c.emit(ops.ReduceAll(axes_of(x, dim), keepdim), x.to(c.dtype))
    return c.emit(ops.ReduceProd(axes_of(x, dim), keepdim), x.to(c.dtype))


@aten("amax")
def amax(c: Call, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return extreme(c, x, axes_of(x, dim), keepdim, True)


@aten("amin")
def amin(c: Call, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return extreme(c, x, axes_of(x, dim), keepdim, False)


@aten("max")
def max_all(c: Call, x: Tensor) -> Tensor:
    return extreme(c, x, axes_of(x, None), False, True)


@aten("min")
def min_all(c: Call, x: Tensor) -> Tensor:
    return extreme(c, x, axes_of(x, None), False, False)


def extreme(c: Call, x: Tensor, axes: tuple[int, ...], keepdim: bool, largest: bool) -> Tensor:
    if x.dtype is DType.bool:
        return c.emit((ops.ReduceAny if largest else ops.ReduceAll)(axes, keepdim), x)
    return c.emit((ops.ReduceMax if largest else ops.ReduceMin)(axes, keepdim), x)


@aten("max.dim")
def max_dim(c: Call, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return extreme(c, x, axes_of(x, dim), keepdim, True), position(c, x, dim, keepdim, True)


@aten("min.dim")
def min_dim(c: Call, x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return extreme(c, x, axes_of(x, dim), keepdim, False), position(c, x, dim, keepdim, False)


def position(c: Call, x: Tensor, dim: int, keepdim: bool, largest: bool) -> Tensor:
    if x.ndim == 0:
        return F.tensor(0)
    y = x.to(DType.u8) if x.dtype is DType.bool else x
    return c.emit((ops.ArgMax if largest else ops.ArgMin)(dim % x.ndim, keepdim), y)


@aten("aminmax")
def aminmax(c: Call, x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    axes = axes_of(x, dim)
    return extreme(c, x, axes, keepdim, False), extreme(c, x, axes, keepdim, True)


@aten("argmax")
def argmax(c: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _arg(c, x, dim, keepdim, True)


@aten("argmin")
def argmin(c: Call, x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _arg(c, x, dim, keepdim, False)


def _arg(c: Call, x: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Tensor:
    if dim is None:
        found = position(c, x.flatten(), 0, False, largest)
        return found.reshape(*c.shape)
    return position(c, x, dim, keepdim, largest)


@aten("any", "any.dim", "any.dims")
def any_(c: Call, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return _logical(c, x, dim, keepdim, ops.ReduceAny)


@aten("all", "all.dim", "all.dims")
def all_(c: Call, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return _logical(c, x, dim, keepdim, ops.ReduceAll)


def _logical(c: Call, x: Tensor, dim: Any, keepdim: bool, op: Any) -> Tensor:
    axes = () if isinstance(dim, (list, tuple)) and not dim else axes_of(x, dim)
    return c.emit(op(axes, keepdim), x.bool()).to(c.dtype)


@aten("logsumexp")
def logsumexp(c: Call, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    axes, y = axes_of(x, dim), x.to(c.dtype)
    if is_empty(y):
        return c.emit(ops.ReduceSum(axes, keepdim), y.exp()).log()
    return c.emit(ops.ReduceLogSumExp(axes, keepdim), y)


@aten("var.correction")
def var(c: Call, x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    return _spread(c, x, dim, correction, keepdim, False)


@aten("std.correction")
def std(c: Call, x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    return _spread(c, x, dim, correction, keepdim, True)


@aten("var")
def var_all(c: Call, x: Tensor, unbiased: bool = True) -> Tensor:
    return _spread(c, x, None, int(unbiased), False, False)


@aten("std")
def std_all(c: Call, x: Tensor, unbiased: bool = True) -> Tensor:
    return _spread(c, x, None, int(unbiased), False, True)


@aten("var.dim")
def var_dim(c: Call, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _spread(c, x, dim, int(unbiased), keepdim, False)


@aten("std.dim")
def std_dim(c: Call, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _spread(c, x, dim, int(unbiased), keepdim, True)


def _spread(c: Call, x: Tensor, dim: Any, correction: Any, keepdim: bool, root: bool) -> Tensor:
    if x.dtype.is_complex:
        re, im = parts(x)
        total = _spread(c, re, dim, correction, keepdim, False) + _spread(c, im, dim, correction, keepdim, False)
        return total.sqrt() if root else total
    by = 1 if correction is None else correction
    axes = axes_of(x, dim)
    if isinstance(by, (int, float)) and by == int(by) and by >= 0:
        return c.emit((ops.ReduceStd if root else ops.ReduceVar)(axes, keepdim, int(by)), x)
    if not isinstance(by, (int, float)):
        raise Refused("a correction that is no number", "give a number: x.var(correction=1)")
    wide = x.float() if x.dtype in HALVES else x
    off = wide - c.emit(ops.ReduceMean(axes, True), wide)
    count = F.tensor(_count(x, axes)).to(wide.dtype)
    total = c.emit(ops.ReduceSum(axes, keepdim), off.square()) / (count - float(by)).clamp(0.0, None)
    return (total.sqrt() if root else total).to(c.dtype)


def _count(x: Tensor, axes: Sequence[int]) -> Dim:
    return product([x.shape[a] for a in axes])


@aten("var_mean.correction")
def var_mean(c: Call, x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _spread(c, x, dim, correction, keepdim, False), c.emit(ops.ReduceMean(axes_of(x, dim), keepdim), x)


@aten("std_mean.correction")
def std_mean(c: Call, x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _spread(c, x, dim, correction, keepdim, True), c.emit(ops.ReduceMean(axes_of(x, dim), keepdim), x)


@aten("linalg_vector_norm")
def vector_norm(c: Call, x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    axes = axes_of(x, dim)
    y = x.to(dtype) if dtype is not None else x
    size = _magnitude(c, y)
    wide = size.float() if size.dtype in HALVES else size
    if ord == 2:
        out = c.emit(ops.ReduceSum(axes, keepdim), wide.square()).sqrt()
    elif ord == 1:
        out = c.emit(ops.ReduceSum(axes, keepdim), wide)
    elif ord == 0:
        out = c.emit(ops.ReduceSum(axes, keepdim), wide.ne(constant(c, 0, wide.dtype)).to(wide.dtype))
    elif math.isinf(ord):
        if is_empty(wide) and any(isinstance(wide.shape[a], int) and wide.shape[a] == 0 for a in axes):
            return filled(c, 0, c.shape, c.dtype)
        out = c.emit((ops.ReduceMax if ord > 0 else ops.ReduceMin)(axes, keepdim), wide)
    else:
        power = c.emit(ops.Pow(), wide, constant(c, float(ord), wide.dtype))
        total = c.emit(ops.ReduceSum(axes, keepdim), power)
        out = c.emit(ops.Pow(), total, constant(c, 1 / ord, wide.dtype))
    return out.to(c.dtype)


def _magnitude(c: Call, x: Tensor) -> Tensor:
    if not x.dtype.is_complex:
        return x.abs()
    re, im = parts(x)
    return (re.square() + im.square()).sqrt()


@aten("norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype")
def norm_dim(c: Call, x: Tensor, p: Any, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return vector_norm(c, x, 2 if p is None else p, dim, keepdim, dtype=dtype)


@aten("norm.Scalar")
def norm_all(c: Call, x: Tensor, p: Any = 2) -> Tensor:
    return vector_norm(c, x, p)


@aten("cumsum")
def cumsum(c: Call, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    y = x.to(c.dtype)
    return _scanned(c, ops.CumSum, y, dim)


@aten("cumprod")
def cumprod(c: Call, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    return _scanned(c, ops.CumProd, x.to(c.dtype), dim)


def _scanned(c: Call, op: Any, x: Tensor, dim: int) -> Tensor:
    return c.emit(op(dim % x.ndim), x) if x.ndim else x


@aten("logcumsumexp")
def logcumsumexp(c: Call, x: Tensor, dim: int) -> Tensor:
    """Each prefix around its own largest element: ``log(sum of exp(x[j] - m[i]) over j <= i) + m[i]``, over all pairs."""
    if x.ndim == 0 or is_empty(x):
        return x
    axis = dim % x.ndim
    wide = (x.float() if x.dtype in HALVES else x).movedim(axis, -1)
    n = wide.shape[-1]
    rows = F.arange(n)
    seen = rows.unsqueeze(0).le(rows.unsqueeze(1))
    pairs = F.where(seen, wide.unsqueeze(-2), constant(c, -math.inf, wide.dtype))
    return c.emit(ops.ReduceLogSumExp((pairs.ndim - 1,)), pairs).movedim(-1, axis).to(c.dtype)


@aten("cummax")
def cummax(c: Call, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(c, x, dim, True)


@aten("cummin")
def cummin(c: Call, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return _running(c, x, dim, False)


def _running(c: Call, x: Tensor, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The extreme of each prefix and where it is, the last of equals: over all pairs of positions, the later first."""
    if x.ndim == 0:
        return x, F.tensor(0)
    if is_empty(x):
        return x, F.zeros(*x.shape, dtype=DType.i64)
    axis = dim % x.ndim
    y = (x.to(DType.u8) if x.dtype is DType.bool else x).movedim(axis, -1)
    n = y.shape[-1]
    last = c.emit(ops.Flip(y.ndim - 1), y)  # position n - 1 - k
    rows = F.arange(n)
    back = (n - 1) - rows
    seen = back.unsqueeze(0).le(rows.unsqueeze(1))
    if y.dtype.is_float:
        outside: Any = -math.inf if largest else math.inf
    else:
        outside = y.dtype.min if largest else y.dtype.max
    pairs = F.where(seen, last.unsqueeze(-2), constant(c, outside, y.dtype))
    found = c.emit((ops.ArgMax if largest else ops.ArgMin)(pairs.ndim - 1), pairs)
    # where everything seen equals what stands outside, the first of equals may be an unseen one: it is the position itself then
    found = F.maximum(found, back)
    at = (n - 1) - found
    values = y.gather(-1, at)
    return values.to(x.dtype).movedim(-1, axis), at.movedim(-1, axis)


@aten("softmax.int", "_softmax")
def softmax(c: Call, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    y = x.to(c.dtype)
    return c.emit(ops.Softmax(dim % x.ndim), y) if x.ndim else filled(c, 1, (), c.dtype)


@aten("_safe_softmax")
def safe_softmax(c: Call, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Zeros where everything is masked."""
    y = x.to(c.dtype)
    axis = dim % x.ndim
    masked = c.emit(ops.ReduceAll((axis,), True), y.eq(constant(c, -math.inf, y.dtype)))
    return F.where(masked, constant(c, 0, y.dtype), c.emit(ops.Softmax(axis), y))


@aten("log_softmax.int", "_log_softmax")
def log_softmax(c: Call, x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    y = x.to(c.dtype)
    return c.emit(ops.LogSoftmax(dim % x.ndim), y) if x.ndim else filled(c, 0, (), c.dtype)


@aten("count_nonzero", "count_nonzero.dim_IntList")
def count_nonzero(c: Call, x: Tensor, dim: Any = None) -> Tensor:
    return c.emit(ops.ReduceSum(axes_of(x, dim)), x.bool().long())
