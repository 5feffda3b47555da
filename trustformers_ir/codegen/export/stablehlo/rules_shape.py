"""Data movement, folds, scans and sorting in StableHLO."""

from __future__ import annotations

from trustformers_ir.codegen.export.stablehlo.emitter import Emitter, X, neutral, rule
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.unary import real_part
from trustformers_ir.ir.schema import Op

FOLDS: dict[type[Op], str] = {
    ops.ReduceSum: "add", ops.ReduceProd: "multiply", ops.ReduceMax: "maximum", ops.ReduceMin: "minimum", ops.ReduceAny: "or", ops.ReduceAll: "and",
}  # fmt: skip
SCANS: dict[type[Op], str] = {ops.CumSum: "add", ops.CumProd: "multiply"}


@rule(ops.Constant)
def _constant(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Constant)
    return e.constant(o.op.value.array, o.op.value.dtype)


@rule(ops.Iota)
def _iota(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Iota)
    return e.iota((o.op.size,), 0, o.op.dtype)


@rule(ops.DimSize)
def _dim(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.DimSize)
    return e.scalar(o.op.size, o.op.dtype)


@rule(ops.Reshape)
def _reshape(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Reshape)
    return e.reshape(e.operand(o, 0), o.op.shape)


@rule(ops.Transpose)
def _transpose(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Transpose)
    return e.transpose(e.operand(o, 0), o.op.perm)


@rule(ops.Expand)
def _expand(e: Emitter, o: Operation) -> X:
    return e.spread(e.operand(o, 0), o.result.type.shape)


@rule(ops.Concat)
def _concat(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Concat)
    return e.concat([e.value(v) for v in o.inputs], o.op.axis)


@rule(ops.Slice)
def _slice(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Slice)
    return e.part(e.operand(o, 0), o.op.axis, o.op.start, o.op.stop, o.op.step)


@rule(ops.Flip)
def _flip(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.Flip)
    return reverse(e, e.operand(o, 0), o.op.axis)


def reverse(e: Emitter, x: X, axis: int) -> X:
    """Backwards along an axis."""
    return e.op("reverse", [x], x.dtype, x.shape, f", dims = [{axis % x.rank}]")


@rule(ops.Pad)
def _pad(e: Emitter, o: Operation) -> X:
    """The edge or the mirror image is gathered, an axis at a time."""
    op = o.op
    assert isinstance(op, ops.Pad)
    x = e.operand(o, 0)
    if op.mode is ops.PadMode.CONSTANT:
        return e.pad(x, e.constant(op.value, x.dtype), op.low, op.high)
    for axis, (low, high) in enumerate(zip(op.low, op.high, strict=True)):
        if (low, high) == (0, 0):
            continue
        shape = (low + x.shape[axis] + high,)
        last = e.spread(e.scalar(x.shape[axis] - 1), shape)
        at = e("subtract", e.iota(shape, 0), e.spread(e.scalar(low), shape))
        if op.mode is ops.PadMode.EDGE:
            at = e("minimum", e("maximum", at, 0), last)
        else:
            at = e("subtract", last, e("abs", e("subtract", last, e("abs", at))))
        x = e.gather(x, e.reshape(at, (*shape, 1)), [axis], axis)
    return x


@rule(ops.Unfold)
def _unfold(e: Emitter, o: Operation) -> X:
    """The positions of each window are gathered, an axis at a time."""
    op = o.op
    assert isinstance(op, ops.Unfold)
    x = e.operand(o, 0)
    lead, n = x.rank - len(op.windows), len(op.windows)
    none = [0] * lead
    x = e.pad(x, e.constant(op.value, x.dtype), [*none, *(w.before for w in op.windows)], [*none, *(w.after for w in op.windows)])
    for axis, w in enumerate(op.windows, lead):
        places = o.result.type.shape[axis]
        shape = (places, w.size)
        at = e("add", e("multiply", e.iota(shape, 0), w.stride), e("multiply", e.iota(shape, 1), w.dilation))
        x = e.gather(x, e.reshape(at, (*shape, 1)), [axis], axis)
        order = list(range(x.rank))
        order.append(order.pop(axis + 1))  # what is inside of a window comes last
        x = e.transpose(x, order)
    assert x.rank == lead + 2 * n
    return x


# --- folds -----------------------------------------------------------------------------------------------------------------


@rule(*FOLDS)
def _reduce(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.ReduceOp)
    return e.narrow(e.reduce(FOLDS[type(o.op)], e.wide(o, 0), o.op.axes, o.op.keepdims), o)


def count(e: Emitter, sizes: list[Dim], dtype: DType, shape: tuple[Dim, ...], less: int = 0) -> X:
    """How many elements are folded, not below 0, for each element of a result."""
    total = product(sizes)
    if isinstance(total, int):
        return e.full(max(total - less, 0), dtype, shape)
    found = e.scalar(total)
    return e.spread(e.cast(e("maximum", e("subtract", found, less), 0) if less else found, dtype), shape)


@rule(ops.ReduceMean)
def _reduce_mean(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.ReduceOp)
    return e.narrow(mean(e, e.wide(o, 0), o.op.axes, o.op.keepdims), o)


def mean(e: Emitter, x: X, axes: tuple[int, ...], keep: bool = False, correction: int = 0) -> X:
    """The sum by the number of elements (less a correction)."""
    total = e.reduce("add", x, axes, keep)
    part = real_part(x.dtype)
    number = count(e, [x.shape[a] for a in axes], part, total.shape, correction)
    if part is not x.dtype:
        number = e.op("complex", [number, e.full(0, part, total.shape)], x.dtype, total.shape)
    return e("divide", total, number)


