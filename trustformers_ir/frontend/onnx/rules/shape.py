"""Ops that move elements: reshapes, slices, joins, gathers and scatters, and tensors made from sizes."""

from __future__ import annotations

import math

import numpy as np

from trustformers_ir.frontend.onnx.elements import ELEMENTS, I64
from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import Absent, Node, emit, number, onnx_op
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, SymExpr, as_symbol, floordiv, maximum, minimum, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange, concat, one_hot, where
from trustformers_ir.ir.ops import ScatterReduce
from trustformers_ir.ir.tensor import Tensor, as_tensor


@onnx_op("Reshape", keeps=True)
def _reshape(n: Node) -> Tensor:
    x = n.t(0)
    wanted: list[Dim] = [*(n.ints("shape") or [])] if n.version < 5 else n.dims(1)
    if not n.attr("allowzero", 0):
        for i, d in enumerate(wanted):
            if d == 0:
                n.require(i < x.ndim, f"size 0 at axis {i} copies an axis of {x.type}, which has none")
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return reshaped(n, x, wanted)


def reshaped(n: Node, x: Tensor, wanted: list[Dim]) -> Tensor:
    """``x`` in another shape with at most one -1."""
    open_ = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == -1]
    n.require(len(open_) <= 1, f"a shape with more than one -1: {wanted}")
    n.require(all(isinstance(d, SymExpr) or d >= -1 for d in wanted), f"a negative size in {wanted}")
    if open_:
        rest = product([d for i, d in enumerate(wanted) if i != open_[0]])
        if rest == 0:
            wanted[open_[0]] = 0
        else:
            total = x.numel()
            if isinstance(total, int) and isinstance(rest, int):
                n.require(total % rest == 0, f"{total} elements do not fill the shape {wanted}")
            wanted[open_[0]] = floordiv(total, rest)
    return x.reshape(*wanted)


@onnx_op("Flatten", keeps=True)
def _flatten(n: Node) -> Tensor:
    x = n.t(0)
    axis = int(n.attr("axis", 1))
    n.require(-x.ndim <= axis <= x.ndim, f"axis {axis} of rank {x.ndim}")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


@onnx_op("Transpose", keeps=True)
def _transpose(n: Node) -> Tensor:
    x = n.t(0)
    perm = n.ints("perm", list(reversed(range(x.ndim))))
    assert perm is not None
    return emit(x, ops.Transpose(tuple(perm)))


def axes_of(n: Node, i: int, since: int, rank: int) -> list[int] | None:
    """Axes: an attribute before opset ``since``, then input ``i``; None where there are none."""
    given = n.wholes(i) if n.version >= since and n.has(i) else None
    found = n.ints("axes") if n.version < since else given
    return None if found is None else [n.place(a, rank) for a in found]


@onnx_op("Unsqueeze", keeps=True)
def _unsqueeze(n: Node) -> Tensor:
    x = n.t(0)
    given = n.ints("axes") if n.version < 13 else n.wholes(1)
    n.require(given is not None, "there are no axes")
    rank = x.ndim + len(given or [])
    axes = {n.place(a, rank) for a in given or []}
    n.require(len(axes) == len(given or []), "an axis is named twice")
    rest = iter(x.shape)
    return x.reshape(*(1 if i in axes else next(rest) for i in range(rank)))


@onnx_op("Squeeze", keeps=True)
def _squeeze(n: Node) -> Tensor:
    x = n.t(0)
    axes = axes_of(n, 1, 13, x.ndim)
    if axes is None:
        axes = [i for i, d in enumerate(x.shape) if n.same(d, 1)]
    for a in axes:
        n.require(n.same(x.shape[a], 1), f"axis {a} of {x.type} is not of size 1")
    return x.reshape(*(d for i, d in enumerate(x.shape) if i not in axes))


@onnx_op("Expand", keeps=True)
def _expand(n: Node) -> Tensor:
    return expanded(n, n.t(0), n.dims(1))


