"""The loop nest of an ordinary region: one store per result element, loops by a simple heuristic.

Three shapes of nest exist besides the GEMM tile of ``schedules.py``:

* *flat*: every operand has the result's shape or one element; the whole index space is one line, cut into chunks for the workers, each
  chunk a vector loop;
* *rows*: leading dims are parallel loops, the last one is a vector loop, unless a 16-lane fold depends on it (then it is an ordinary loop
  and the vector unit works inside the fold);
* *summary*: some results have one element per row (the scale of its codes), others all of them: the folds of a row serve both;
* *groups*: the same for groups of neighbouring elements of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest, walk
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, UNROLL, VECTOR, Axis, AxisKind, Expr, Reduce, binary, const, minimum
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir.core import Value
from trustformers_ir.ir.dims import Dim, product

FLAT_CHUNK = 2048  # elements per parallel chunk of a flat nest: large enough to hide the loop, small enough to balance

Emit = Callable[[Index], list[Store]]


def flat_nest(d: Definer, shape: Sequence[Dim], emit: Emit) -> tuple[Stmt, ...]:
    """``for chunk parallel: for i vector: stores at the digits of chunk * FLAT_CHUNK + i``."""
    if product(tuple(shape)) == 1:
        return tuple(emit(tuple(const(0) for _ in shape)))
    total = dim_expr(product(tuple(shape)))
    chunk = Axis("chunk", (total + (FLAT_CHUNK - 1)) // FLAT_CHUNK, PARALLEL)
    lane = Axis("i", binary("min", const(FLAT_CHUNK), total - chunk * FLAT_CHUNK), VECTOR)
    stores = emit(d.flat.digits(chunk * FLAT_CHUNK + lane, shape))
    return nest((chunk, lane), *stores)


def sequential(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The same loops without workers: a later statement reads what an earlier one wrote, and there is no barrier inside a kernel."""
    from_parallel: list[Stmt] = []
    for s in body:
        if isinstance(s, For) and s.axis.kind is PARALLEL:
            axis = s.axis.like(kind=SEQ)
            inner = sequential(s.body)
            from_parallel.append(For(axis, tuple(Substitution({s.axis: axis}).stmt(b) for b in inner), s.guard))
        else:
            from_parallel.append(s)
    return tuple(from_parallel)


def row_nest(shape: Sequence[Dim], emit: Emit) -> tuple[Stmt, ...]:
    """One loop per dim; folds are hoisted by putting the dims on which no fold depends innermost."""
    axes = [None if d == 1 else Axis(f"i{n}", dim_expr(d), SEQ) for n, d in enumerate(shape)]
    stores = emit(tuple(const(0) if a is None else a for a in axes))
    live = [a for a in axes if a is not None]
    needed, laned = _fold_axes(stores)
    order = [a for a in live if a in needed] + [a for a in live if a not in needed]
    innermost = order[-1] if order else None
    kinds: dict[Axis, AxisKind] = {a: PARALLEL for a in order if a is not innermost or a in laned}
    if innermost is not None and innermost not in laned:
        kinds[innermost] = VECTOR if live and innermost is live[-1] else SEQ
    if needed and order != live:  # an inner loop that no fold depends on runs inside the folds' loops
        first_free = next((i for i, a in enumerate(order) if a not in needed), len(order))
        for a in order[first_free:]:
            kinds[a] = VECTOR if a is innermost and a is live[-1] else SEQ
    elif needed:
        for a in order:
            if a not in needed and a is not innermost:
                kinds[a] = SEQ
    return _bind(order, kinds, stores)


def copy_nest(d: Definer, x: Value, out: Value) -> tuple[Stmt, ...]:
    """``out`` becomes a copy of ``x``, by one worker: what follows in the kernel changes some of it."""
    return sequential(row_nest(x.type.shape, lambda index: [d.store(out, index, d.at(x, index))]))


def summary_nest(shape: Sequence[Dim], summary: Emit, columns: Emit, paired: bool = True) -> tuple[Stmt, ...]:
    """``for pairs of rows parallel: what there is once per row; for columns vector: the rest``, where both come from folds of that row.

    A row is a chain of sums, trees of lanes, divisions and roots, each of which waits for the one before; two rows side by side fill the gaps of
    a CPU (``paired``).
    """
    axes = [None if d == 1 else Axis(f"i{n}", dim_expr(d), PARALLEL) for n, d in enumerate(shape[:-1])]
    rows: list[Expr] = [const(0) if a is None else a for a in axes]
    loops = [a for a in axes if a is not None]
    column, pair = Axis("column", dim_expr(shape[-1]), VECTOR), Axis("pair", 2, UNROLL)
    if loops and paired:
        last = loops.pop()
        half = Axis(f"{last.name}.o", (last.extent + 1) // 2, PARALLEL)
        loops.append(half)
        rows[axes.index(last)] = minimum(half * 2 + pair, last.extent - 1)  # where one row is left it is computed twice
    pairs = [pair] if loops and paired else []
    return nest(loops, *nest(pairs, *summary((*rows, const(0)))), *nest([*pairs, column], *columns((*rows, column))))


def group_nest(d: Definer, shape: Sequence[Dim], group: int, summary: Emit, columns: Emit, whole_rows: bool) -> tuple[Stmt, ...]:
    """``for rows parallel: for groups: what there is once per group; for the columns of a group vector: the rest``. ``whole_rows``: folds of a row
    come first, so a row is not cut over workers."""
    axes = [None if size == 1 else Axis(f"i{n}", dim_expr(size), PARALLEL) for n, size in enumerate(shape[:-1])]
    rows: list[Expr] = [const(0) if a is None else a for a in axes]
    g = Axis("group", dim_expr(shape[-1]) // group, SEQ if whole_rows else PARALLEL)
    j = Axis("column", group, VECTOR)
    return nest([*(a for a in axes if a is not None), g], *summary((*rows, g)), *nest([j], *columns((*rows, d.flat.joined(g, j, group)))))


def _bind(order: list[Axis], kinds: dict[Axis, AxisKind], stores: list[Store]) -> tuple[Stmt, ...]:
    from_kinds = {a: a.like(kind=k) for a, k in kinds.items() if k is not a.kind}
    statements: tuple[Stmt, ...] = tuple(stores)
    if from_kinds:
        mapping: dict[Expr, Expr] = dict(from_kinds.items())
        substitution = Substitution(mapping)
        statements = tuple(substitution.stmt(s) for s in statements)
    return nest([from_kinds.get(a, a) for a in order], *statements)


def _fold_axes(stores: list[Store]) -> tuple[set[Axis], set[Axis]]:
    """Axes on which some fold depends, and those on which some 16-lane fold depends."""
    needed: set[Axis] = set()
    laned: set[Axis] = set()
    seen: set[Expr] = set()
    for s in stores:
        for e in (*s.index, s.value):
            for n in walk(e, seen):
                if isinstance(n, Reduce):
                    needed |= n.free_axes
                    if any(a.kind is VECTOR for a in n.axes):
                        laned |= n.free_axes
    return needed, laned


def is_flat(shape: tuple[Dim, ...], operands: Sequence[Value]) -> bool:
    """Whether every operand has exactly the result's shape or one element, and the result is more than one element."""
    return product(shape) != 1 and all(v.type.shape == shape or v.type.elements == 1 for v in operands)
