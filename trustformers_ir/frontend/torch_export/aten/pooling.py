"""Pooling, patches and resampling: windows of a grid, taken apart by strided slices or by positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from trustformers_ir.frontend.torch_export.aten.movement import c_slice
from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, floordiv
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops import ScatterReduce
from trustformers_ir.ir.tensor import Tensor


def _each(values: Any, rank: int, default: Any = None) -> list[int]:
    """A setting for each axis, from one for all or one for each."""
    given = list(values) if isinstance(values, (list, tuple)) else [values]
    given = given or list(default or [])
    return given * rank if len(given) == 1 else given


def _taps(
    c: Call,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    counts: Sequence[Dim],
    fill: Any,
) -> list[Tensor]:
    """For each position in the window, what stands there in all windows."""
    rank = len(kernel)
    first = x.ndim - rank
    low, high = [0] * x.ndim, list[Dim]([0] * x.ndim)
    for i in range(rank):
        reach = stride[i] * (counts[i] - 1) + dilation[i] * (kernel[i] - 1) + 1
        low[first + i] = padding[i]
        after = reach - x.shape[first + i] - padding[i]
        high[first + i] = max(after, 0) if isinstance(after, int) else padding[i] + stride[i] - 1
    if any(low) or any(not isinstance(h, int) or h for h in high):
        x = c.emit(ops.Pad(tuple(low), tuple(high), value=float(fill)), x)
    found: list[Tensor] = []
    for place in _places(kernel):
        y = x
        for i, at in enumerate(place):
            start = at * dilation[i]
            y = c_slice(c, y, first + i, start, start + stride[i] * (counts[i] - 1) + 1, stride[i])
        found.append(y)
    return found


def _places(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    return [()] if not kernel else [(*a, b) for a in _places(kernel[:-1]) for b in range(kernel[-1])]


def _max_pool(rank: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def build(
        c: Call, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> tuple[Tensor, Tensor]:
        k, p, d = _each(kernel, rank), _each(padding, rank), _each(dilation, rank)
        s = _each(stride, rank, k)
        counts = c.shape[-rank:]
        low: Any = -math.inf if x.dtype.is_float else x.dtype.min
        if not x.dtype.is_float and abs(low) > 1 << 53:
            low = -(1 << 62)
        taps = _taps(c, x, k, s, p, d, counts, low)
        values = reduce(F.maximum, taps)
        return values, _where_largest(c, x, taps, k, s, p, d, counts)

    return build


def _where_largest(
    c: Call, x: Tensor, taps: list[Tensor], k: list[int], s: list[int], p: list[int], d: list[int], counts: Sequence[Dim]
) -> Tensor:
    """The place of the largest element in the plane of x, row by row."""
    rank = len(k)
    best = F.stack(taps, 0).argmax(0)  # which tap, the first of equals
    place: Tensor | None = None
    rest = best
    offsets: list[Tensor] = []
    for size in reversed(k):
        offsets.insert(0, rest % size)
        rest = rest // size
    for i in range(rank):
        start = (F.arange(counts[i]) * s[i] - p[i]).reshape(counts[i], *([1] * (rank - i - 1)))
        at = offsets[i] * d[i] + start
        place = at if place is None else place * x.shape[x.ndim - rank + i] + at
    assert place is not None
    return place


for _rank, _name in ((2, "max_pool2d_with_indices"), (3, "max_pool3d_with_indices")):
    aten(_name)(_max_pool(_rank))


@aten("max_pool1d")
def max_pool1d(c: Call, x: Tensor, *args: Any) -> Tensor:
    return _max_pool(1)(c, x, *args)[0]


@aten("max_pool2d")
def max_pool2d(c: Call, x: Tensor, *args: Any) -> Tensor:
    return _max_pool(2)(c, x, *args)[0]


def _avg_pool(rank: int) -> Callable[..., Tensor]:
    def build(
        c: Call, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        k, p = _each(kernel, rank), _each(padding, rank)
        s = _each(stride, rank, k)
        counts = c.shape[-rank:]
        wide = x.float() if x.dtype in HALVES else x
        ones = [1] * rank
        total = reduce(lambda a, b: a + b, _taps(c, wide, k, s, p, ones, counts, 0))
        if divisor_override is not None:
            by: Tensor = constant(c, divisor_override, wide.dtype)
        else:
            by = _counted(c, x, k, s, p, counts, count_include_pad).to(wide.dtype)
        out = c.emit(ops.Div() if wide.dtype.is_float else ops.FloorDiv(), total, by)
        return out.to(c.dtype)

    return build


def _counted(c: Call, x: Tensor, k: list[int], s: list[int], p: list[int], counts: Sequence[Dim], padded: bool) -> Tensor:
    """How many elements each window holds: of x and its padding, or of x alone."""
    rank = len(k)
    total: Tensor | None = None
    for i in range(rank):
        size = x.shape[x.ndim - rank + i]
        start = F.arange(counts[i]) * s[i] - p[i]
        stop = F.minimum(start + k[i], size + p[i])
        if not padded:
            start, stop = F.maximum(start, 0), F.minimum(stop, size)
        length = (stop - start).reshape(counts[i], *([1] * (rank - i - 1)))
        total = length if total is None else total * length
    assert total is not None
    return total


for _rank, _name in ((1, "avg_pool1d"), (2, "avg_pool2d"), (3, "avg_pool3d")):
    aten(_name)(_avg_pool(_rank))


def _adaptive(rank: int, name: str) -> Callable[..., Tensor]:
    def build(c: Call, x: Tensor, size: Sequence[int]) -> Tensor:
        """The mean of cells: one axis after the other, by prefix sums where the cells are of several sizes."""
        y = x.float() if x.dtype in HALVES else x
        for i in range(rank):
            axis = x.ndim - rank + i
            y = _cells(c, y, axis, c.shape[axis])
        return y.to(c.dtype)

    return build


def _cells(c: Call, x: Tensor, axis: int, count: Dim) -> Tensor:
    size = x.shape[axis]
    if c.facts.is_equal(count, 1):
        return c.emit(ops.ReduceMean((axis,), True), x)
    if isinstance(size, int) and isinstance(count, int) and size % count == 0:
        y = x.reshape(*x.shape[:axis], count, size // count, *x.shape[axis + 1 :])
        return c.emit(ops.ReduceMean((axis + 1,)), y)
    if not isinstance(size, int) or not isinstance(count, int):
        raise Refused(f"adaptive pooling of an axis of {size} elements to {count}", "fix the sizes of images: pooling to 1 takes any")
    cells = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return F.concat([c.emit(ops.ReduceMean((axis,), True), c_slice(c, x, axis, a, b)) for a, b in cells], axis)


for _rank, _name in ((1, "adaptive_avg_pool1d"), (2, "_adaptive_avg_pool2d"), (2, "adaptive_avg_pool2d"), (3, "_adaptive_avg_pool3d")):
    aten(_name)(_adaptive(_rank, _name))


# --- patches -----------------------------------------------------------------------------------------------------------------------


@aten("im2col")
def im2col(c: Call, x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    single = x.ndim == 3
    y = x.unsqueeze(0) if single else x
    k, d, p, s = (_each(v, 2) for v in (kernel, dilation, padding, stride))
    counts = [floordiv(y.shape[2 + i] + 2 * p[i] - d[i] * (k[i] - 1) - 1, s[i]) + 1 for i in range(2)]
    taps = _taps(c, y, k, s, p, d, counts, 0)
    return F.stack(taps, 2).reshape(*c.shape)


@aten("col2im")
def col2im(
    c: Call, x: Tensor, output_size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The sum of patches that overlap."""
    single = x.ndim == 2
    y = x.unsqueeze(0) if single else x
    k, d, p, s = (_each(v, 2) for v in (kernel, dilation, padding, stride))
    size = list(output_size)
    counts = [(size[i] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in range(2)]
    at: list[Tensor] = []
    for i in range(2):
        at.append((F.arange(counts[i]) * s[i]).unsqueeze(0) + (F.arange(k[i]) * d[i]).unsqueeze(1))  # [kernel, count]
    whole = [size[i] + 2 * p[i] for i in range(2)]
    rows = at[0].reshape(k[0], 1, counts[0], 1) * whole[1] + at[1].reshape(1, k[1], 1, counts[1])
    batch = y.shape[0]
    channels = floordiv(y.shape[1], k[0] * k[1])
    flat = y.reshape(batch, channels, k[0] * k[1] * counts[0] * counts[1])
    index = rows.flatten().reshape(1, 1, -1).expand(*flat.shape)
    zeros = F.zeros(batch, channels, whole[0] * whole[1], dtype=y.dtype)
    out = c.emit(ops.ScatterElements(2, ScatterReduce.ADD), zeros, index, flat).reshape(batch, channels, *whole)
    for i in range(2):
        out = c_slice(c, out, 2 + i, p[i], p[i] + size[i])
    return out.reshape(*c.shape)


__all__ = ["DType"]
