"""Ops whose elements depend on each other or land where the data says: running sums, top-k, scatters. Each writes its own loops."""

from __future__ import annotations

from collections.abc import Callable

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest, store
from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    PARALLEL,
    SCRATCH,
    SEQ,
    VECTOR,
    Axis,
    Buffer,
    Const,
    Expr,
    Load,
    Reduce,
    binary,
    cast,
    const,
    eq,
    select,
    unary,
)
from trustformers_ir.codegen.lower.definer import Definer, compute_dtype
from trustformers_ir.codegen.lower.definitions.elementwise import combine
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.lower.nest import copy_nest, sequential
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType, Kind
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.types import Panels, TensorType

Lowering = Callable[[Definer, Operation], tuple[Stmt, ...]]
ORDERED: dict[type[Op], Lowering] = {}


def _ordered(*kinds: type[Op]) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        for kind in kinds:
            ORDERED[kind] = lowering
        return lowering

    return register


def _outer(shape: tuple[Dim, ...], axis: int) -> list[Axis]:
    """Parallel loops over every dim but ``axis``."""
    return [Axis(f"i{n}", dim_expr(d), PARALLEL) for n, d in enumerate(shape) if n != axis]


def _put(outer: list[Axis], axis: int, at: Expr) -> Index:
    return (*outer[:axis], at, *outer[axis:])


