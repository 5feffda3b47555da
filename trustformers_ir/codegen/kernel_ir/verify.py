"""The invariants of a kernel, numbered. ``verify(kernel)`` raises ``KernelError`` naming the rule and the place.

K1  every axis is bound by an enclosing For or Reduce where it is used, and bound only once on the way.
K2  buffer names are unique; every global buffer touched is a parameter; parameters are global.
K3  a read-only buffer is never stored to.
K4  PARALLEL loops stand at the top of a kernel with a single nest, each directly inside the previous one, unguarded or guarded
    by themselves, none as long as another says; there is no other PARALLEL loop and no PARALLEL reduce axis.
K5  an UNROLL axis has a constant extent of at most 256.
K6  below a VECTOR loop there are only UNROLL loops and stores whose index depends on it, and at most one VECTOR loop on any path.
K7  a Reduce has at least one axis, at most one VECTOR axis, which is its last; argmax and argmin have exactly one axis.
K8  a VECTOR or UNROLL tile does not load what it stores, other than at the very index that it stores.
K9  extents, shapes and strides are i64; shapes, strides and extents are made of symbols, constants and outer axes only. The extent of a SEQ
    loop beside TILE loops may also read scratch buffers of one element: what a program has found out before it.
K10 the iterations of PARALLEL loops are independent: every global store's index depends on each of them, and a global buffer both
    stored and loaded below them is loaded where, for each parallel axis, some index entry holding that axis equals the store's.
K11 no loop is DOT. A DOT axis has extent 4 and is the last axis of a sum in i32 of products of an element of u8, or four bits of it, and one of i8;
    of the axes before it at most one is not UNROLL.
K12 a TILE axis has a constant extent, a power of two; below a TILE loop there are only TILE loops and stores whose index depends on it, unless its
    guard leaves one point.
K13 a WALK loop is the only statement directly below the PARALLEL loops, and its iterations are independent like theirs (K10); no reduce axis is WALK.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import (
    DOT,
    GLOBAL,
    PARALLEL,
    SCRATCH,
    SEQ,
    TILE,
    UNROLL,
    VECTOR,
    WALK,
    Axis,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Load,
    Reduce,
    binary,
    conjuncts,
    const,
)
from trustformers_ir.ir.dtypes import DType

#: Largest extent of one UNROLL axis.
MAX_UNROLL = 256


class KernelError(Exception):
    """A kernel breaks a numbered invariant."""

    def __init__(self, rule: str, kernel: Kernel, message: str) -> None:
        super().__init__(f"{rule} in kernel {kernel.name}: {message}")
        self.rule = rule


def verify(kernel: Kernel) -> None:
    """Raises ``KernelError`` when an invariant does not hold."""
    _Verifier(kernel).run()


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.names: dict[str, Buffer] = {}
        self.blocks = any(isinstance(s, For) and s.axis.kind is TILE for s in walk_statements(kernel.body))

    def fail(self, rule: str, message: str) -> KernelError:
        return KernelError(rule, self.kernel, message)

    def run(self) -> None:
        for b in self.kernel.params:
            if b.space is not GLOBAL:
                raise self.fail("K2", f"parameter {b.name} is not a global buffer")
            self.buffer(b)
        self.parallel_nest()
        for s in self.kernel.body:
            self.statement(s, frozenset())
        self.independence()

    def buffer(self, b: Buffer) -> None:
        known = self.names.setdefault(b.name, b)
        if known is not b:
            raise self.fail("K2", f"two buffers are called {b.name}")
        if b.space is GLOBAL and b not in self.kernel.params:
            raise self.fail("K2", f"global buffer {b.name} is not a parameter")
        for e in (*b.shape, *b.strides):
            if e.dtype is not DType.i64 or e.free_axes or e.loads:
                raise self.fail("K9", f"shape or stride {e!r} of {b.name} is not an i64 made of symbols")

    def axis(self, a: Axis, bound: frozenset[Axis]) -> None:
        if a in bound:
            raise self.fail("K1", f"axis {a.name} is bound twice")
        known = a.kind is SEQ and all(b.space is SCRATCH and not b.shape for b in a.extent.loads) and self.blocks
        if a.extent.dtype is not DType.i64 or (a.extent.loads and not known):
            raise self.fail("K9", f"extent {a.extent!r} of {a.name} is not an i64 made of symbols and outer axes")
        self.bound(a.extent, bound, f"the extent of {a.name}")
        size = a.static_extent
        if a.kind is TILE and (size is None or size < 1 or size & (size - 1)):
            raise self.fail("K12", f"TILE axis {a.name} has extent {a.extent!r}, need a power of two")
        if a.kind is UNROLL and not 0 <= (a.static_extent if a.static_extent is not None else -1) <= MAX_UNROLL:
            raise self.fail("K5", f"UNROLL axis {a.name} has extent {a.extent!r}, need a constant up to {MAX_UNROLL}")

    def bound(self, e: Expr, bound: frozenset[Axis], what: str) -> None:
        loose = e.free_axes - bound
        if loose:
            raise self.fail("K1", f"{what} uses axis {min(a.name for a in loose)} where nothing binds it")

    def expr(self, e: Expr, bound: frozenset[Axis], what: str) -> None:
        self.bound(e, bound, what)
        for n in walk(e):
            if isinstance(n, Load):
                self.buffer(n.buffer)
            elif isinstance(n, Reduce):
                self.reduce(n, bound)

    def reduce(self, r: Reduce, bound: frozenset[Axis]) -> None:
        inside = bound
        if not r.axes:
            raise self.fail("K7", f"{r.kind} over no axis")
        if r.kind.startswith("arg") and len(r.axes) != 1:
            raise self.fail("K7", f"{r.kind} over {len(r.axes)} axes")
        for position, a in enumerate(r.axes):
            if a in bound:
                raise self.fail("K1", f"axis {a.name} is bound twice")
            if a.kind is PARALLEL:
                raise self.fail("K4", f"reduce axis {a.name} is PARALLEL")
            if a.kind is WALK:
                raise self.fail("K13", f"reduce axis {a.name} is WALK")
            if a.kind is VECTOR and position != len(r.axes) - 1:
                raise self.fail("K7", f"VECTOR axis {a.name} is not the last axis of its {r.kind}")
            if a.kind in (UNROLL, TILE):
                self.axis(a, frozenset())
            if a.kind is DOT:
                looped = sum(b.kind is not UNROLL for b in r.axes[:-1])
                if a.static_extent != 4 or position != len(r.axes) - 1 or looped > 1 or byte_factors(r) is None:
                    raise self.fail("K11", f"DOT axis {a.name} of a {r.kind} of {r.body.dtype}")
            if a in inside:
                raise self.fail("K1", f"axis {a.name} is bound twice")
            inside |= {a}

    def statement(self, s: Stmt, bound: frozenset[Axis]) -> None:
        if isinstance(s, Store):
            self.buffer(s.buffer)
            if s.buffer.readonly:
                raise self.fail("K3", f"store to read-only {s.buffer.name}")
            for i in s.index:
                self.expr(i, bound, f"the index of {s.buffer.name}")
            for a in bound:
                if a.kind is VECTOR and a.static_extent != 1 and not any(a in i.free_axes for i in s.index):
                    raise self.fail("K6", f"the index of {s.buffer.name} does not depend on the VECTOR loop {a.name} around it")
                if a.kind is TILE and not any(a in i.free_axes for i in s.index) and not self.single(a):
                    raise self.fail("K12", f"the index of {s.buffer.name} does not depend on the TILE loop {a.name} around it")
            self.expr(s.value, bound, f"the value stored to {s.buffer.name}")
        elif isinstance(s, For):
            self.axis(s.axis, bound)
            if s.axis.kind is TILE and any(isinstance(x, For) and x.axis.kind is not TILE for x in walk_statements(s.body)):
                raise self.fail("K12", f"a loop that is no TILE inside TILE loop {s.axis.name}")
            if s.axis.kind is DOT:
                raise self.fail("K11", f"loop {s.axis.name} is DOT")
            inner = bound | {s.axis}
            if s.guard is not None:
                self.expr(s.guard, inner, f"the guard of {s.axis.name}")
            if s.axis.kind is VECTOR:
                self.vector(s)
            if s.axis.kind in (VECTOR, UNROLL) and _is_tile(s):
                self.tile(s)
            for b in s.body:
                self.statement(b, inner)

    def single(self, a: Axis) -> bool:
        """Whether the guard of a loop is that its point is the first."""
        loops = (s for s in walk_statements(self.kernel.body) if isinstance(s, For) and s.axis is a)
        first = binary("lt", a, const(1))
        return a.static_extent == 1 or any(s.guard is not None and first in conjuncts(s.guard) for s in loops)

    def vector(self, loop: For) -> None:
        for s in walk_statements(loop.body):
            if isinstance(s, For) and s.axis.kind is not UNROLL:
                raise self.fail("K6", f"{s.axis.kind.value} loop {s.axis.name} inside VECTOR loop {loop.axis.name}")

    def tile(self, loop: For) -> None:
        stores = [s for s in walk_statements((loop,)) if isinstance(s, Store)]
        targets = {s.buffer: s.index for s in stores}
        for s in stores:
            for load in _loads((*s.index, s.value)):
                if load.buffer in targets and load.index != targets[load.buffer]:
                    raise self.fail("K8", f"tile {loop.axis.name} stores {load.buffer.name} and loads it at another index")

    def parallel_nest(self) -> None:
        level: tuple[Stmt, ...] = self.kernel.body
        top: set[Axis] = set()
        while len(level) == 1 and isinstance(level[0], For) and level[0].axis.kind is PARALLEL:
            if level[0].axis.extent.free_axes:
                raise self.fail("K4", f"the extent of PARALLEL loop {level[0].axis.name} depends on another loop")
            top.add(level[0].axis)
            level = level[0].body
        if top and len(level) == 1 and isinstance(level[0], For) and level[0].axis.kind is WALK:
            top.add(level[0].axis)
        self.parallel = frozenset(top)
        for s in walk_statements(self.kernel.body):
            if isinstance(s, For) and s.axis.kind is PARALLEL and s.axis not in top:
                raise self.fail("K4", f"PARALLEL loop {s.axis.name} is not at the top")
            if isinstance(s, For) and s.axis.kind is WALK and s.axis not in top:
                raise self.fail("K13", f"WALK loop {s.axis.name} is not all that stands directly below the PARALLEL loops")

    def independence(self) -> None:
        if not self.parallel:
            return
        stored: dict[Buffer, list[tuple[Expr, ...]]] = {}
        for s in walk_statements(self.kernel.body):
            if isinstance(s, Store) and s.buffer.space is GLOBAL:
                held = frozenset().union(*[i.free_axes for i in s.index])
                missing = [a.name for a in self.parallel if a not in held and a.static_extent != 1]
                if missing:
                    raise self.fail("K10", f"the index of {s.buffer.name} does not depend on PARALLEL {', '.join(sorted(missing))}")
                stored.setdefault(s.buffer, []).append(s.index)
        for s in walk_statements(self.kernel.body):
            if not isinstance(s, Store):
                continue
            for load in _loads((*s.index, s.value)):
                for index in stored.get(load.buffer, ()):
                    for a in self.parallel:
                        if a.static_extent != 1 and not any(a in x.free_axes and x is y for x, y in zip(index, load.index, strict=True)):
                            raise self.fail("K10", f"{load.buffer.name} is stored and loaded at different places of PARALLEL {a.name}")


@dataclass(frozen=True)
class ByteFactor:
    """A byte that is loaded, or the four bits of it from ``shift`` on; then ``high``, of which ``bits`` bits from its own shift on, may stand above
    them."""

    load: Load
    shift: Expr | None = None
    high: ByteFactor | None = None
    bits: int = 4


def byte_factors(r: Reduce) -> tuple[ByteFactor, ByteFactor] | None:
    """The factors of u8 and of i8 whose products a fold adds up in i32, whichever comes first; None when it does something else."""
    body = r.body
    if r.kind != "sum" or body.dtype is not DType.i32 or not isinstance(body, Binary) or body.op != "mul":
        return None
    factors = [_byte_factor(x.x) for x in (body.a, body.b) if isinstance(x, Cast)]
    found = {f.load.dtype: f for f in factors if f is not None}
    return (found[DType.u8], found[DType.i8]) if found.keys() == {DType.u8, DType.i8} else None


def _byte_factor(e: Expr) -> ByteFactor | None:
    if isinstance(e, Load):
        return ByteFactor(e)
    if isinstance(e, Binary) and e.op == "or":
        low, above = _byte_factor(e.a), e.b
        if low is None or low.shift is None or not isinstance(above, Binary) or above.op != "shl" or above.b is not const(4, DType.u8):
            return None
        field = above.a
        if not isinstance(field, Binary) or field.op != "and" or not isinstance(field.b, Const) or not isinstance(field.a, Binary):
            return None
        bits = int(field.b.value).bit_length()
        if field.a.op != "shr" or not isinstance(field.a.a, Load) or field.b.value != (1 << bits) - 1 or bits > 4:
            return None
        return ByteFactor(low.load, low.shift, ByteFactor(field.a.a, field.a.b), bits)
    if not isinstance(e, Binary) or e.op != "and" or e.b is not const(15, DType.u8):
        return None
    if isinstance(e.a, Load):
        return ByteFactor(e.a, const(0))
    shifted = e.a
    return ByteFactor(shifted.a, shifted.b) if isinstance(shifted, Binary) and shifted.op == "shr" and isinstance(shifted.a, Load) else None


def _is_tile(loop: For) -> bool:
    return all(s.axis.kind in (UNROLL, VECTOR) for s in walk_statements(loop.body) if isinstance(s, For))


def _loads(roots: Iterable[Expr]) -> list[Load]:
    seen: set[Expr] = set()
    return [n for r in roots for n in walk(r, seen) if isinstance(n, Load)]
