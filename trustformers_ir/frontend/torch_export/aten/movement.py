"""Data movement: views, copies, joining and cutting. The shapes are those that torch inferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, SymExpr, floordiv, maximum, minimum, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import ConstraintError
from trustformers_ir.ir.subscript import clamped, slice_axis
from trustformers_ir.ir.tensor import Tensor, as_tensor

END = (1 << 63) - 1


@aten("view", "_unsafe_view", "reshape", "view_copy", "unflatten.int", "flatten.using_ints", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze")
@aten("squeeze_copy", "squeeze_copy.dim", "squeeze_copy.dims", "unsqueeze_copy", "_reshape_alias", "_reshape_copy", "ravel")
@aten("prims.split_dim.default", "prims.collapse_view.default", "prims.view_of.default", "prims.squeeze.default")
def view(c: Call, x: Tensor, *_: Any) -> Tensor:
    return x.reshape(*c.shape)


@aten("view.dtype", "view_copy.dtype")
def view_dtype(c: Call, x: Tensor, dtype: DType) -> Tensor:
    if dtype is x.dtype:
        return x
    if dtype.bits != x.dtype.bits:
        raise Refused(f"the bytes of {x.dtype} as {dtype}, of another width", "convert the numbers: x.to(dtype)")
    return c.emit(ops.BitCast(dtype), x)


@aten("expand", "expand_copy", "broadcast_to", "expand_as")
def expand(c: Call, x: Tensor, *_: Any, implicit: bool = False) -> Tensor:
    return x.expand(*c.shape) if c.shape else x


@aten("permute", "permute_copy")
def permute(c: Call, x: Tensor, dims: Sequence[int]) -> Tensor:
    return x.permute(*dims) if dims else x


@aten("transpose.int", "transpose_copy.int", "swapaxes", "swapdims")
def transpose(c: Call, x: Tensor, a: int, b: int) -> Tensor:
    return x.transpose(a, b) if x.ndim else x


@aten("t", "t_copy", "numpy_T", "adjoint", "mT", "matrix_H", "mH")
def t(c: Call, x: Tensor) -> Tensor:
    return x.transpose(-1, -2) if x.ndim > 1 else x


@aten("alias", "alias_copy", "clone", "contiguous", "detach", "detach_", "positive")
@aten("resolve_conj", "resolve_neg")
def same(c: Call, x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


@aten("_to_copy", "to.dtype", "to.device", "to.dtype_layout", "to.other", "prims.convert_element_type.default", "type_as")
def to(c: Call, x: Tensor, *_: Any, **__: Any) -> Tensor:
    if x.dtype.is_complex and not c.dtype.is_complex and c.dtype is not DType.bool:
        x = x.real
    return x.to(c.dtype)


@aten("copy")
def copy(c: Call, x: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    """What is in x after ``x.copy_(source)``."""
    return as_tensor(source, c.dtype).expand(*c.shape) if c.shape else as_tensor(source, c.dtype).reshape()


@aten("slice.Tensor", "slice_copy.Tensor")
def slice_tensor(c: Call, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Tensor:
    axis = dim % x.ndim
    size = x.shape[axis]
    low, high = _bounds(c, size, start, end, c.shape[axis] if step == 1 else None)
    return c_slice(c, x, axis, low, high, step)


def c_slice(c: Call, x: Tensor, axis: int, low: Dim, high: Dim, step: int = 1) -> Tensor:
    return Tensor(c.trace, slice_axis(c.trace, x.value, axis, low, high, step))


def _bounds(c: Call, size: Dim, start: Any, end: Any, length: Dim | None) -> tuple[Dim, Dim]:
    """Bounds counted from 0 and clamped to the axis. ``length`` is that of the result where torch knows it: it often says what our facts do not."""
    low = 0 if start is None else clamped(c.trace, start, size)
    if length is not None and c.facts.is_less_equal(low + length, size):
        return low, low + length
    high = size if end is None or (not isinstance(end, SymExpr) and end >= END) else clamped(c.trace, end, size)
    if not c.facts.is_less_equal(low, high):
        high = low if c.facts.is_less_equal(high, low) else maximum(low, high)
    return low, high


@aten("select.int", "select_copy.int")
def select(c: Call, x: Tensor, dim: int, index: Any) -> Tensor:
    axis = dim % x.ndim
    low = index if c.facts.is_less_equal(0, index) else x.shape[axis] + index
    y = c_slice(c, x, axis, low, low + 1)
    return y.reshape(*y.shape[:axis], *y.shape[axis + 1 :])


@aten("narrow", "narrow_copy")
def narrow(c: Call, x: Tensor, dim: int, start: Any, length: Any) -> Tensor:
    axis = dim % x.ndim
    low = start if c.facts.is_less_equal(0, start) else x.shape[axis] + start
    return c_slice(c, x, axis, low, low + length)


@aten("cat", "concat", "concatenate")
def cat(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    rank = len(c.shape)
    parts = [t.to(c.dtype) for t in tensors if t.ndim == rank and not (rank == 1 and not isinstance(t.shape[0], SymExpr) and t.shape[0] == 0)]
    return F.concat(parts or [tensors[0].to(c.dtype)], dim)


@aten("stack")
def stack(c: Call, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return F.stack([t.to(c.dtype) for t in tensors], dim)


@aten("split.Tensor", "split_with_sizes", "split_with_sizes_copy", "split_copy.Tensor", "split.sizes", "chunk", "tensor_split.sections")
def split(c: Call, x: Tensor, size: Any, dim: int = 0) -> tuple[Tensor, ...]:
    return _cut(c, x, dim)


@aten("tensor_split.indices", "unsafe_split.Tensor", "unsafe_chunk", "unsafe_split_with_sizes")
def split_at(c: Call, x: Tensor, indices: Any, dim: int = 0) -> tuple[Tensor, ...]:
    return _cut(c, x, dim)


def _cut(c: Call, x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Pieces one behind the other, as long as torch says."""
    axis = dim % x.ndim
    pieces: list[Tensor] = []
    start: Dim = 0
    for type in c.results:
        assert type is not None
        stop = start + type.shape[axis]
        pieces.append(c_slice(c, x, axis, start, stop))
        start = stop
    return tuple(pieces)


