"""What the emitter asks of kernels."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import GLOBAL, TILE, Axis, Binary, Buffer, Cast, CheckedIndex, Const, Expr, Load, Reduce, Select
from trustformers_ir.ir.dtypes import HALVES, DType


def roots(s: Stmt) -> tuple[Expr, ...]:
    """The expressions that a statement itself holds."""
    if isinstance(s, Store):
        return (*s.index, s.value)
    assert isinstance(s, For)
    return (s.axis.extent,) if s.guard is None else (s.axis.extent, s.guard)


def hint_of(e: Expr) -> str:
    """What a variable with that value is called, as far as it is free."""
    if isinstance(e, Load):
        return e.buffer.name
    if isinstance(e, Reduce):
        return e.kind
    return "at" if isinstance(e, CheckedIndex) else "t"


#: Integers up to this size, of either sign, are exact in these dtypes.
EXACT = {DType.f16: 2048, DType.bf16: 256}


def integers(e: Expr) -> tuple[int, int] | None:
    """Between which integers an expression lies that is made of bytes and constants by masks, shifts, sums and differences; None for any other."""
    if isinstance(e, Const):
        return (int(e.value), int(e.value)) if abs(e.value) <= EXACT[DType.f16] and e.value == int(e.value) else None
    if isinstance(e, Cast):
        return integers(e.x)
    if isinstance(e, Binary) and e.op in ("add", "sub") and e.dtype is DType.f32:
        a, b = integers(e.a), integers(e.b)
        if a is None or b is None:
            return None
        return (a[0] + b[0], a[1] + b[1]) if e.op == "add" else (a[0] - b[1], a[1] - b[0])
    if isinstance(e, Binary) and isinstance(e.b, Const) and e.dtype is DType.u8 and e.op in ("and", "shr"):
        return 0, int(e.b.value) if e.op == "and" else 255 >> int(e.b.value)
    if isinstance(e, Binary) and e.dtype is DType.u8 and e.op in ("or", "shl"):
        a, b = integers(e.a), integers(e.b)
        if a is not None and b is not None:
            return 0, min(255, (a[1] << b[1]) if e.op == "shl" else (1 << max(a[1], b[1]).bit_length()) - 1)
    return (e.dtype.min, e.dtype.max) if e.dtype in (DType.u8, DType.i8) else None


def half_of(factors: Sequence[Expr]) -> DType | None:
    """The dtype of 16 bits in which matrix instructions can take factors of f32 as they are: they were widened from it, but for integers, which it
    holds exactly."""
    rest = [x for x in factors if not (isinstance(x, Cast) and x.x.dtype in HALVES)]
    halves = {x.x.dtype for x in factors if isinstance(x, Cast) and x.x.dtype in HALVES}
    if len(halves) != 1:
        return None
    (half,) = halves
    bounds = [integers(n) for x in rest for n in (x, *(x.children if isinstance(x, Binary) else ()))]
    return half if all(b is not None and max(map(abs, b)) <= EXACT[half] for b in bounds) else None


def tile_axes(*roots: Expr) -> list[Axis]:
    """The TILE axes on which any of the expressions depends, in the order in which they were made."""
    found = frozenset[Axis]().union(*(r.free_axes for r in roots))
    return sorted((a for a in found if a.kind is TILE), key=lambda a: a.uid)


def always_loaded(e: Expr) -> dict[Load, None]:
    """The loads without which an expression has no value, in order: those below no condition and in no fold."""
    found: dict[Load, None] = {}
    seen: set[Expr] = set()
    todo = [e]
    while todo:
        x = todo.pop()
        if x in seen or not x.loads or isinstance(x, Reduce):
            continue
        seen.add(x)
        if isinstance(x, Load):
            found.setdefault(x)
        else:
            todo += reversed(x.children[:1] if isinstance(x, Select) else x.children)
    return found


def is_block(kernel: Kernel, buffer: Buffer) -> bool:
    """Whether every access names whole dimensions: TILE axes as long as the buffer, or the only element."""
    for s in walk_statements(kernel.body):
        for e in roots(s):
            for n in walk(e):
                if isinstance(n, Load) and n.buffer is buffer and not _names_whole(buffer, n.index):
                    return False
        if isinstance(s, Store) and s.buffer is buffer and not _names_whole(buffer, s.index):
            return False
    return True


def _names_whole(buffer: Buffer, index: tuple[Expr, ...]) -> bool:
    axes = [i for i in index if isinstance(i, Axis) and i.kind is TILE]
    if len(set(axes)) != len(axes):
        return False
    for i, size in zip(index, buffer.shape, strict=True):
        whole = i.static_extent if isinstance(i, Axis) and i.kind is TILE else 1 if isinstance(i, Const) else None
        if not isinstance(size, Const) or whole != size.value:
            return False
    return True


def _batches(kernel: Kernel) -> list[Axis]:
    """The TILE axes of folds around others that depend on them: to products of matrices they are a batch, which comes first."""
    found: dict[Axis, None] = {}
    seen: set[Expr] = set()
    for s in walk_statements(kernel.body):
        for root in roots(s):
            for e in walk(root, seen):
                tiles = [a for a in e.axes if a.kind is TILE] if isinstance(e, Reduce) else []
                if isinstance(e, Reduce) and tiles:
                    inner = [n for n in walk(e.body) if isinstance(n, Reduce)]
                    found.update(dict.fromkeys(a for a in tiles if any(a in n.free_axes for n in inner)))
    return list(found)


def dimensions(kernel: Kernel) -> dict[Axis, int]:
    """A dimension for each TILE axis: different ones for axes that meet in one expression, the lowest there is, batches first, then loops. The
    columns of the right side of a product come behind the axis of the sum where its rows lie in memory: it is then loaded as it lies."""
    meets: dict[Axis, set[Axis]] = {}
    order: dict[Axis, None] = {}
    behind: dict[Axis, Axis] = {}

    def together(axes: Sequence[Axis]) -> None:
        for a in axes:
            order.setdefault(a)
            meets.setdefault(a, set()).update(x for x in axes if x is not a)

    def statement(s: Stmt, around: tuple[Axis, ...]) -> None:
        if isinstance(s, For):
            inner = (*around, s.axis) if s.axis.kind is TILE else around
            together(inner)
            for b in s.body:
                statement(b, inner)

    for a in _batches(kernel):
        together([a])
    for s in kernel.body:
        statement(s, ())
    seen: set[Expr] = set()
    for s in walk_statements(kernel.body):
        for root in roots(s):
            for e in walk(root, seen):
                if isinstance(e, Reduce):
                    behind |= {columns: k for k in e.axes if k.kind is TILE for columns in _columns(e, k)}
                    together(tile_axes(e.body, *(() if e.guard is None else (e.guard,)), *e.axes))
                elif e.free_axes:
                    together(tile_axes(e))
    found: dict[Axis, int] = {}
    for a in [*(a for a in order if a not in behind), *(a for a in order if a in behind)]:
        used = {found[x] for x in meets[a] if x in found}
        found[a] = next(d for d in range(len(used) + 1) if d not in used)
    return found


def _columns(e: Reduce, k: Axis) -> list[Axis]:
    """The axes along which factors of a sum of products over ``k`` lie in memory."""
    if e.kind != "sum" or not isinstance(e.body, Binary) or e.body.op != "mul":
        return []
    loads = [x.x if isinstance(x, Cast) else x for x in (e.body.a, e.body.b)]
    last = [x.index[-1] for x in loads if isinstance(x, Load) and x.buffer.space is GLOBAL and x.index and k in x.free_axes]
    return [i for i in last if isinstance(i, Axis) and i.kind is TILE and i is not k]