@_ordered(ops.CumSum, ops.CumProd)
def _scan(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    """A running fold along one axis; the accumulator of floats is f64, so that long rows stay exact to a rounding."""
    assert isinstance(o.op, ops.ScanOp)
    x, out = o.inputs[0], o.result
    axis = o.op.axis % x.type.rank
    dtype = out.type.dtype
    wide = DType.f64 if dtype.is_float else dtype
    product = isinstance(o.op, ops.CumProd)
    running = Buffer("running", wide, (const(1),), space=SCRATCH)
    outer = _outer(x.type.shape, axis)
    step = Axis("step", dim_expr(x.type.shape[axis]), SEQ)
    at = dim_expr(x.type.shape[axis]) - 1 - step if o.op.reverse else step
    index = _put(outer, axis, at)
    element = cast(d.lifted(x, index), wide)
    add = store(running, const(0), running[const(0)] * element if product else running[const(0)] + element)
    emit = d.store(out, index, cast(running[const(0)], dtype))
    body = (emit, add) if o.op.exclusive else (add, emit)
    start = store(running, const(0), Const(1 if product else 0, wide))
    return nest(outer, start, For(step, body))


@_ordered(ops.TopK)
def _top_k(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    """k rounds of "the first of the largest not yet taken", on integer keys that order floats totally (NaN above infinity, zeros equal)."""
    assert isinstance(o.op, ops.TopK)
    x = o.inputs[0]
    values, indices = o.results
    axis = o.op.axis % x.type.rank
    size = dim_expr(x.type.shape[axis])
    outer = _outer(x.type.shape, axis)
    key_dtype = _key_dtype(x.type.dtype)
    key = Buffer("key", key_dtype, (size,), space=SCRATCH)
    taken = Buffer("taken", DType.i32, (size,), space=SCRATCH)
    best = Buffer("best", DType.i64, (const(1),), space=SCRATCH)
    i, j, c = Axis("i", size, SEQ), Axis("j", size, VECTOR), Axis("c", size, VECTOR)
    rank = Axis("rank", dim_expr(o.op.k), SEQ)
    order = _order_key(d.at(x, _put(outer, axis, i)))
    fill = For(i, (store(key, i, order if o.op.largest else unary("not", order)), store(taken, i, Const(0, DType.i32))))
    lowest = Const(key_dtype.min, key_dtype)
    candidate = select(eq(taken[j], 0), key[j], lowest)
    top = Axis("t", size, VECTOR)
    highest = Reduce("max", (top,), select(eq(taken[top], 0), key[top], lowest))
    first_free = Reduce("argmin", (c,), taken[c])
    chosen = select(eq(highest, lowest), first_free, Reduce("argmax", (j,), candidate))
    place = _put(outer, axis, rank)
    got = Load(best, (const(0),))
    rounds = For(
        rank,
        (
            store(best, const(0), chosen),
            d.store(values, place, d.at(x, _put(outer, axis, got))),
            d.store(indices, place, got),
            store(taken, got, Const(1, DType.i32)),
        ),
    )
    return nest(outer, fill, rounds)


def _key_dtype(dtype: DType) -> DType:
    if dtype.is_float:
        return DType.i64 if dtype is DType.f64 else DType.i32
    return dtype if dtype.kind is not Kind.BOOL else DType.i32


def _order_key(x: Expr) -> Expr:
    """A signed integer that is larger exactly when x is: the bits of a float, mirrored for negatives; NaN is the largest."""
    if x.dtype is DType.bool:
        return cast(x, DType.i32)
    if not x.dtype.is_float:
        return x
    wide = cast(x, compute_dtype(x.dtype))
    bits = unary("bits", wide + 0.0)  # -0.0 + 0.0 is 0.0, so that zeros are equal
    largest = Const(bits.dtype.max, bits.dtype)
    mirrored = select(bits < 0, binary("xor", bits, largest), bits)
    return select(unary("isnan", wide), largest, mirrored)


_COMBINE = {ops.ScatterReduce.ADD: "add", ops.ScatterReduce.MUL: "mul", ops.ScatterReduce.MAX: "max", ops.ScatterReduce.MIN: "min"}


def _summed(o: Operation) -> bool:
    """Whether updates of floats add up or multiply: they do so in f64, rounded once at the end. (f64 itself, max and min need no wider place.)"""
    reduce: ops.ScatterReduce = o.op.reduce  # type: ignore[attr-defined]
    return reduce in (ops.ScatterReduce.ADD, ops.ScatterReduce.MUL) and o.result.type.dtype in (DType.f16, DType.bf16, DType.f32)


def _update(d: Definer, o: Operation, buffer: Buffer, at: Index, update: Expr) -> Store:
    """Write or combine one update, in the dtype of the buffer."""
    reduce: ops.ScatterReduce = o.op.reduce  # type: ignore[attr-defined]
    if reduce is ops.ScatterReduce.NONE:
        return Store(buffer, at, update)
    wide = compute_dtype(buffer.dtype)
    value = combine(_COMBINE[reduce], cast(Load(buffer, at), wide), cast(update, wide))
    return Store(buffer, at, cast(value, buffer.dtype))


@_ordered(ops.ScatterElements)
def _scatter_elements(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    assert isinstance(o.op, ops.ScatterElements)
    x, indices, updates = o.inputs
    out = o.result
    axis = o.op.axis % x.type.rank
    step = Axis("step", dim_expr(updates.type.shape[axis]), SEQ)
    if _summed(o):
        return _scatter_lines(d, o, axis, step)
    outer = [a.like(name=f"u{a.name}") for a in _outer(updates.type.shape, axis)]
    source = _put(outer, axis, step)
    target = d.checked(o, d.at(indices, source), x.type.shape[axis], "index")
    write = For(step, (_update(d, o, *d.place(out, _put(outer, axis, target)), d.at(updates, source)),))
    return (*copy_nest(d, x, out), *sequential(nest(outer, write)))


def _scatter_lines(d: Definer, o: Operation, axis: int, step: Axis) -> tuple[Stmt, ...]:
    """Sums along one line of x at a time: the line goes to f64, takes its updates and is rounded. Updates may span fewer lines than x."""
    x, indices, updates = o.inputs
    outer = _outer(x.type.shape, axis)
    size = dim_expr(x.type.shape[axis])
    line = Buffer("line", DType.f64, (size,), space=SCRATCH)
    source = _put(outer, axis, step)
    target = d.checked(o, d.at(indices, source), x.type.shape[axis], "index")
    fill, empty = Axis("fill", size, SEQ), Axis("empty", size, SEQ)
    present: Expr | None = None
    for n, (a, b) in enumerate(zip(updates.type.shape, x.type.shape, strict=True)):
        if n != axis and a != b:
            inside = source[n] < dim_expr(a)
            present = inside if present is None else binary("and", present, inside)
    return nest(
        outer,
        For(fill, (store(line, fill, cast(d.at(x, _put(outer, axis, fill)), DType.f64)),)),
        For(step, (_update(d, o, line, (target,), cast(d.at(updates, source), DType.f64)),), present),
        For(empty, (d.store(o.result, _put(outer, axis, empty), cast(line[empty], o.result.type.dtype)),)),
    )


@_ordered(ops.ScatterNd)
def _scatter_nd(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    assert isinstance(o.op, ops.ScatterNd)
    x, indices, updates = o.inputs
    out = o.result
    depth = indices.type.shape[-1]
    assert isinstance(depth, int), "the inference of scatter_nd asks for a static index depth"
    lead = [Axis(f"n{i}", dim_expr(n), SEQ) for i, n in enumerate(indices.type.shape[:-1])]
    target = tuple(
        d.checked(o, d.at(indices, (*lead, Const(j, DType.i64))), x.type.shape[j], f"index component {j}") for j in range(depth)
    )
    if _summed(o):
        return _scatter_columns(d, o, lead, target)
    slices = [Axis(f"s{i}", dim_expr(n), SEQ) for i, n in enumerate(x.type.shape[depth:])]
    write = _update(d, o, *d.place(out, (*target, *slices)), d.at(updates, (*lead, *slices)))
    return (*copy_nest(d, x, out), *nest([*lead, *slices], write))


def _scatter_columns(d: Definer, o: Operation, lead: list[Axis], target: Index) -> tuple[Stmt, ...]:
    """Sums of whole slices, 16 columns of x at a time: they go to f64, take their updates and are rounded."""
    x, _, updates = o.inputs
    counts, rest = x.type.shape[: len(target)], x.type.shape[len(target) :]
    outer = [Axis(f"s{i}", dim_expr(n), PARALLEL) for i, n in enumerate(rest[:-1])]
    chunks = [Axis("chunk", (dim_expr(n) + (LANES - 1)) // LANES, PARALLEL) for n in rest[-1:]]
    places = tuple(dim_expr(n) for n in counts)
    columns = Buffer("columns", DType.f64, (*places, const(LANES if rest else 1)), space=SCRATCH)

    def across(axes: list[Axis], body: Callable[[Index, Index], Stmt]) -> tuple[Stmt, ...]:
        """``body`` at the slice's index and the place among the columns, for every column, inside sequential loops."""
        if not rest:
            return nest(axes, body((), (const(0),)))
        lane = Axis("lane", LANES, VECTOR)
        at = chunks[0] * LANES + lane
        return nest(axes, For(lane, (body((*outer, at), (lane,)),), at < dim_expr(rest[-1])))

    fill, empty = ([Axis(f"{name}{i}", n, SEQ) for i, n in enumerate(places)] for name in ("fill", "empty"))
    return nest(
        [*outer, *chunks],
        *across(fill, lambda at, lane: Store(columns, (*fill, *lane), cast(d.at(x, (*fill, *at)), DType.f64))),
        *across(lead, lambda at, lane: _update(d, o, columns, (*target, *lane), cast(d.at(updates, (*lead, *at)), DType.f64))),
        *across(empty, lambda at, lane: d.store(o.result, (*empty, *at), cast(Load(columns, (*empty, *lane)), o.result.type.dtype))),
    )


@_ordered(ops.Pack)
def _pack(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    """A matrix into panels: every element of the storage, zero beyond the last row and column."""
    x = o.inputs[0]
    layout = o.result.type.layout
    assert isinstance(layout, Panels)
    *batch, rows, columns = (dim_expr(size) for size in x.type.shape)
    outer = [Axis(f"b{n}", b, PARALLEL) for n, b in enumerate(batch)]
    panel = Axis("panel", (rows + (layout.width - 1)) // layout.width, PARALLEL)
    k, deep = Axis("k", (columns + (layout.depth - 1)) // layout.depth, SEQ), Axis("deep", layout.depth, SEQ)
    lane = Axis("lane", layout.width, VECTOR)
    row, column = panel * layout.width + lane, k * layout.depth + deep
    inside = d.at(x, (*outer, binary("min", row, rows - 1), binary("min", column, columns - 1)))
    exists = binary("and", row < rows, column < columns)
    cell = d.store(o.result, (*outer, row, column), select(exists, inside, Const(0, x.type.dtype)))
    return nest([*outer, panel, k, deep, lane], cell)


COUNT = TensorType((1,), DType.i64)


def count_buffer() -> Buffer:
    """The place of the symbol that a ``nonzero`` computes."""
    return Buffer("count", DType.i64, (const(1),))


@_ordered(ops.NonZero)
def _nonzero(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    """One pass in order: a true element's position goes behind those before it."""
    x, count = o.inputs[0], count_buffer()
    found = Buffer("found", DType.i64, (const(1),), space=SCRATCH)
    i = Axis("i", dim_expr(x.type.shape[0]), SEQ)
    put = d.store(o.result, (found[const(0)],), i)
    step = store(found, const(0), found[const(0)] + 1)
    return (store(found, const(0), Const(0, DType.i64)), For(i, (put, step), d.at(x, (i,))), store(count, const(0), found[const(0)]))


@_ordered(ops.Suppress)
def _suppress(d: Definer, o: Operation) -> tuple[Stmt, ...]:
    """One candidate after the other; those that are not decided yet count as not taken."""
    over, live = o.inputs
    *lead, size = live.type.shape
    outer = [Axis(f"i{n}", dim_expr(extent), PARALLEL) for n, extent in enumerate(lead)]
    taken = Buffer("taken", DType.i32, (dim_expr(size),), space=SCRATCH)
    clear, i, j = (Axis(name, dim_expr(size), SEQ) for name in ("clear", "i", "j"))
    beaten = Reduce("any", (j,), binary("and", eq(taken[j], 1), d.at(over, (*outer, j, i))))
    kept = binary("and", d.at(live, (*outer, i)), unary("not", beaten))
    decide = (store(taken, i, select(kept, Const(1, DType.i32), Const(0, DType.i32))), d.store(o.result, (*outer, i), eq(taken[i], 1)))
    return nest(outer, For(clear, (store(taken, clear, Const(0, DType.i32)),)), For(i, decide))