def expanded(n: Node, x: Tensor, shape: list[Dim]) -> Tensor:
    """Both shapes broadcast to each other."""
    rank = max(x.ndim, len(shape))
    mine: list[Dim] = [*[1] * (rank - x.ndim), *x.shape]
    other: list[Dim] = [*[1] * (rank - len(shape)), *shape]
    return x.expand(*(b if n.same(a, 1) else a if n.same(b, 1) else b for a, b in zip(mine, other, strict=True)))


@onnx_op("Tile", keeps=True)
def _tile(n: Node) -> Tensor:
    return n.t(0).tile(*n.dims(1))


@onnx_op("Concat", keeps=True)
def _concat(n: Node) -> Tensor:
    xs = n.tensors()
    n.require(xs, "there is nothing to join")
    return concat(xs, n.axis(xs[0].ndim, 1 if n.version < 4 else Absent))


@onnx_op("Split", keeps=True)
def _split(n: Node) -> list[Tensor]:
    x = n.t(0)
    axis = n.axis(x.ndim, 0)
    size = x.shape[axis]
    listed: list[Dim] = [*(n.ints("split") or [])]
    given = (n.dims(1) if n.has(1) else None) if n.version >= 13 else listed or None
    if given is None:
        count = int(n.attr("num_outputs", n.wanted))
        n.require(1 <= count <= max(n.wanted, 1024), f"{count} outputs, and the node names {n.wanted}")
        piece = floordiv(size + (count - 1), count)
        if isinstance(size, SymExpr) and not n.facts.divisible(size, count):
            raise Refused(f"{size} in {count} pieces: whether they are alike is not known", "give that axis a fixed size")
        given = [piece] * count
        if isinstance(size, int) and isinstance(piece, int):
            given = [max(0, min(piece, size - i * piece)) for i in range(count)]
    return list(x.split(given, axis))


