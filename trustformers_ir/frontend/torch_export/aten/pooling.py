"""Pooling, patches and resampling: windows of a grid, taken apart by ``unfold``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.aten.movement import c_slice
from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops, windows
from trustformers_ir.ir.dims import Dim, floordiv, product
from trustformers_ir.ir.dtypes import HALVES
from trustformers_ir.ir.ops import ScatterReduce, Window
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import static


def _each(values: Any, rank: int, default: Any = None) -> list[int]:
    """A setting for each axis, from one for all or one for each."""
    given = list(values) if isinstance(values, (list, tuple)) else [values]
    given = given or list(default or [])
    return given * rank if len(given) == 1 else given


def _windows(kernel: Any, stride: Any, padding: Any, dilation: Any, rank: int) -> list[Window]:
    k = _each(kernel, rank)
    options = zip(k, _each(stride, rank, k), _each(padding, rank), _each(dilation, rank), strict=True)
    return [Window(size, by, added, added, spread) for size, by, added, spread in options]


def _max_pool(rank: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def build(
        c: Call, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> tuple[Tensor, Tensor]:
        given: Sequence[Window] = _windows(kernel, stride, padding, dilation, rank)
        pooled = windows.max_pool_places(x, windows.with_ceiling(x, given) if ceil_mode else given)
        place: Tensor | None = None
        for axis, at in enumerate(pooled.places, x.ndim - rank):  # the place in the plane of x, row by row
            place = at if place is None else place * x.shape[axis] + at
        assert place is not None
        return pooled.values, place

    return build


for _rank, _name in ((2, "max_pool2d_with_indices"), (3, "max_pool3d_with_indices")):
    aten(_name)(_max_pool(_rank))


@aten("max_pool1d")
def max_pool1d(c: Call, x: Tensor, *args: Any) -> Tensor:
    return _max_pool(1)(c, x, *args)[0]


@aten("max_pool2d")
def max_pool2d(c: Call, x: Tensor, *args: Any) -> Tensor:
    return _max_pool(2)(c, x, *args)[0]


@aten("max_pool3d")
def max_pool3d(c: Call, x: Tensor, *args: Any) -> Tensor:
    return _max_pool(3)(c, x, *args)[0]


def _avg_pool(rank: int) -> Callable[..., Tensor]:
    def build(
        c: Call, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        given: Sequence[Window] = _windows(kernel, stride, padding, 1, rank)
        wide = x.float() if x.dtype in HALVES else x if x.dtype.is_float else x.double()
        if divisor_override is not None:
            total = windows.sum_pool(wide, windows.with_ceiling(wide, given) if ceil_mode else given)
            out = total / constant(c, divisor_override, wide.dtype)
        else:
            out = windows.avg_pool(wide, given, count_include_pad, ceil_mode)
        return (out if c.dtype.is_float else out.trunc()).to(c.dtype)

    return build


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


def _largest(rank: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def build(c: Call, x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The largest element of each cell and its place in the plane: every cell as wide as the widest, what is beyond it left out."""
        first = x.ndim - rank
        sizes = [static(d, "an axis that is pooled to a fixed size") for d in x.shape[first:]]
        y: Tensor = x
        places: list[Tensor] = []
        for i, (n, count) in enumerate(zip(sizes, [static(d, "the size of a result") for d in c.shape[first:]], strict=True)):
            cells = [(k * n // count, -(-(k + 1) * n // count)) for k in range(count)]
            width = max(b - a for a, b in cells)
            at = F.tensor([[min(a + k, b - 1) for k in range(width)] for a, b in cells])  # the last element again is not larger
            y = y.index_select(first + 2 * i, at)  # [.., cells, width, ..]
            places.append(at)
        order = [*range(first), *(first + 2 * i for i in range(rank)), *(first + 2 * i + 1 for i in range(rank))]
        y = y.permute(*order)
        flat = y.reshape(*y.shape[: first + rank], product(y.shape[first + rank :]))
        best = flat.argmax(-1)
        place: Tensor | None = None
        rest = best
        offsets: list[Tensor] = []
        for at in reversed(places):
            width = static(at.shape[1], "a width")
            offsets.insert(0, rest % width)
            rest = rest // width
        for i, (at, offset) in enumerate(zip(places, offsets, strict=True)):
            cell = F.arange(at.shape[0]).reshape(at.shape[0], *([1] * (rank - i - 1)))
            found = at.flatten().index_select(0, cell * at.shape[1] + offset)
            place = found if place is None else place * sizes[i] + found
        assert place is not None
        return flat.amax(-1), place

    return build


for _rank, _name in ((2, "adaptive_max_pool2d"), (3, "adaptive_max_pool3d")):
    aten(_name)(_largest(_rank))


# --- patches -----------------------------------------------------------------------------------------------------------------------


@aten("im2col")
def im2col(c: Call, x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    y = windows.unfold(x, _windows(kernel, stride, padding, dilation, 2))  # [.., places, window]
    n = y.ndim - 4
    return y.permute(*range(n), n + 2, n + 3, n, n + 1).reshape(*c.shape)


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