@aten("unbind.int", "unbind_copy.int")
def unbind(c: Call, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    return x.unbind(dim)


@aten("flip")
def flip(c: Call, x: Tensor, dims: Sequence[int]) -> Tensor:
    for axis in sorted({d % x.ndim for d in dims}) if x.ndim else []:
        x = c.emit(ops.Flip(axis), x)
    return x


@aten("roll")
def roll(c: Call, x: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    shifts = shifts if isinstance(shifts, (list, tuple)) else [shifts]
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    if not dims:
        return _rolled(c, x.flatten(), shifts[0], 0).reshape(*x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        x = _rolled(c, x, shift, dim % x.ndim) if x.ndim else x
    return x


def _rolled(c: Call, x: Tensor, shift: Any, axis: int) -> Tensor:
    size = x.shape[axis]
    if isinstance(size, int) and (size == 0 or (isinstance(shift, int) and shift % size == 0)):
        return x
    cut = (size - shift) % size
    return F.concat([c_slice(c, x, axis, cut, size), c_slice(c, x, axis, 0, cut)], axis)


@aten("repeat", "tile")
def repeat(c: Call, x: Tensor, repeats: Sequence[Any]) -> Tensor:
    if any(isinstance(r, int) and r == 0 for r in repeats):
        return F.zeros(*c.shape, dtype=c.dtype)
    return x.tile(*repeats) if repeats else x


@aten("repeat_interleave.self_int")
def repeat_interleave(c: Call, x: Tensor, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Tensor:
    return x.repeat_interleave(repeats, dim).reshape(*c.shape)


@aten("constant_pad_nd")
def constant_pad(c: Call, x: Tensor, pad: Sequence[Any], value: Any = 0) -> Tensor:
    """Negative widths cut."""
    low, high = [list[Any]([0] * x.ndim) for _ in range(2)]
    for i in range(len(pad) // 2):
        axis = x.ndim - 1 - i
        before, after = pad[2 * i], pad[2 * i + 1]
        cut = [-w if isinstance(w, int) and w < 0 else 0 for w in (before, after)]
        if any(cut):
            x = c_slice(c, x, axis, cut[0], x.shape[axis] - cut[1])
        low[axis], high[axis] = (0 if isinstance(w, int) and w < 0 else w for w in (before, after))
    return _padded(c, x, low, high, value)


def _padded(c: Call, x: Tensor, low: Sequence[Dim], high: Sequence[Dim], value: Any) -> Tensor:
    """Widths that may be negative for some sizes are concatenated and cut."""
    if all(isinstance(w, int) and w == 0 for w in (*low, *high)):
        return x
    if x.dtype.is_complex:
        number = complex(value)
        return F.make_complex(_padded(c, x.real, low, high, number.real), _padded(c, x.imag, low, high, number.imag))
    surely = all(c.facts.is_less_equal(0, w) for w in (*low, *high))
    if surely:
        filler = int(bool(value)) if x.dtype is DType.bool else int(value) if x.dtype.is_integer else float(value)
        return c.emit(ops.Pad(tuple(low), tuple(high), value=float(filler)), x)
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        if before == 0 and after == 0:
            continue
        added = [maximum(0, w) if not isinstance(w, int) else max(0, w) for w in (before, after)]
        taken = [maximum(0, -w) if not isinstance(w, int) else max(0, -w) for w in (before, after)]
        widths = [0] * axis, [0] * (x.ndim - axis - 1)
        y = c.emit(ops.Pad((*widths[0], added[0], *widths[1]), (*widths[0], added[1], *widths[1]), value=float(value)), x)
        x = c_slice(c, y, axis, taken[0], y.shape[axis] - taken[1])
    return x


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflection_pad(c: Call, x: Tensor, padding: Sequence[Any]) -> Tensor:
    return _mirrored(c, x, padding, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replication_pad(c: Call, x: Tensor, padding: Sequence[Any]) -> Tensor:
    return _mirrored(c, x, padding, "replicate")


def _mirrored(c: Call, x: Tensor, padding: Sequence[Any], mode: str) -> Tensor:
    """Negative widths cut what the others have added."""
    y = F.pad(x, [max(p, 0) if isinstance(p, int) else p for p in padding], mode)
    for i in range(len(padding) // 2):
        axis = x.ndim - 1 - i
        before, after = (max(-p, 0) if isinstance(p, int) else 0 for p in padding[2 * i : 2 * i + 2])
        if before or after:
            y = c_slice(c, y, axis, before, y.shape[axis] - after)
    return y


@aten("tril")
def tril(c: Call, x: Tensor, diagonal: Any = 0) -> Tensor:
    return x.tril(diagonal)


@aten("triu")
def triu(c: Call, x: Tensor, diagonal: Any = 0) -> Tensor:
    return x.triu(diagonal)


@aten("diagonal", "diagonal_copy")
def diagonal(c: Call, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """One element of each row: the position along the second axis follows from that along the first."""
    a, b = dim1 % x.ndim, dim2 % x.ndim
    y = x.permute(*(i for i in range(x.ndim) if i not in (a, b)), a, b)
    n = c.shape[-1]
    y = c_slice(c, y, y.ndim - 2, max(-offset, 0), max(-offset, 0) + n)
    y = c_slice(c, y, y.ndim - 1, max(offset, 0), max(offset, 0) + n)
    at = F.arange(n).reshape(*([1] * (y.ndim - 2)), n, 1).expand(*y.shape[:-2], n, 1)
    return y.gather(-1, at).reshape(*c.shape)


@aten("unfold", "unfold_copy")
def unfold(c: Call, x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """Windows along an axis; their elements go behind all axes."""
    if x.ndim == 0:
        return x.reshape(*c.shape)
    axis = dim % x.ndim
    count = c.shape[axis]
    starts = F.arange(count) * step
    at = starts.unsqueeze(1) + F.arange(size)
    y = x.index_select(axis, at)  # [before, count, size, after]
    return y.permute(*(i for i in range(y.ndim) if i != axis + 1), axis + 1)


def strided_index(sizes: Sequence[Dim], strides: Sequence[Any], offset: Any) -> Tensor:
    """Position in memory of each element of a strided view."""
    at: Tensor | None = None
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        part = (F.arange(size) * stride).reshape(*([1] * axis), size, *([1] * (len(sizes) - axis - 1)))
        at = part if at is None else at + part
    at = F.tensor(0) if at is None else at
    return at if isinstance(offset, int) and offset == 0 else at + offset


@aten("as_strided", "as_strided_copy")
def as_strided(c: Call, x: Tensor, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None) -> Tensor:
    """Of a tensor whose elements lie in row-major order, as all of ours do."""
    return x.flatten().index_select(0, strided_index(c.shape, stride, storage_offset or 0))


@aten("slice_scatter")
def slice_scatter(c: Call, x: Tensor, source: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Tensor:
    axis = dim % x.ndim
    size = x.shape[axis]
    low, high = _bounds(c, size, start, end, source.shape[axis] if step == 1 else None)
    source = source.to(x.dtype)
    if step != 1:
        at = F.arange(source.shape[axis]) * step + low
        return _put_rows(x, axis, at, source)
    length = high - low
    source = source.expand(*x.shape[:axis], length, *x.shape[axis + 1 :])
    parts = [c_slice(c, x, axis, 0, low), source, c_slice(c, x, axis, high, size)]
    kept = [p for p in parts if not (isinstance(p.shape[axis], int) and p.shape[axis] == 0)]
    return F.concat(kept, axis) if kept else x


def _put_rows(x: Tensor, axis: int, at: Tensor, source: Tensor) -> Tensor:
    shape = source.shape
    at = at.reshape(*([1] * axis), shape[axis], *([1] * (x.ndim - axis - 1))).expand(*shape)
    return x.scatter(axis, at, source)


@aten("select_scatter")
def select_scatter(c: Call, x: Tensor, source: Tensor, dim: int, index: Any) -> Tensor:
    axis = dim % x.ndim
    low = index if c.facts.is_less_equal(0, index) else x.shape[axis] + index
    row = source.to(x.dtype).expand(*x.shape[:axis], *x.shape[axis + 1 :]) if x.ndim > 1 else source.to(x.dtype)
    row = row.reshape(*x.shape[:axis], 1, *x.shape[axis + 1 :])
    parts = [c_slice(c, x, axis, 0, low), row, c_slice(c, x, axis, low + 1, x.shape[axis])]
    return F.concat([p for p in parts if not (isinstance(p.shape[axis], int) and p.shape[axis] == 0)], axis)


@aten("diagonal_scatter")
def diagonal_scatter(c: Call, x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    a, b = dim1 % x.ndim, dim2 % x.ndim
    order = [*(i for i in range(x.ndim) if i not in (a, b)), a, b]
    y = x.permute(*order)
    rows, columns = (F.arange(d) for d in y.shape[-2:])
    on = columns.eq(rows.unsqueeze(1) + offset)
    n = source.shape[-1]
    full = source.to(x.dtype).unsqueeze(-1)
    at = F.arange(n)
    spread = F.where((at + max(offset, 0)).unsqueeze(1).eq(columns), full, as_tensor(0, x.dtype))  # [.., n, columns]
    before, after = max(-offset, 0), y.shape[-2] - n - max(-offset, 0)
    widths = ([0] * (y.ndim - 2) + [before, 0], [0] * (y.ndim - 2) + [after, 0])
    placed = _padded(c, spread, *widths, 0)
    z = F.where(on, placed, y)
    back = [order.index(i) for i in range(x.ndim)]
    return z.permute(*back)


@aten("as_strided_scatter")
def as_strided_scatter(c: Call, x: Tensor, source: Tensor, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None) -> Tensor:
    at = strided_index(source.shape, stride, storage_offset or 0).flatten()
    return x.flatten().scatter(0, at, source.to(x.dtype).flatten()).reshape(*x.shape)


@aten("pixel_shuffle")
def pixel_shuffle(c: Call, x: Tensor, factor: int) -> Tensor:
    *lead, channels, h, w = x.shape
    y = x.reshape(*lead, floordiv(channels, factor * factor), factor, factor, h, w)
    n = len(lead)
    return y.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2).reshape(*c.shape)


@aten("pixel_unshuffle")
def pixel_unshuffle(c: Call, x: Tensor, factor: int) -> Tensor:
    *lead, channels, h, w = x.shape
    y = x.reshape(*lead, channels, floordiv(h, factor), factor, floordiv(w, factor), factor)
    n = len(lead)
    return y.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3).reshape(*c.shape)


@aten("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(c: Call, x: Tensor, groups: int) -> Tensor:
    batch, channels, *rest = x.shape
    return x.reshape(batch, groups, floordiv(channels, groups), *rest).transpose(1, 2).reshape(*c.shape)


__all__ = ["ConstraintError", "c_slice", "constant", "minimum", "product", "strided_index"]