@onnx_op("Slice", keeps=True)
def _slice(n: Node) -> Tensor:
    x = n.t(0)
    if n.version < 10:
        starts: list[Dim] = list(n.attr("starts"))
        ends: list[Dim] = list(n.attr("ends"))
        axes, steps = n.ints("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = n.dims(1), n.dims(2)
        axes = n.wholes(3) if n.has(3) else list(range(len(starts)))
        steps = n.wholes(4) if n.has(4) else [1] * len(starts)
    assert axes is not None
    n.require(len(starts) == len(ends) == len(axes) == len(steps), "starts, ends, axes and steps differ in length")
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        x = sliced(n, x, n.place(axis, x.ndim), start, stop, step)
    return x


def sliced(n: Node, x: Tensor, axis: int, start: Dim, stop: Dim, step: int) -> Tensor:
    """``x[start:stop:step]`` along an axis with Python's rules."""
    n.require(step != 0, "a step of 0")
    size = x.shape[axis]
    if step < 0:
        return sliced(n, emit(x, ops.Flip(axis)), axis, *_mirrored(n, start, stop, size), -step)
    first, last = limited(n, start, size), limited(n, stop, size)
    if isinstance(first, int) and isinstance(last, int) and last < first:
        last = first
    elif not (isinstance(first, int) and isinstance(last, int)) and not n.facts.is_less_equal(first, last):
        raise Refused(f"whether {first} <= {last} is not known", "declare what is known of the dims, or give that axis a fixed size")
    return emit(x, ops.Slice(axis, first, last, step))


def _mirrored(n: Node, start: Dim, stop: Dim, size: Dim) -> tuple[Dim, Dim]:
    """Where a slice that runs backwards lies in the mirrored axis."""

    def turned(at: Dim) -> Dim:
        if isinstance(at, int) and at < 0:
            at = at + size if not isinstance(size, int) or at >= -size else -1
        if isinstance(at, int) and isinstance(size, int):
            at = min(at, size - 1)
        elif isinstance(at, int) and at >= 1 << 31:
            at = size - 1
        return size - 1 - at

    return turned(start), turned(stop)


def limited(n: Node, at: Dim, size: Dim) -> Dim:
    """A bound of a slice between 0 and the size."""
    if isinstance(at, int):
        if isinstance(size, int):
            return max(0, min(size, at + size if at < 0 else at))
        if at >= 1 << 31 or at >= n.facts.bounds(size)[1]:
            return size
        if at < 0:
            if at <= -(1 << 31):
                return 0
            at = at + size
            return at if n.facts.is_less_equal(0, at) else maximum(at, 0)
        return at if n.facts.is_less_equal(at, size) else minimum(at, size)
    if n.facts.is_less_equal(0, at) and n.facts.is_less_equal(at, size):
        return at
    if n.facts.is_less_equal(at, -1):
        return limited(n, at + size, size) if not n.facts.is_less_equal(at, -size - 1) else 0
    if n.facts.is_less_equal(size, at):
        return size
    name = as_symbol(at)
    if name is not None and isinstance(size, int) and n.reader.at_most(name, size, f"{n.op} {n.proto.name}"):
        return at
    return minimum(at, size) if n.facts.is_less_equal(0, at) else maximum(minimum(at, size), 0)


@onnx_op("Pad", keeps=True)
def _pad(n: Node) -> Tensor:
    x = n.t(0)
    mode = n.attr("mode", "constant")
    value: Tensor | None = None
    if n.version < 11:
        widths: list[Dim] = list(n.ints("pads" if n.version >= 2 else "paddings") or [])
        value = number(n.attr("value", 0.0), x)
    else:
        widths = n.dims(1)
        value = n.t(2).reshape() if n.has(2) else None
    rank = x.ndim
    axes = [n.place(a, rank) for a in n.wholes(3)] if n.has(3) else list(range(rank))
    n.require(len(widths) == 2 * len(axes), f"{len(widths)} widths for {len(axes)} axes")
    low: list[Dim] = [0] * rank
    high: list[Dim] = [0] * rank
    for i, a in enumerate(axes):
        low[a], high[a] = widths[i], widths[i + len(axes)]
    if mode == "wrap":
        return _wrap(n, x, low, high)
    for a in range(rank):  # a negative width cuts
        cut = [-d if isinstance(d, int) and d < 0 else 0 for d in (low[a], high[a])]
        if any(cut):
            x = x.narrow(a, cut[0], x.shape[a] - cut[0] - cut[1])
            low[a], high[a] = (0 if c else d for c, d in zip(cut, (low[a], high[a]), strict=True))
    modes = {"constant": ops.PadMode.CONSTANT, "edge": ops.PadMode.EDGE, "reflect": ops.PadMode.REFLECT}
    n.require(mode in modes, f"the mode {mode!r}")
    if all(isinstance(d, int) and d == 0 for d in (*low, *high)):
        return x
    return padded(n, x, low, high, modes[mode], value)


def padded(n: Node, x: Tensor, low: list[Dim], high: list[Dim], mode: ops.PadMode, value: Tensor | None) -> Tensor:
    """Padding by a value that may be known at the run only."""
    if mode is not ops.PadMode.CONSTANT or value is None:
        return emit(x, ops.Pad(tuple(low), tuple(high), mode))
    known = n.reader.peek(Item.of(value))
    if known is not None and known.dtype != object:
        number_ = known.reshape(-1)[0].item()
        if not isinstance(number_, complex) and (float(number_) == number_ or number_ != number_):
            return emit(x, ops.Pad(tuple(low), tuple(high), mode, float(number_)))
    ones = emit(fixed(True, DType.bool).expand(*x.shape), ops.Pad(tuple(low), tuple(high)))
    return where(ones, emit(x, ops.Pad(tuple(low), tuple(high))), value)


def _wrap(n: Node, x: Tensor, low: list[Dim], high: list[Dim]) -> Tensor:
    for a in range(x.ndim):
        if low[a] == 0 and high[a] == 0:
            continue
        size = x.shape[a]
        at = (arange(low[a] + size + high[a]) - as_tensor(low[a], DType.i64)) % as_tensor(size, DType.i64)
        x = emit(x, ops.Gather(a), at)
    return x


# --- gathers and scatters ----------------------------------------------------------------------------------------------------------


@onnx_op("Gather", keeps=True)
def _gather(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.Gather(n.axis(x.ndim, 0)), n.t(1))


@onnx_op("GatherElements", keeps=True)
def _gather_elements(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.GatherElements(n.axis(x.ndim, 0)), n.t(1))


@onnx_op("GatherND", keeps=True)
def _gather_nd(n: Node) -> Tensor:
    return emit(n.t(0), ops.GatherNd(int(n.attr("batch_dims", 0))), n.t(1))


_REDUCE = {"none": ScatterReduce.NONE, "add": ScatterReduce.ADD, "mul": ScatterReduce.MUL, "max": ScatterReduce.MAX, "min": ScatterReduce.MIN}


@onnx_op("ScatterElements", "Scatter", keeps=True)
def _scatter_elements(n: Node) -> Tensor:
    x = n.t(0)
    return emit(x, ops.ScatterElements(n.axis(x.ndim, 0), _REDUCE[n.attr("reduction", "none")]), n.t(1), n.t(2))


@onnx_op("ScatterND", keeps=True)
def _scatter_nd(n: Node) -> Tensor:
    return emit(n.t(0), ops.ScatterNd(_REDUCE[n.attr("reduction", "none")]), n.t(1), n.t(2))


@onnx_op("TensorScatter", keeps=True)
def _tensor_scatter(n: Node) -> Tensor:
    """Rows written into a cache from a place per batch on, circularly if asked for."""
    cache, update = n.t(0), n.t(1)
    axis = n.axis(cache.ndim, -2)
    batch, length, size = cache.shape[0], update.shape[axis], cache.shape[axis]
    start = n.t(2).to(DType.i64) if n.has(2) else fixed(0, DType.i64).expand(batch)
    at = start.reshape(batch, 1) + arange(length).reshape(1, length)
    if n.attr("mode", "linear") == "circular":
        at = at % as_tensor(size, DType.i64)
    shape: list[Dim] = [1] * cache.ndim
    shape[0], shape[axis] = batch, length
    return emit(cache, ops.ScatterElements(axis), at.reshape(*shape).expand(*update.shape), update)


@onnx_op("OneHot")
def _one_hot(n: Node) -> Tensor:
    ids = n.t(0)
    depth = n.dims(1) if n.element(1).dtype.is_integer else [int(n.scalar(1))]  # the specification allows any number
    values = n.t(2)
    n.require(len(depth) == 1, "the depth is one number")
    axis = n.axis(ids.ndim, -1, extra=1)
    whole = ids.to(DType.i64)
    size = depth[0]
    whole = where(whole < 0, whole + as_tensor(size, DType.i64), whole)
    hot = one_hot(whole, size, DType.bool).movedim(-1, axis)
    return where(hot, values[1], values[0])


@onnx_op("Trilu", keeps=True)
def _trilu(n: Node) -> Tensor:
    x = n.t(0)
    n.require(x.ndim >= 2, f"{x.type} has no matrices")
    rows, columns = (arange(d) for d in x.shape[-2:])
    diagonal = rows.unsqueeze(1)
    if n.has(1):
        diagonal = diagonal + n.t(1).reshape().to(DType.i64)
    keep = columns >= diagonal if n.attr("upper", 1) else columns <= diagonal
    return where(keep, x, number(0, x))


@onnx_op("ReverseSequence", keeps=True)
def _reverse_sequence(n: Node) -> Tensor:
    x, lengths = n.t(0), n.t(1).to(DType.i64)
    time, batch = n.axis(x.ndim, 0, "time_axis"), n.axis(x.ndim, 1, "batch_axis")
    steps = arange(x.shape[time])
    shape: list[Dim] = [1] * x.ndim
    shape[time] = x.shape[time]
    steps = steps.reshape(*shape)
    shape = [1] * x.ndim
    shape[batch] = x.shape[batch]
    lengths = lengths.reshape(*shape)
    at = where(steps < lengths, lengths - 1 - steps, steps)
    return emit(x, ops.GatherElements(time), at.expand(*x.shape))


@onnx_op("DepthToSpace", keeps=True)
def _depth_to_space(n: Node) -> Tensor:
    x, s = n.t(0), int(n.attr("blocksize"))
    b, c, h, w = n.sizes(x, 4)
    if n.attr("mode", "DCR") == "DCR":
        return x.reshape(b, s, s, c // (s * s), h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // (s * s), h * s, w * s)
    return x.reshape(b, c // (s * s), s, s, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // (s * s), h * s, w * s)


@onnx_op("SpaceToDepth", keeps=True)
def _space_to_depth(n: Node) -> Tensor:
    x, s = n.t(0), int(n.attr("blocksize"))
    b, c, h, w = n.sizes(x, 4)
    if n.attr("mode", "DCR") == "CRD":
        return x.reshape(b, c, h // s, s, w // s, s).permute(0, 1, 3, 5, 2, 4).reshape(b, c * s * s, h // s, w // s)
    return x.reshape(b, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h // s, w // s)


# --- tensors made from sizes -------------------------------------------------------------------------------------------------------


@onnx_op("ConstantOfShape")
def _constant_of_shape(n: Node) -> Item:
    shape = n.dims(0)
    given = n.attr("value", None)
    element, array = (ELEMENTS[1], np.zeros(1, np.float32)) if given is None else n.reader.file.array(given)
    n.require(array.size == 1, "the value has more than one element")
    n.require(all(isinstance(d, SymExpr) or d >= 0 for d in shape), f"a negative size in {shape}")
    sizes = [d for d in shape if isinstance(d, int)]
    if len(sizes) == len(shape) and element.dtype.is_integer and math.prod(sizes) <= 1024:
        return Item.array(np.full(tuple(sizes), array.reshape(-1)[0]), element)
    return Item.of(fixed(array.reshape(-1)[0], element.dtype).expand(*shape), element)


@onnx_op("EyeLike")
def _eye_like(n: Node) -> Item:
    x = n.item(0)
    n.require(x.rank == 2, "the input is no matrix")
    element = n.element_attr("dtype") if n.attr("dtype", None) is not None else x.element
    rows, columns = (arange(d) for d in x.shape)
    return Item.of((columns == rows.unsqueeze(1) + int(n.attr("k", 0))).to(element.dtype), element)


@onnx_op("Range")
def _range(n: Node) -> Item:
    element = n.element(0)
    n.require(all(n.item(i).shape in ((), (1,)) for i in range(3)), "start, limit and delta are one number each")
    n.require(not element.dtype.is_complex and all(n.element(i) == element for i in range(3)), "start, limit and delta are not of one type")
    bounds = [n.peek(i) for i in range(3)]
    if element.dtype.is_integer and all(b is not None for b in bounds):
        start, limit, delta = ([b.reshape(-1)[0] for b in bounds if b is not None])
        if not isinstance(delta, SymExpr) and any(isinstance(b, SymExpr) for b in (start, limit)):
            low, high = (b if isinstance(b, SymExpr) else int(b) for b in (start, limit))
            return Item.of(arange(low, high, int(delta)).to(element.dtype), element)
    start, limit, delta = (n.const(i).reshape(-1)[0] for i in range(3))
    n.require(delta != 0, "a step of 0")
    n.require(all(np.isfinite(v) for v in (start, limit, delta)), f"a range from {start} to {limit} by {delta}")
    if element.dtype.is_integer:
        count = len(range(int(start), int(limit), int(delta)))
    else:
        count = max(0, int(np.ceil((float(limit) - float(start)) / float(delta))))
    if count <= 64 and element.dtype is DType.i64:
        return Item.array(np.arange(count) * int(delta) + int(start), I64)
    at = arange(count)
    if element.dtype.is_integer:
        return Item.of((at * int(delta) + int(start)).to(element.dtype), element)
    wide = DType.f64 if element.dtype is DType.f64 else DType.f32
    return Item.of((at.to(wide) * fixed(delta, wide) + fixed(start, wide)).to(element.dtype), element)


