"""Schedule moves: checked rewrites of a kernel's loops that never change its result.

A schedule is a tuple of moves; axes are named, so that one schedule serves every kernel of a shape. ``Split("i", 8)`` makes
``i.o`` and ``i.i``. ``apply(kernel, moves)`` returns the new kernel or raises ``ScheduleError`` with the reason.

    before                      Split("i", 8), Reorder(("i.o", "j", "i.i")), Tag("i.i", UNROLL)
    for i < 64                  for i.o < 8
      for j < 48                  for j < 48
        C[i, j] = …                 unroll i.i < 8
                                      C[i.o*8 + i.i, j] = …
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import (
    PARALLEL,
    SCRATCH,
    SEQ,
    TILE,
    UNROLL,
    VECTOR,
    WALK,
    Ahead,
    Axis,
    AxisKind,
    Buffer,
    Expr,
    Load,
    Reduce,
    const,
    maximum,
    minimum,
)
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution, map_expressions, rebuild, replace_buffer, with_body
from trustformers_ir.codegen.kernel_ir.simplify import Simplifier, SymbolFacts
from trustformers_ir.codegen.kernel_ir.verify import KernelError, verify


class ScheduleError(Exception):
    """A move cannot be applied; the message says why."""


class Tail(enum.Enum):
    """What happens where the factor does not divide the extent."""

    GUARD = "guard"  # the inner loop skips points outside
    CLAMP = "clamp"  # the last points are computed again
    SKIP = "skip"  # as GUARD, and indices are clamped all the same: every access lies inside its buffer, provably


GUARD, CLAMP, SKIP = Tail.GUARD, Tail.CLAMP, Tail.SKIP


@dataclass(frozen=True)
class Split:
    """``axis`` becomes ``axis.o`` (how many blocks) and ``axis.i`` (``factor`` points of one block)."""

    axis: str
    factor: int
    tail: Tail = GUARD


@dataclass(frozen=True)
class Chunk:
    """``axis`` becomes ``axis.o``, as few chunks of at most ``most`` points as there can be, and ``axis.i``, the points of one chunk.

    Chunks differ by at most one point, so that cutting them over workers is fair: 16 points make 8 + 8 where ``Split(…, 12)`` makes 12 + 4.
    """

    axis: str
    most: int


@dataclass(frozen=True)
class Reorder:
    """Puts the loops of a perfect nest into this order, outermost first."""

    axes: tuple[str, ...]


@dataclass(frozen=True)
class Tag:
    """Says how a loop or a reduce axis runs."""

    axis: str
    kind: AxisKind


@dataclass(frozen=True)
class Collapse:
    """Joins directly nested loops into one called ``a_b``, the first being the slowest."""

    axes: tuple[str, ...]


@dataclass(frozen=True)
class Prefetch:
    """Vector loads from a read-only buffer ask for what lies ``ahead`` elements further, before its turn comes.

    Where each turn of the loop ``among`` reads the same ``ahead`` elements, each asks for its part of the next ones: all at once
    is more than memory gives in one turn, and the others would ask for what has come already. If there is one turn only, it asks for
    what lies ``alone`` elements further (0: ``ahead``).
    """

    buffer: str
    ahead: int
    among: str = ""
    alone: int = 0


@dataclass(frozen=True)
class Stage:
    """Cuts the register tile below the UNROLL loop ``axis`` in two: first the sums, which are put down in scratch memory, then what is made of them,
    in an ordinary loop over ``axis.s`` and what was below it. Of several sums each has a tile of its own, one after the other.

        unroll i < 8                        unroll i < 8
          vector j < 16                       vector j < 16
            C[i, j] = gelu(sum_k …)             sums[i, j] = sum_k …
                                            for i.s < 8
                                              vector j.s < 16
                                                C[i.s, j.s] = gelu(sums[i.s, j.s])
    """

    axis: str


@dataclass(frozen=True)
class Tile:
    """``axis`` becomes ``axis.o`` (how many blocks) and the TILE axis ``axis.i`` (``size`` points, a power of two; those past the end are guarded).
    The order of a fold over it becomes free. An axis that one block covers becomes ``axis.i`` alone."""

    axis: str
    size: int


@dataclass(frozen=True)
class Group:
    """Joins two nested loops into one called ``rows_columns`` whose turns go through ``size`` rows at a time, column after column: turns that follow
    each other share the rows and the columns that they read.

        for m < 5                       for m_n < 20                    m, n:  0,0 1,0 0,1 1,1 0,2 1,2 0,3 1,3   2,0 3,0 2,1 …   4,0 4,1 4,2 4,3
          for n < 4                       first = m_n // 8 * 2
            C[m, n] = …                   high = min(5 - first, 2)
                                          C[first + m_n % 8 % high, m_n % 8 // high] = …
    """

    rows: str
    columns: str
    size: int


@dataclass(frozen=True)
class Walk:
    """The innermost PARALLEL loop ``axis`` becomes ``axis.p``, at most ``programs`` of them, and the WALK loop ``axis.w`` in which each goes through
    its turns: every ``programs``-th of all, so that turns that follow each other run at the same time.

        parallel i < 300            parallel i.p < 132
          C[i] = …                    walk i.w < (300 - i.p + 131) // 132
                                        C[i.w * 132 + i.p] = …
    """

    axis: str
    programs: int


Move = Split | Chunk | Reorder | Tag | Collapse | Prefetch | Stage | Tile | Group | Walk


@deep
def apply(kernel: Kernel, moves: Sequence[Move], facts: SymbolFacts | None = None) -> Kernel:
    """The kernel after the moves, in order."""
    for move in moves:
        kernel = _apply_one(kernel, move, facts)
    try:
        verify(kernel)
    except KernelError as error:
        raise ScheduleError(f"after {list(moves)}: {error}") from error
    return kernel


def _apply_one(kernel: Kernel, move: Move, facts: SymbolFacts | None) -> Kernel:
    if isinstance(move, Prefetch):
        return _prefetch(kernel, move)
    if isinstance(move, Split):
        body = _split(kernel, find_axis(kernel, move.axis), move, facts)
    elif isinstance(move, Chunk):
        body = _chunk(kernel, move, facts)
    elif isinstance(move, Reorder):
        body = _reorder(kernel, move)
    elif isinstance(move, Stage):
        body = _stage(kernel, move)
    elif isinstance(move, Tile):
        body = _split(kernel, find_axis(kernel, move.axis), Split(move.axis, move.size), facts, TILE)
    elif isinstance(move, Tag):
        axis = find_axis(kernel, move.axis)
        if axis.kind is move.kind:
            return kernel
        if VECTOR in (axis.kind, move.kind):
            _check_lanes(kernel, axis)
        body = _replace(kernel, axis, axis.like(kind=move.kind))
    elif isinstance(move, Group):
        body = _group(kernel, move, facts)
    elif isinstance(move, Walk):
        body = _walk(kernel, move)
    else:
        body = _collapse(kernel, move)
    return with_body(kernel, Simplifier(facts).statements(body))


def tile_axis(kernel: Kernel, axis: Axis, size: int, facts: SymbolFacts | None = None) -> Kernel:
    """``Tile`` of that very axis: names need not tell it from others. The caller verifies the kernel (``apply``)."""
    return with_body(kernel, Simplifier(facts).statements(_split(kernel, axis, Split(axis.name, size), facts, TILE)))


def retag(kernel: Kernel, axis: Axis, kind: AxisKind) -> Kernel:
    """``Tag`` of that very axis, whatever it does to the order of a fold."""
    return with_body(kernel, _replace(kernel, axis, axis.like(kind=kind)))


def axes_of(kernel: Kernel) -> list[Axis]:
    """Every axis bound in the kernel, loops and reduce axes, in order of appearance."""
    seen: dict[Axis, None] = {}
    visited: set[Expr] = set()
    for s in walk_statements(kernel.body):
        roots: tuple[Expr, ...] = ()
        if isinstance(s, For):
            seen.setdefault(s.axis)
            roots = () if s.guard is None else (s.guard,)
        elif isinstance(s, Store):
            roots = (*s.index, s.value)
        for r in roots:
            for n in walk(r, visited):
                if isinstance(n, Reduce):
                    for a in n.axes:
                        seen.setdefault(a)
    return list(seen)


def find_axis(kernel: Kernel, name: str) -> Axis:
    """The axis of that name."""
    hits = [a for a in axes_of(kernel) if a.name == name]
    if len(hits) != 1:
        known = ", ".join(sorted({a.name for a in axes_of(kernel)}))
        raise ScheduleError(f"{'no' if not hits else 'more than one'} axis is called {name!r} (there are: {known})")
    return hits[0]


def _check_lanes(kernel: Kernel, axis: Axis) -> None:
    """Folding in 16 lanes is another order: a reduce axis becomes VECTOR, or ceases to be, only where no order can be told from another."""
    visited: set[Expr] = set()
    for s in walk_statements(kernel.body):
        roots = (*s.index, s.value) if isinstance(s, Store) else (s.guard,) if isinstance(s, For) and s.guard is not None else ()
        for root in roots:
            for n in walk(root, visited):
                if isinstance(n, Reduce) and axis in n.axes and n.body.dtype.is_float:
                    raise ScheduleError(f"{axis.name} is reduced over: whether it is folded in 16 lanes is part of the result")


def _find_loop(body: tuple[Stmt, ...], axis: Axis) -> For | None:
    for s in walk_statements(body):
        if isinstance(s, For) and s.axis is axis:
            return s
    return None


def _replace(kernel: Kernel, old: Axis, new: Axis) -> tuple[Stmt, ...]:
    sub = Substitution({old: new})
    return tuple(sub.stmt(s) for s in kernel.body)


def _swap(body: tuple[Stmt, ...], old: Stmt, *new: Stmt) -> tuple[Stmt, ...]:
    """The statements with ``old`` replaced by ``new`` wherever it stands."""
    out: list[Stmt] = []
    for s in body:
        if s is old:
            out.extend(new)
        else:
            out.append(For(s.axis, _swap(s.body, old, *new), s.guard) if isinstance(s, For) else s)
    return tuple(out)


def _prefetch(kernel: Kernel, move: Prefetch) -> Kernel:
    old = next((b for b in kernel.params if b.name == move.buffer), None)
    if old is None or not old.readonly or move.ahead < 1 or move.alone < 0:
        distance = f"{move.ahead} elements are not ahead" if move.ahead < 1 else f"{move.alone} elements are not ahead"
        reason = "there is no such parameter" if old is None else "it is written here" if not old.readonly else distance
        raise ScheduleError(f"cannot fetch {move.buffer} early: {reason}")
    if move.among:
        _check_around(kernel, find_axis(kernel, move.among), old)
    new = Buffer(old.name, old.dtype, old.shape, old.strides, old.space, old.readonly, old.noalias, Ahead(move.ahead, move.among, move.alone))
    return replace_buffer(kernel, old, new)


def _check_around(kernel: Kernel, axis: Axis, buffer: Buffer) -> None:
    """Every read of the buffer stands inside the loop."""
    loop = _find_loop(kernel.body, axis)
    inside = set() if loop is None else {s for s in walk_statements(loop.body) if isinstance(s, Store)}
    for s in walk_statements(kernel.body):
        if isinstance(s, Store) and s not in inside and any(buffer in e.loads for e in (*s.index, s.value)):
            raise ScheduleError(f"cannot share the fetching of {buffer.name} among the turns of {axis.name}: it is not a loop around all reads")


# -- Stage ---------------------------------------------------------------------------------------------------------------


def _stage(kernel: Kernel, move: Stage) -> tuple[Stmt, ...]:
    axis = find_axis(kernel, move.axis)
    top = _find_loop(kernel.body, axis)
    if top is None or axis.kind is not UNROLL:
        raise ScheduleError(f"{axis.name} is no UNROLL loop: there is no tile to cut in two")
    chain = [top]
    while len(chain[-1].body) == 1 and isinstance(chain[-1].body[0], For):
        chain.append(chain[-1].body[0])
    store = chain[-1].body[0]
    if len(chain[-1].body) > 1 or not isinstance(store, Store):
        raise ScheduleError(f"the tile below {axis.name} has more than one statement")
    sums = [r for r in _outermost_reduces(store.value) if axis in r.free_axes]
    if not sums:
        raise ScheduleError(f"what is stored below {axis.name} is made of 0 folds that depend on it")
    old = tuple(f.axis for f in chain)
    if any(a.static_extent is None for a in old):
        raise ScheduleError(f"the tile below {axis.name} has no fixed size")
    count, shape = len(kernel.scratch), [a.extent for a in old]
    places = {r: Buffer(f"sums{count + n or ''}", r.dtype, shape, space=SCRATCH) for n, r in enumerate(sums)}
    new = tuple(Axis(f"{a.name}.s", a.extent, SEQ if a is axis else a.kind) for a in old)
    value = Substitution({r: Load(scratch, old) for r, scratch in places.items()})(store.value)
    moved = Substitution(dict(zip(old, new, strict=True)))
    tiles: list[Stmt] = [Store(scratch, old, r) for r, scratch in places.items()]
    second: Stmt = moved.stmt(Store(store.buffer, store.index, value))
    for f, a in zip(reversed(chain), reversed(new), strict=True):
        tiles = [For(f.axis, (t,), f.guard) for t in tiles]
        second = For(a, (second,), None if f.guard is None else moved(f.guard))
    return _swap(kernel.body, top, *tiles, second)


def _outermost_reduces(e: Expr) -> list[Reduce]:
    """The folds below ``e`` that are not inside another."""
    found: dict[Reduce, None] = {}
    seen: set[Expr] = set()

    def visit(n: Expr) -> None:
        if n in seen:
            return
        seen.add(n)
        if isinstance(n, Reduce):
            found[n] = None
        else:
            for c in n.children:
                visit(c)

    visit(e)
    return list(found)


# -- Split ---------------------------------------------------------------------------------------------------------------


def _split(kernel: Kernel, axis: Axis, move: Split, facts: SymbolFacts | None, kind: AxisKind = SEQ) -> tuple[Stmt, ...]:
    """``kind`` is that of the inner axis."""
    if move.factor < 1:
        raise ScheduleError(f"cannot split {axis.name} by {move.factor}")
    simplifier = Simplifier(facts)
    divides = simplifier.divisor(simplifier(axis.extent)) % move.factor == 0
    blocks = simplifier((axis.extent + (move.factor - 1)) // move.factor)
    outer = Axis(f"{axis.name}.o", blocks, axis.kind if axis.kind is PARALLEL else SEQ)
    inner = Axis(f"{axis.name}.i", move.factor, kind)
    point = outer * move.factor + inner
    guard = None if divides or move.tail is CLAMP else point < axis.extent
    whole = kind is TILE and outer.static_extent == 1
    if whole:
        point, guard = inner, None if divides else inner < axis.extent
    loop = _find_loop(kernel.body, axis)
    if loop is None:
        if move.tail is not GUARD and not divides:
            raise ScheduleError(f"{axis.name} is reduced over: its last points cannot be computed twice; use GUARD")
        return _split_reduce(kernel, axis, (inner,) if whole else (outer, inner), point, guard)
    if move.tail is CLAMP and not divides:
        _check_idempotent(loop)
    if move.tail is not GUARD and not divides:
        point = minimum(point, axis.extent - 1)
    sub = Substitution({axis: point})
    old_guard = None if loop.guard is None else simplifier(sub(loop.guard))
    around: Expr | None = None  # an old guard that the inner axis has no part in stays outside: folds that it protects are computed there
    if old_guard is not None and inner not in old_guard.free_axes and not whole:
        around, old_guard = old_guard, None
    both = old_guard if guard is None else guard if old_guard is None else guard & old_guard
    inner_loop = For(inner, tuple(sub.stmt(s) for s in loop.body), both)
    return _swap(kernel.body, loop, inner_loop if whole else For(outer, (inner_loop,), around))


def _chunk(kernel: Kernel, move: Chunk, facts: SymbolFacts | None) -> tuple[Stmt, ...]:
    """Chunk b of c holds the points from ``n * b // c`` to ``n * (b + 1) // c``."""
    axis = find_axis(kernel, move.axis)
    loop = _find_loop(kernel.body, axis)
    if move.most < 1:
        raise ScheduleError(f"cannot cut {axis.name} into chunks of {move.most}")
    if loop is None or loop.guard is not None:
        raise ScheduleError(f"{axis.name} is {'reduced over' if loop is None else 'guarded'}: only plain loops are cut into chunks")
    simplifier = Simplifier(facts)
    count = simplifier(maximum((axis.extent + (move.most - 1)) // move.most, const(1)))
    outer = Axis(f"{axis.name}.o", count, axis.kind if axis.kind is PARALLEL else SEQ)
    start, stop = axis.extent * outer // count, axis.extent * (outer + 1) // count
    inner = Axis(f"{axis.name}.i", simplifier(stop - start), SEQ)
    sub = Substitution({axis: start + inner})
    return _swap(kernel.body, loop, For(outer, (For(inner, tuple(sub.stmt(s) for s in loop.body)),)))


def _split_reduce(kernel: Kernel, axis: Axis, parts: tuple[Axis, ...], point: Expr, guard: Expr | None) -> tuple[Stmt, ...]:
    if axis.kind is VECTOR and parts[-1].kind is not TILE:
        raise ScheduleError(f"{axis.name} is a VECTOR reduce axis: its 16 lanes are part of the result; split before tagging")
    sub = Substitution({axis: point})
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if not e.children:
            return e
        if e not in memo:
            if isinstance(e, Reduce):
                body, old = visit(e.body), None if e.guard is None else visit(e.guard)
                if axis in e.axes:
                    if e.kind.startswith("arg") and len(parts) > 1:
                        raise ScheduleError(f"{e.kind} has one axis; {axis.name} cannot be split")
                    at = e.axes.index(axis)
                    axes = (*e.axes[:at], *parts, *e.axes[at + 1 :])
                    old = None if old is None else sub(old)
                    both = old if guard is None else guard if old is None else guard & old
                    memo[e] = Reduce(e.kind, axes, sub(body), both)
                else:
                    memo[e] = Reduce(e.kind, e.axes, body, old)
            else:
                memo[e] = rebuild(e, tuple(visit(c) for c in e.children))
        return memo[e]

    return map_expressions(kernel.body, visit)


def _check_idempotent(loop: For) -> None:
    """Computing a point twice must give the same: nothing is loaded before it is stored in the same loop body."""
    stored = {s.buffer for s in walk_statements(loop.body) if isinstance(s, Store)}
    written: set[Buffer] = set()
    for s in walk_statements(loop.body):
        if isinstance(s, Store):
            for b in frozenset().union(*[e.loads for e in (*s.index, s.value)]):
                if b in stored and b not in written:
                    raise ScheduleError(f"{loop.axis.name} cannot be clamped: {b.name} is read before it is written; use GUARD")
            written.add(s.buffer)


# -- Reorder, Collapse and Group ------------------------------------------------------------------------------------------


def _chain(kernel: Kernel, names: tuple[str, ...]) -> list[For]:
    """The For loops of those axes, which must form one perfect nest; outermost first."""
    wanted = {find_axis(kernel, n) for n in names}
    if len(wanted) != len(names):
        raise ScheduleError(f"an axis is named twice in {names}")
    tops = [s for s in walk_statements(kernel.body) if isinstance(s, For) and s.axis in wanted]
    if not tops:
        raise ScheduleError(f"none of {names} is a loop")
    chain = [tops[0]]
    missing = wanted - {tops[0].axis}
    while missing:
        body = chain[-1].body
        if len(body) != 1 or not isinstance(body[0], For):
            raise ScheduleError(f"{', '.join(sorted(a.name for a in missing))} not in a perfect nest below {chain[-1].axis.name}")
        chain.append(body[0])
        missing -= {body[0].axis}
    return chain


def _reorder(kernel: Kernel, move: Reorder) -> tuple[Stmt, ...]:
    chain = _chain(kernel, move.axes)
    order = [find_axis(kernel, n) for n in move.axes]
    wanted = set(order)
    queue = iter(order)
    axes = [next(queue) if f.axis in wanted else f.axis for f in chain]
    _check_independent(chain[0], [a for a, f in zip(axes, chain, strict=True) if a is not f.axis])
    guards = [f.guard for f in chain if f.guard is not None]
    inner = {f.axis for f in chain}
    placed: dict[Axis, Expr] = {}
    for g in guards:
        at = max((axes.index(a) for a in g.free_axes if a in inner), default=0)
        placed[axes[at]] = g if axes[at] not in placed else placed[axes[at]] & g
    seen: set[Axis] = set()
    for a in axes:
        late = (a.extent.free_axes & inner) - seen
        if late:
            raise ScheduleError(f"the extent of {a.name} depends on {min(x.name for x in late)}, which would come inside it")
        seen.add(a)
    body = chain[-1].body
    for a in reversed(axes):
        body = (For(a, body, placed.get(a)),)
    return _swap(kernel.body, chain[0], body[0])


def _check_independent(nest: For, moved: list[Axis]) -> None:
    """Points may run in any order: each store's index tells the points apart, and nothing stored is read elsewhere."""
    stores = [s for s in walk_statements((nest,)) if isinstance(s, Store)]
    targets: dict[Buffer, tuple[Expr, ...]] = {}
    for s in stores:
        held = frozenset().union(*[i.free_axes for i in s.index])
        for a in moved:
            if a not in held and a.static_extent != 1:
                raise ScheduleError(f"{a.name} cannot move: {s.buffer.name} is stored at an index without it")
        if targets.setdefault(s.buffer, s.index) != s.index and s.buffer.space is not SCRATCH:
            raise ScheduleError(f"{moved[0].name} cannot move: {s.buffer.name} is stored at two indices")
    for s in stores:
        for root in (*s.index, s.value):
            for n in walk(root):
                if isinstance(n, Load) and n.buffer in targets and n.index != targets[n.buffer]:
                    raise ScheduleError(f"{moved[0].name} cannot move: {n.buffer.name} is stored and read at another index")


def _collapse(kernel: Kernel, move: Collapse) -> tuple[Stmt, ...]:
    if len(move.axes) < 2:
        raise ScheduleError("Collapse needs two axes or more")
    chain = _directly_nested(kernel, move.axes)
    mapping: dict[Expr, Expr] = {}
    joined = _joined(chain)
    rest: Expr = joined
    for f in reversed(chain[1:]):
        mapping[f.axis] = rest % f.axis.extent
        rest = rest // f.axis.extent
    mapping[chain[0].axis] = rest
    return _replace_chain(kernel, chain, joined, mapping)


def _group(kernel: Kernel, move: Group, facts: SymbolFacts | None) -> tuple[Stmt, ...]:
    if move.size < 1:
        raise ScheduleError(f"cannot take {move.size} turns of {move.rows} at a time")
    chain = _directly_nested(kernel, (move.rows, move.columns))
    _check_independent(chain[0], [f.axis for f in chain])
    rows, columns = (f.axis for f in chain)
    joined = _joined(chain)
    band = columns.extent * move.size
    first = joined // band * move.size
    whole = Simplifier(facts).divisor(rows.extent) % move.size == 0
    high = const(move.size) if whole else maximum(minimum(rows.extent - first, const(move.size)), const(1))
    return _replace_chain(kernel, chain, joined, {rows: first + joined % band % high, columns: joined % band // high})


def _walk(kernel: Kernel, move: Walk) -> tuple[Stmt, ...]:
    axis = find_axis(kernel, move.axis)
    loop = _find_loop(kernel.body, axis)
    if move.programs < 1:
        raise ScheduleError(f"{move.programs} programs cannot share the turns of {axis.name}")
    if loop is None or axis.kind is not PARALLEL or any(isinstance(s, For) and s.axis.kind in (PARALLEL, WALK) for s in loop.body):
        raise ScheduleError(f"{axis.name} is not the innermost PARALLEL loop: there are no turns of a program to share out")
    if axis.static_extent is not None and axis.static_extent <= move.programs:
        return kernel.body
    program = Axis(f"{axis.name}.p", minimum(axis.extent, const(move.programs)), PARALLEL)
    mine = Axis(f"{axis.name}.w", (axis.extent - program + (move.programs - 1)) // move.programs, WALK)
    at = Substitution({axis: mine * move.programs + program})
    inner = For(mine, tuple(at.stmt(s) for s in loop.body), None if loop.guard is None else at(loop.guard))
    return _swap(kernel.body, loop, For(program, (inner,)))


def _directly_nested(kernel: Kernel, names: tuple[str, ...]) -> list[For]:
    """The loops of those axes, each directly inside the one before, none as long as another says."""
    chain = _chain(kernel, names)
    if [f.axis.name for f in chain] != list(names):
        raise ScheduleError(f"{names} are not directly nested in this order")
    loops = {f.axis for f in chain}
    for f in chain:
        if f.axis.extent.free_axes & loops:
            raise ScheduleError(f"the extent of {f.axis.name} depends on a loop that would be joined with it")
    return chain


def _joined(chain: list[For]) -> Axis:
    """One axis for all turns of the loops."""
    total: Expr = chain[0].axis.extent
    for f in chain[1:]:
        total = total * f.axis.extent
    return Axis("_".join(f.axis.name for f in chain), total, PARALLEL if all(f.axis.kind is PARALLEL for f in chain) else SEQ)


def _replace_chain(kernel: Kernel, chain: list[For], joined: Axis, mapping: dict[Expr, Expr]) -> tuple[Stmt, ...]:
    """The kernel with one loop in place of those."""
    sub = Substitution(mapping)
    guard: Expr | None = None
    for f in chain:
        if f.guard is not None:
            g = sub(f.guard)
            guard = g if guard is None else guard & g
    return _swap(kernel.body, chain[0], For(joined, tuple(sub.stmt(s) for s in chain[-1].body), guard))