@rule(ops.ReduceVar, ops.ReduceStd)
def _reduce_var(e: Emitter, o: Operation) -> X:
    """Two passes."""
    assert isinstance(o.op, ops.ReduceVar)
    x, axes = e.wide(o, 0), o.op.axes
    off = e("subtract", x, e.spread(mean(e, x, axes, True), x.shape))
    found = mean(e, e("multiply", off, off), axes, o.op.keepdims, o.op.correction)
    return e.narrow(e("sqrt", found) if isinstance(o.op, ops.ReduceStd) else found, o)


@rule(ops.ReduceLogSumExp)
def _reduce_log_sum_exp(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, ops.ReduceOp)
    x, axes, keep = e.wide(o, 0), o.op.axes, o.op.keepdims
    top = e.reduce("maximum", x, axes, True)
    top = e.select(e.op("is_finite", [top], DType.bool, top.shape), top, 0)
    total = e.reduce("add", e("exponential", e("subtract", x, e.spread(top, x.shape))), axes, True)
    found = e("add", e("log", total), top)
    return e.narrow(found if keep else e.reshape(found, o.result.type.shape), o)


@rule(ops.ArgMax, ops.ArgMin)
def _arg(e: Emitter, o: Operation) -> X:
    """The first position of what the fold found; where that is NaN, of the first NaN."""
    assert isinstance(o.op, ops.ArgReduceOp)
    x = e.operand(o, 0)
    axis = o.op.axis % x.rank
    top = e.spread(e.reduce("maximum" if isinstance(o.op, ops.ArgMax) else "minimum", x, [axis], True), x.shape)
    hit = e.compare("EQ", x, top)
    if x.dtype.is_float:
        hit = e("or", hit, e.compare("NE", x, x))
    return e.reduce("minimum", e.select(hit, e.iota(x.shape, axis), DType.i64.max), [axis], o.op.keepdims)


@rule(ops.Softmax, ops.LogSoftmax)
def _softmax(e: Emitter, o: Operation) -> X:
    assert isinstance(o.op, (ops.Softmax, ops.LogSoftmax))
    x, axes = e.wide(o, 0), [o.op.axis]
    off = e("subtract", x, e.spread(e.reduce("maximum", x, axes, True), x.shape))
    powers = e("exponential", off)
    total = e.spread(e.reduce("add", powers, axes, True), x.shape)
    return e.narrow(e("divide", powers, total) if isinstance(o.op, ops.Softmax) else e("subtract", off, e("log", total)), o)


# --- scans and sorting -----------------------------------------------------------------------------------------------------


@rule(*SCANS)
def _scan(e: Emitter, o: Operation) -> X:
    """Hillis and Steele 1986: each element takes in what lies 1, 2, 4, … before it, so that a row of n takes log n steps. What is not there, is what
    changes nothing."""
    op = o.op
    assert isinstance(op, (ops.CumSum, ops.CumProd))
    kind, x = SCANS[type(op)], e.wide(o, 0)
    axis, nothing = op.axis % x.rank, neutral(SCANS[type(op)], x.dtype)
    size = x.shape[axis]
    x = reverse(e, x, axis) if op.reverse else x
    at = e.iota((size,), 0)

    def before(x: X, distance: X) -> X:
        place = e("subtract", at, e.spread(distance, at.shape))
        there = e.spread(e.compare("GE", place, 0), x.shape, [axis])
        moved = e.gather(x, e.reshape(e("maximum", place, 0), (size, 1)), [axis], axis)
        return e.select(there, moved, nothing)

    if size == 0:
        return e.narrow(x, o)
    if op.exclusive:
        x = before(x, e.constant(1, DType.i64))
    (x,) = e.loop(size, [x], lambda distance, x: [e(kind, x, before(x, distance))], "multiply", 1)
    return e.narrow(reverse(e, x, axis) if op.reverse else x, o)


@rule(ops.TopK)
def _top_k(e: Emitter, o: Operation) -> list[X]:
    """Sorted, stably, with positions beside; NaN counts as the largest."""
    op = o.op
    assert isinstance(op, ops.TopK)
    x = e.operand(o, 0)
    axis = op.axis % x.rank
    at = e.iota(x.shape, axis)

    def first(a: X, b: X, *_: X) -> list[X]:
        found = e.compare("GT" if op.largest else "LT", a, b)
        if not x.dtype.is_float:
            return [found]
        none_a, none_b = e.compare("NE", a, a), e.compare("NE", b, b)
        wins = e("and", none_a, e("not", none_b)) if op.largest else e("and", none_b, e("not", none_a))
        return [e("or", found, wins)]

    body = e.region([(x.dtype, ())] * 2 + [(DType.i64, ())] * 2, first)
    more = f" <{{dimension = {axis} : i64, is_stable = true}}>"
    made = e.emit('"stablehlo.sort"', [x, at], [(x.dtype, x.shape), (DType.i64, x.shape)], more, [body])
    return [e.part(y, axis, 0, op.k) for y in made]


@rule(ops.Suppress)
def _suppress(e: Emitter, o: Operation) -> X:
    """One candidate after another."""
    over, live = e.operand(o, 0), e.operand(o, 1)
    size, last = live.shape[-1], live.rank - 1
    at = e.iota(live.shape, last)
    none = e.full(0, DType.bool, live.shape)

    def step(i: X, kept: X) -> list[X]:
        column = e.gather(over, e.reshape(i, (1,)), [over.rank - 1])  # over whom it wins, or rather who wins over it
        ruled_out = e.reduce("or", e("and", column, kept), [last], True)
        here = e.compare("EQ", at, e.spread(i, at.shape))
        taken = e("and", e("and", here, live), e("not", e.spread(ruled_out, live.shape)))
        return [e("or", kept, taken)]

    return e.loop(size, [none], step)[0]
