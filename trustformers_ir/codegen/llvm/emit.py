"""Kernel IR to LLVM text.

A kernel becomes two functions. The outer one has the ABI's signature: it loads the pointers and dimensions, cuts the flattened PARALLEL range
``[total*w/n, total*(w+1)/n)`` for its worker and calls the inner one, whose pointers are separate ``noalias`` arguments: that is what lets
LLVM keep accumulators in registers and move loads. A kernel without PARALLEL loops runs on worker 0 alone.

Inside, SEQ loops are loops; UNROLL and VECTOR loops around stores are register tiles (``tile.py``), after ``strips.py`` has cut long VECTOR
loops. A tile whose UNROLL points may lie outside a guard exists twice: whole, and point by point for the edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.depth import deep
from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import (
    GLOBAL,
    PARALLEL,
    SEQ,
    UNROLL,
    VECTOR,
    Axis,
    Buffer,
    Expr,
    const,
)
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.kernel_ir.simplify import Simplifier, SymbolFacts, simplify_kernel
from trustformers_ir.codegen.kernel_ir.verify import verify
from trustformers_ir.codegen.llvm.dot import DotKind, Dots
from trustformers_ir.codegen.llvm.fold import conjuncts
from trustformers_ir.codegen.llvm.memory import ZEROS_DEFINITION, Addressing, Memory
from trustformers_ir.codegen.llvm.strips import MAX_TILE_VECTORS, is_tile, legalise
from trustformers_ir.codegen.llvm.text import Val, Writer, literal
from trustformers_ir.codegen.llvm.tile import Evaluator, Point
from trustformers_ir.codegen.llvm.values import Ops
from trustformers_ir.ir.dtypes import DType

SIGNATURE = "ptr %buffers, ptr %dims, i64 %worker, i64 %workers, ptr %scratch, ptr %status"
#: Attribute groups used by all emitted functions.
ATTRIBUTES = (
    'attributes #0 = { nounwind "prefer-vector-width"="512" "no-trapping-math"="true" }\n'
    'attributes #1 = { noinline nounwind "prefer-vector-width"="512" "no-trapping-math"="true" }'
)


@dataclass(frozen=True)
class EmittedFunction:
    """LLVM text of one kernel and the declarations that it needs."""

    name: str
    text: str
    declarations: tuple[str, ...]


def module_text(functions: Iterable[EmittedFunction], extra: str = "", declarations: Iterable[str] = ()) -> str:
    """One LLVM module of several kernels and further text (an entry function, the pool)."""
    functions = list(functions)
    declared = {d: None for f in functions for d in f.declarations}
    declared.update(dict.fromkeys(declarations))
    parts = [ZEROS_DEFINITION, *sorted(declared), *(f.text for f in functions), extra, ATTRIBUTES]
    return "\n\n".join(p for p in parts if p) + "\n"


@deep
def emit_kernel(
    kernel: Kernel, symbols: Sequence[str], name: str | None = None, facts: SymbolFacts | None = None, features: Collection[str] = ()
) -> EmittedFunction:
    """LLVM text of a kernel. ``symbols`` is the order of the ``dims`` array; ``facts`` what is known of them.

    The text runs on any machine but for the instructions of ``dot.py``, which are chosen by the ``features`` of the target.
    """
    return _Emitter(kernel, symbols, name or kernel.name, facts, DotKind.of(features)).run()


def emit_expr(writer: Writer, e: Expr, symbols: dict[str, Val], facts: SymbolFacts | None = None) -> Val:
    """One i64 expression of symbols alone, as instructions: sizes and offsets of entry functions."""
    simplifier = Simplifier(facts)
    ops = Ops(writer)
    addressing = Addressing(Kernel("", (), ()), simplifier)
    ev = Evaluator(writer, ops, Memory(ops, {}, addressing), addressing, "")
    ev.symbols = symbols
    return ev.eval(simplifier(e), {})


class _Emitter:
    def __init__(self, kernel: Kernel, symbols: Sequence[str], name: str, facts: SymbolFacts | None, dot: DotKind | None) -> None:
        verify(kernel)
        self.name = name
        self.symbols = list(symbols)
        self.facts = facts
        simple = simplify_kernel(kernel, facts)
        self.simplifier = Simplifier(facts)
        self.kernel = Kernel(kernel.name, kernel.params, legalise(self.simplifier.statements(simple.body), self.simplifier))
        missing = [s for s in self.kernel.symbols if s not in self.symbols]
        if missing:
            raise ValueError(f"kernel {kernel.name} reads dimensions {missing}, which are not in {self.symbols}")
        self.writer = Writer()
        self.ops = Ops(self.writer)
        self.buffers = [*self.kernel.params, *self.kernel.scratch]
        pointers = {b: f"%b{n}" for n, b in enumerate(self.buffers)}
        addressing = Addressing(self.kernel, self.simplifier)
        memory = Memory(self.ops, pointers, addressing)
        self.ev = Evaluator(self.writer, self.ops, memory, addressing, "%status", None if dot is None else Dots(self.ops, memory, dot))
        self.ev.expect(e for s in walk_statements(self.kernel.body) if isinstance(s, Store) for e in (*s.index, s.value))

    # -- frame ---------------------------------------------------------------------------------------------------------

    def run(self) -> EmittedFunction:
        """Both functions."""
        used = self.kernel.symbols
        self.ev.symbols = {s: Val(f"%d{n}", DType.i64) for n, s in enumerate(used)}
        stored = {s.buffer for s in walk_statements(self.kernel.body) if isinstance(s, Store)}
        args = [f"ptr {self._pointer_attributes(b, b in stored)} %b{n}" for n, b in enumerate(self.buffers)]
        args += [f"i64 %d{n}" for n in range(len(used))] + ["i64 %begin", "i64 %end", "ptr noalias %status"]
        parallel, body = self._parallel()
        self._ranges(parallel, body)
        self.writer.line("ret void")
        inner = [f"define internal void @{self.name}.body({', '.join(args)}) #1 {{", "entry:", *self.writer.lines, "}"]
        outer, declarations = self._outer(parallel, used)
        declarations = {**self.writer.declarations, **declarations}
        return EmittedFunction(self.name, "\n".join([*inner, "", *outer]), tuple(sorted(declarations.values())))

    def _pointer_attributes(self, b: Buffer, stored: bool) -> str:
        parts = ["noalias"] if b.noalias else []
        return " ".join([*parts, "noundef" if stored else "noundef readonly"])

    def _parallel(self) -> tuple[list[For], tuple[Stmt, ...]]:
        loops: list[For] = []
        body = self.kernel.body
        while len(body) == 1 and isinstance(body[0], For) and body[0].axis.kind is PARALLEL:
            loops.append(body[0])
            body = body[0].body
        return loops, body

    def _outer(self, parallel: list[For], used: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The ABI function: loads arguments, cuts the range."""
        w = Writer()
        passed = []
        for n, b in enumerate(self.kernel.params):
            slot = w.op(f"getelementptr ptr, ptr %buffers, i64 {n}")
            passed.append("ptr " + w.op(f"load ptr, ptr {slot}, align 8"))
            assert b.space is GLOBAL
        dims = {}
        for s in used:
            slot = w.op(f"getelementptr i64, ptr %dims, i64 {self.symbols.index(s)}")
            dims[s] = Val(w.op(f"load i64, ptr {slot}, align 8"), DType.i64)
        offsets, _ = self.kernel.scratch_layout()
        for _b, offset in offsets:
            passed.append("ptr " + w.op(f"getelementptr i8, ptr %scratch, i64 {emit_expr(w, offset, dims, self.facts).text}"))
        passed += [f"i64 {dims[s].text}" for s in used]
        if parallel:
            total: Expr = const(1)
            for f in parallel:
                total = total * f.axis.extent
            count = emit_expr(w, total, dims, self.facts).text
            begin = w.op(f"udiv i64 {w.op(f'mul i64 {count}, %worker')}, %workers")
            following = w.op("add i64 %worker, 1")
            end = w.op(f"udiv i64 {w.op(f'mul i64 {count}, {following}')}, %workers")
        else:
            begin = "0"
            end = w.op(f"zext i1 {w.op('icmp eq i64 %worker, 0')} to i64")
        w.line(f"call void @{self.name}.body({', '.join([*passed, f'i64 {begin}', f'i64 {end}', 'ptr %status'])})")
        w.line("ret void")
        return [f"define void @{self.name}({SIGNATURE}) #0 {{", "entry:", *w.lines, "}"], w.declarations

    def _ranges(self, parallel: list[For], body: tuple[Stmt, ...]) -> None:
        """The loop over this worker's share of the flattened PARALLEL range."""
        begin, end = Val("%begin", DType.i64), Val("%end", DType.i64)
        extents = [self.ev.eval(f.axis.extent, {}) for f in parallel]

        def turn(i: Val, _: list[Val]) -> Sequence[Val]:
            rest = i
            for f, n in reversed(list(zip(parallel[1:], extents[1:], strict=True))):
                self.ev.bound[f.axis] = self.ops.binary("mod", rest, n, index=True, positive=True)
                rest = self.ops.binary("floordiv", rest, n, index=True, positive=True)
            if parallel:
                self.ev.bound[parallel[0].axis] = rest
            guards = [g for f in parallel for g in conjuncts(f.guard)]
            return self.ev.scoped(lambda: self._guarded(guards, body))

        self.writer.loop(begin, end, (), turn)

    # -- statements ----------------------------------------------------------------------------------------------------

    def _guarded(self, guards: list[Expr], body: tuple[Stmt, ...]) -> list[Val]:
        """``body`` where all guards hold."""
        holds: Val | None = None
        for g in guards:
            holds = self.ops.both(holds, self.ev.eval(g, {}))
        if holds is None or holds.literal == 1:
            self._body(body)
        elif holds.literal != 0:
            self.writer.branch(holds, lambda: self.ev.scoped(lambda: self._body(body)))
        return []

    def _body(self, body: tuple[Stmt, ...]) -> list[Val]:
        for s in body:
            if isinstance(s, Store):
                self.ev.store(s.buffer, s.index, s.value, {})
                self.ev.forget((s.buffer,))
            elif isinstance(s, For):
                if is_tile(s):
                    self._tile(s)
                else:
                    self._loop(s)
        return []

    def _loop(self, loop: For) -> None:
        stored = _stored(loop.body)
        self._hoist(loop, stored)
        self.ev.forget(stored)
        stop = self.ev.eval(loop.axis.extent, {})
        rest: list[Expr] = []
        limited = False
        for g in conjuncts(loop.guard):
            limit = self.ev.addressing.limit(g, loop.axis)
            if limit is None or limit.loads:
                rest.append(g)
            else:
                stop = self.ops.extremum("min", stop, self.ev.eval(limit, {}))
                limited = True

        def turn(i: Val, _: list[Val]) -> Sequence[Val]:
            self.ev.bound[loop.axis] = i
            return self.ev.scoped(lambda: self._guarded(rest, loop.body))

        if loop.axis.static_extent == 1 and not limited:
            turn(literal(0, DType.i64), [])
        else:
            sure = not limited and self.simplifier.proves_less(const(0), loop.axis.extent)
            self.writer.loop(literal(0, DType.i64), stop, (), turn, may_skip=not sure)
        del self.ev.bound[loop.axis]
        self.ev.forget(stored)

    def _hoist(self, loop: For, stored: frozenset[Buffer]) -> None:
        """Folds that do not depend on the loop are computed before it, for all points of the tile below, if there is one.

        Only where the loop leads to one tile or to stores directly, without guards: elsewhere the place of first use decides.
        """
        inside = {loop.axis}
        unrolled: list[Axis] = []
        level: tuple[Stmt, ...] = loop.body
        guarded = loop.guard is not None
        while len(level) == 1 and isinstance(level[0], For) and not guarded:
            f = level[0]
            if f.axis.kind is UNROLL and is_tile(f):
                unrolled.append(f.axis)
            else:
                inside.add(f.axis)
            guarded = f.guard is not None and any(VECTOR is not a.kind for a in f.guard.free_axes & (inside | set(unrolled)))
            level = f.body
        if guarded:
            return
        for s in level:
            if isinstance(s, Store):
                for root in (*s.index, s.value):
                    self._hoist_root(root, frozenset(inside), unrolled, stored)

    def _hoist_root(self, root: Expr, inside: frozenset[Axis], unrolled: list[Axis], stored: frozenset[Buffer]) -> None:
        for r in self.ev.inner_reduces(root):
            if inside.isdisjoint(r.free_axes) and stored.isdisjoint(r.loads):
                mine = [a for a in unrolled if a in r.free_axes]
                point: Point = dict.fromkeys(unrolled, 0)
                if all((a.static_extent or 0) > 0 for a in mine):
                    self.ev.eval(r, point)
            else:
                self._hoist_root(r.body, inside | frozenset(r.axes), unrolled, stored)

    # -- tiles ---------------------------------------------------------------------------------------------------------

    def _tile(self, tile: For) -> None:
        """A register tile: whole when every UNROLL point exists, else the edge version."""
        guards = self._scalar_guards(tile, {}, [])
        inside: Val | None = None
        for g, point in guards:
            v = self.ev.eval(g, point)
            if v.literal != 1:
                inside = v if inside is None else self.ops.logic("and", inside, v)
        stored = _stored((tile,))
        if inside is None:
            self._points(tile, {})
        else:
            self.writer.branch(inside, lambda: self.ev.scoped(lambda: self._points(tile, {})))
            self.ev.forget(stored)
            outside = self.ops.unary("not", inside)
            edge = self._edge(tile)
            self.writer.branch(outside, lambda: self.ev.scoped(lambda: self._body((edge,))))
        self.ev.forget(stored)

    def _scalar_guards(self, s: For, point: Point, found: list[tuple[Expr, Point]]) -> list[tuple[Expr, Point]]:
        """Guards that do not depend on lanes, at every point of the UNROLL axes that they depend on."""
        axes = dict(point)
        if s.axis.kind is UNROLL:
            axes[s.axis] = 0
        for g in conjuncts(s.guard):
            if not any(a.kind is VECTOR for a in g.free_axes):
                mine = [a for a in axes if a in g.free_axes]
                for c in itertools.product(*[range(a.static_extent or 0) for a in mine]):
                    found.append((g, dict(zip(mine, c, strict=True))))
        for b in s.body:
            if isinstance(b, For):
                self._scalar_guards(b, axes, found)
        return found

    def _edge(self, tile: For) -> For:
        """The tile with its guarded UNROLL loops, and those around them, as ordinary loops, so that each guard is asked point by point. Those inside
        stay a tile: where rows are left over, each is a tile of one row."""

        def demote(s: Stmt) -> Stmt:
            if not isinstance(s, For):
                return s
            body, guard, axis = tuple(map(demote, s.body)), s.guard, s.axis
            if axis.kind is not UNROLL:
                scalar = [g for g in conjuncts(guard) if not any(a.kind is VECTOR for a in g.free_axes)]
                lanes = [g for g in conjuncts(guard) if g not in scalar]
                if not scalar:
                    return For(axis, body, guard)
                return For(Axis("once", 1, SEQ), (For(axis, body, _join(lanes)),), _join(scalar))
            if guard is None and all(x is y for x, y in zip(body, s.body, strict=True)):
                return s
            plain = axis.like(kind=SEQ)
            sub = Substitution({axis: plain})
            return For(plain, tuple(sub.stmt(b) for b in body), None if guard is None else sub(guard))

        edge = demote(tile)
        assert isinstance(edge, For)
        return edge

    def _points(self, s: Stmt, point: Point) -> list[Val]:
        """Every point of a tile, in program order; scalar guards are known to hold."""
        ev = self.ev
        if isinstance(s, Store):
            ev.store(s.buffer, s.index, s.value, point)
            if ev.scopes and _reads(ev, s.buffer):
                ev.forget((s.buffer,))
            return []
        assert isinstance(s, For)
        if s.axis.kind is UNROLL:
            points = [{**point, s.axis: c} for c in range(s.axis.static_extent or 0)]
            self._side_by_side(s, points)
            for p in points:
                for b in s.body:
                    self._points(b, p)
            return []
        saved = ev.vector, ev.lanes, ev.mask_guards
        ev.vector, ev.lanes = s.axis, s.axis.static_extent or 0
        ev.mask_guards = tuple(g for g in conjuncts(s.guard) if any(a.kind is VECTOR for a in g.free_axes))
        for b in s.body:
            self._points(b, point)
        ev.vector, ev.lanes, ev.mask_guards = saved
        return []


    def _side_by_side(self, unrolled: For, points: list[Point]) -> None:
        """Vectors of one row that are stored next to each other are computed operation by operation, not one after the other.

        The value behind a product is a long chain (some 50 cycles for GELU), and a core looks only so far ahead. Three chains side by side take 9.6
        cycles per vector of GELU on a Zen 5, one after the other 11.2. More would need registers that accumulators still hold.
        """
        inner = unrolled.body[0]
        if len(points) > MAX_TILE_VECTORS or len(unrolled.body) > 1 or not isinstance(inner, For) or inner.axis.kind is not VECTOR:
            return
        s = inner.body[0]
        if len(inner.body) == 1 and isinstance(s, Store) and s.buffer not in s.value.loads:
            ev = self.ev
            saved = ev.vector, ev.lanes, ev.mask_guards
            ev.vector, ev.lanes = inner.axis, inner.axis.static_extent or 0
            ev.mask_guards = tuple(g for g in conjuncts(inner.guard) if any(a.kind is VECTOR for a in g.free_axes))
            ev.eval_together(s.value, points)
            ev.vector, ev.lanes, ev.mask_guards = saved


def _join(guards: Sequence[Expr]) -> Expr | None:
    total: Expr | None = None
    for g in guards:
        total = g if total is None else total & g
    return total


def _stored(body: tuple[Stmt, ...]) -> frozenset[Buffer]:
    return frozenset(s.buffer for s in walk_statements(body) if isinstance(s, Store))


def _reads(ev: Evaluator, buffer: Buffer) -> bool:
    return any(buffer in key[0].loads for scope in ev.scopes for key in scope)
