"""Ops whose results have as many elements as the data says: NonZero, Compress, Unique, NonMaxSuppression."""

from __future__ import annotations

from trustformers_ir.frontend.onnx.elements import I64
from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import Node, emit, number, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Item, Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, SymbolFact, SymExpr, product, symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange, concat, stack, where
from trustformers_ir.ir.tensor import Tensor, as_tensor


def positions(n: Node, mask: Tensor) -> Tensor:
    """The positions of the true elements of a vector; their number is a dim of its own."""
    symbols = n.facts.symbols
    base = "".join(c if c.isalnum() else "_" for c in (n.proto.output[0] or n.op)[:60])
    base = base if base[0].isalpha() else f"_{base}"
    name = count = f"{base}_found"
    i = 1
    while name in symbols:
        i += 1
        name = f"{count}_{i}"
    size = mask.shape[0]
    n.facts.declare(name, SymbolFact(0, size if isinstance(size, int) else None))
    return emit(mask, ops.NonZero(symbol(name)))


@onnx_op("NonZero")
def _nonzero(n: Node) -> Item:
    x = n.t(0)
    n.require(x.ndim > 0, "the input is a scalar")
    mask = x if x.dtype is DType.bool else x != number(0, x)
    at = positions(n, mask.flatten())
    rows: list[Tensor] = []
    for axis in range(x.ndim):
        inner, size = product(x.shape[axis + 1 :]), x.shape[axis]
        row = at if isinstance(inner, int) and inner == 1 else at // as_tensor(inner, DType.i64)
        rows.append(row if axis == 0 else row % as_tensor(size, DType.i64))
    return Item.of(stack(rows, 0), I64)


@onnx_op("Compress", keeps=True)
def _compress(n: Node) -> Tensor:
    x, keep = n.t(0), n.t(1)
    axis = n.attr("axis", None)
    if axis is None:
        x, at = x.flatten(), 0
    else:
        at = n.place(axis, x.ndim)
    return emit(x, ops.Gather(at), positions(n, keep))


@onnx_op("Unique")
def _unique(n: Node) -> list[Item]:
    x = n.t(0)
    axis = n.attr("axis", None)
    rows = x.flatten() if axis is None else x.movedim(n.place(axis, x.ndim), 0)
    count = rows.shape[0]
    if isinstance(count, int) and count == 0:
        raise Refused("the unique elements of none")
    order = _order(rows)
    moved = emit(rows, ops.Gather(0), order)
    flat = moved.reshape(count, product(moved.shape[1:]))
    before = concat([flat.narrow(0, 0, 1), flat.narrow(0, 0, count - 1)], 0)
    changed = (flat != before).any(1) if not flat.dtype.is_float else ((flat != before) & ~(flat.isnan() & before.isnan())).any(1)
    first = changed | (arange(count) == 0)  # of each run of equal rows
    group = first.to(DType.i64)._emit(ops.CumSum(0)) - 1
    zeros = fixed(0, DType.i64).expand(count)
    inverse = emit(zeros, ops.ScatterElements(0), order, group)
    if n.attr("sorted", 1):
        at = positions(n, first)
        index = emit(order, ops.Gather(0), at)
        total = emit(zeros, ops.ScatterElements(0, ops.ScatterReduce.ADD), group, fixed(1, DType.i64).expand(count))
        counts = emit(total, ops.Gather(0), arange(at.shape[0]))
    else:  # in the order in which they first occur
        start = emit(zeros, ops.ScatterElements(0, ops.ScatterReduce.ADD), group, where(first, order, number(0, order)))  # of each group
        mine = emit(start, ops.Gather(0), inverse)  # where each row's group first occurs
        is_first = mine == arange(count)
        index = positions(n, is_first)
        number_of = is_first.to(DType.i64)._emit(ops.CumSum(0)) - 1
        total = emit(zeros, ops.ScatterElements(0, ops.ScatterReduce.ADD), group, fixed(1, DType.i64).expand(count))
        counts = emit(emit(total, ops.Gather(0), inverse), ops.Gather(0), index)
        inverse = emit(number_of, ops.Gather(0), mine)
    y = emit(rows, ops.Gather(0), index)
    if axis is not None:
        y = y.movedim(0, n.place(axis, x.ndim))
    return [Item.of(y, n.element(0)), Item.of(index, I64), Item.of(inverse, I64), Item.of(counts, I64)]


def _order(rows: Tensor) -> Tensor:
    """The stable order of rows, the first column counting most."""
    if rows.ndim == 1:
        whole = rows.to(DType.u8) if rows.dtype is DType.bool else rows
        return whole.sort(0).indices
    count = rows.shape[0]
    flat = rows.reshape(count, product(rows.shape[1:]))
    width = flat.shape[1]
    if isinstance(width, SymExpr) or width > 64:
        raise Refused(f"unique rows of {width} elements", "rows of a constant size of at most 64 are compiled")
    order = arange(count)
    for column in reversed(range(width)):  # stable sorts from the last column to the first
        key = emit(flat.select(1, column), ops.Gather(0), order)
        key = key.to(DType.u8) if key.dtype is DType.bool else key
        order = emit(order, ops.Gather(0), key.sort(0).indices)
    return order


@onnx_op("NonMaxSuppression")
def _nms(n: Node) -> Item:
    boxes, scores = widened(n.t(0)), widened(n.t(1))
    n.require(boxes.ndim == 3 and scores.ndim == 3, f"boxes {boxes.type}, scores {scores.type}")
    batch, classes, count = n.sizes(scores, 3)
    limit = n.t(2).reshape().to(DType.i64) if n.has(2) else fixed(0, DType.i64)
    threshold = n.t(3).reshape() if n.has(3) else fixed(0.0, DType.f32)
    order = scores.sort(-1, descending=True).indices  # [batch, classes, boxes]
    ranked = emit(scores, ops.GatherElements(2), order)
    a, b, c, d = (boxes.select(2, i) for i in range(4))
    if n.attr("center_point_box", 0):
        a, b, c, d = b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0
    corners: list[Tensor] = []
    for t in (a.minimum(c), b.minimum(d), a.maximum(c), b.maximum(d)):
        wide = t.unsqueeze(1).expand(batch, classes, count)
        corners.append(emit(wide, ops.GatherElements(2), order))
    top, left, bottom, right = corners
    area = (bottom - top) * (right - left)

    def pair(f: str, t: Tensor) -> Tensor:
        return getattr(t.unsqueeze(3), f)(t.unsqueeze(2))  # type: ignore[no-any-return]

    height = (pair("minimum", bottom) - pair("maximum", top)).maximum(0.0)
    width = (pair("minimum", right) - pair("maximum", left)).maximum(0.0)
    common = height * width
    union = area.unsqueeze(3) + area.unsqueeze(2) - common
    over = (common > threshold * union) & (union > 0.0)
    live = ranked > n.t(4).reshape() if n.has(4) else fixed(True, DType.bool).expand(batch, classes, count)
    kept = emit(over, ops.Suppress(), live)
    kept = kept & (kept.to(DType.i64)._emit(ops.CumSum(2)) <= limit)
    at = positions(n, kept.flatten())
    sizes: list[tuple[Dim, Dim]] = [(classes * count, batch), (count, classes)]
    columns = [at // as_tensor(inner, DType.i64) % as_tensor(size, DType.i64) for inner, size in sizes]
    return Item.of(stack([*columns, emit(order.flatten(), ops.Gather(0), at)], 1), I64)
