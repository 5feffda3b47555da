"""Evaluates expressions over a register tile.

Around the current place there are loop axes, each bound to a register, and *tile* axes: any number of UNROLL axes, whose coordinates are
Python integers (a *point*), and at most one VECTOR axis, which is the lane number 0 … L-1. An expression has one value for each combination of the
UNROLL axes that it depends on (a vector when it depends on the vector axis, a scalar otherwise), computed once: the memo is keyed by
(expression, those coordinates). So in ``sum_k A[i, k] * B[k, j]`` with i unrolled and j a vector, the 8 broadcasts of A and the 3 vectors of
B are loaded once per k and shared by the 24 products.

A Reduce is asked for at one point but emitted for all points it depends on, in one loop with one accumulator each (unroll-and-jam; see ``fold.py``).
Reduces over the same axes (the smallest and the largest element of a row) run in the same loop.
Before a loop is opened, the Reduces inside that do not depend on it are evaluated: they belong outside.

Memo entries live in scopes: a loop body opens one, since what it computes does not dominate what follows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence

from trustformers_ir.codegen import math as functions
from trustformers_ir.codegen.kernel_ir import optable
from trustformers_ir.codegen.kernel_ir.kernel import walk
from trustformers_ir.codegen.kernel_ir.nodes import (
    DOT,
    LANES,
    Axis,
    Binary,
    Buffer,
    Cast,
    CheckedIndex,
    Const,
    Expr,
    Fma,
    Load,
    Reduce,
    Select,
    Sym,
    Unary,
    const,
)
from trustformers_ir.codegen.kernel_ir.rewrite import substitute
from trustformers_ir.codegen.llvm.dot import Dots
from trustformers_ir.codegen.llvm.fetch import Fetches
from trustformers_ir.codegen.llvm.fold import Fold
from trustformers_ir.codegen.llvm.memory import Addressing, Condition, Line, Memory
from trustformers_ir.codegen.llvm.text import Val, Writer, literal
from trustformers_ir.codegen.llvm.values import Ops
from trustformers_ir.ir.dtypes import DType

Point = dict[Axis, int]
Key = tuple[Expr, tuple[int, ...], tuple[str, ...]]


class Evaluator:
    """Turns expressions into registers."""

    def __init__(self, writer: Writer, ops: Ops, memory: Memory, addressing: Addressing, status: str, dots: Dots | None = None) -> None:
        self.w = writer
        self.dots = dots
        self.ops = ops
        self.memory = memory
        self.addressing = addressing
        self.simplifier = addressing.simplifier
        self.status = status
        self.symbols: dict[str, Val] = {}
        self.bound: dict[Axis, Val] = {}
        self.vector: Axis | None = None
        self.lanes = 0
        self.mask_guards: tuple[Expr, ...] = ()
        self.masking = False
        self.folded: frozenset[Axis] = frozenset()  # axes of the folds around the current place
        self.fetches = Fetches(self)
        self.conditions: list[Val] = []
        self.assumed: frozenset[Axis] = frozenset()  # of guards of folds and of selects that are decided where we are: they may differ elsewhere
        self.scopes: list[dict[Key, Val]] = [{}]
        self._inner: dict[Expr, tuple[Reduce, ...]] = {}
        self._obeys: dict[Expr, bool] = {}
        self._needed: dict[Expr, dict[Expr, None]] = {}
        self._checks: dict[Expr, tuple[CheckedIndex, ...]] = {}
        self._alike: dict[tuple[Axis, ...], list[Reduce]] = {}

    # -- scopes and memo -----------------------------------------------------------------------------------------------

    def scoped(self, run: Callable[[], Sequence[Val]]) -> list[Val]:
        """Runs with a fresh memo scope, dropped afterwards."""
        self.scopes.append({})
        try:
            return list(run())
        finally:
            self.scopes.pop()

    def expect(self, roots: Iterable[Expr]) -> None:
        """Tells which Reduces there will be, so that those over the same axes can run together."""
        seen: set[Expr] = set()
        for root in roots:
            for n in walk(root, seen):
                if isinstance(n, Reduce) and not n.kind.startswith("arg"):
                    self._alike.setdefault(n.axes, []).append(n)

    def forget(self, stored: Iterable[Buffer]) -> None:
        """Drops every value read from buffers that have changed."""
        changed = frozenset(stored)
        for scope in self.scopes:
            for key in [k for k in scope if not changed.isdisjoint(k[0].loads)]:
                del scope[key]

    def coordinates(self, e: Expr, point: Point) -> tuple[int, ...]:
        """The part of a point that matters to the value of ``e``."""
        free = e.free_axes
        return tuple(c for a, c in point.items() if a in free)

    def _key(self, e: Expr, point: Point) -> Key:
        """What the memo knows the value of ``e`` by, here."""
        return e, self.coordinates(e, point), tuple(c.text for c in self.conditions) if self._conditional(e) else ()

    def _lookup(self, key: Key) -> Val | None:
        for scope in reversed(self.scopes):
            hit = scope.get(key)
            if hit is not None:
                return hit
        return None

    def eval(self, e: Expr, point: Point) -> Val:
        """The value of ``e`` at a point of the tile: a vector exactly when it depends on the vector axis (or a literal)."""
        if isinstance(e, Const):
            return literal(e.value, e.dtype)
        if isinstance(e, Axis):
            return self._axis(e, point)
        if isinstance(e, Sym):
            return self.symbols[e.name]
        key = _, coordinates, conditions = self._key(e, point)
        for n in range(len(conditions) + 1):  # what holds under fewer conditions holds here
            hit = self._lookup((e, coordinates, conditions[:n]))
            if hit is not None:
                return hit
        value = self._compute(e, point)
        self.scopes[-1][key] = value
        return value

    def eval_together(self, e: Expr, points: Sequence[Point]) -> None:
        """Evaluates ``e`` at several points, each operation at all of them before the next one. What obeys conditions is left to ``eval``."""
        seen: set[Expr] = set()

        def visit(n: Expr) -> None:
            if n in seen or n.pure_index or self._conditional(n):
                return
            seen.add(n)
            expanded = functions.expand(n) if isinstance(n, (Unary, Binary)) else None
            if not isinstance(n, (Load, Reduce)):
                for child in n.children if expanded is None else (expanded,):
                    visit(child)
            for p in points:
                self.eval(n, p)

        visit(e)

    def vector_value(self, e: Expr, point: Point) -> Val:
        """The value with one lane per position of the vector axis, if there is one."""
        return self.ops.splat(self.eval(e, point), self.lanes)

    def _axis(self, a: Axis, point: Point) -> Val:
        if a is self.vector:
            return self.ops.iota(self.lanes)
        if a in point:
            return literal(point[a], DType.i64)
        return self.bound[a]

    # -- one node ------------------------------------------------------------------------------------------------------

    def _compute(self, e: Expr, point: Point) -> Val:
        ops = self.ops
        if isinstance(e, Binary):
            expanded = functions.expand(e)
            if expanded is not None:
                return self.eval(expanded, point)
            if e.op in optable.BINARY and optable.BINARY[e.op].transcendental:
                return ops.libm(functions.LIBM[e.op], self.eval(e.a, point), self.eval(e.b, point))
            return self._binary(e, point)
        if isinstance(e, Unary):
            expanded = functions.expand(e)
            if expanded is not None:
                return self.eval(expanded, point)
            if optable.UNARY[e.op].transcendental:
                return ops.libm(functions.LIBM[e.op], self.eval(e.x, point))
            return ops.unary(e.op, self.eval(e.x, point))
        if isinstance(e, Fma):
            return ops.fma(self.eval(e.a, point), self.eval(e.b, point), self.eval(e.c, point))
        if isinstance(e, Cast):
            return ops.cast(self.eval(e.x, point), e.dtype)
        if isinstance(e, Load):
            return self._load(e, point)
        if isinstance(e, Select):
            return self._select(e, point)
        if isinstance(e, Reduce):
            return self._reduce(e, point)
        assert isinstance(e, CheckedIndex)
        return self._checked(e, point)

    def _binary(self, e: Binary, point: Point) -> Val:
        if e.a.dtype is DType.i64 and e.pure_index:
            if e.dtype is DType.bool and self.vector is not None and self.vector in e.free_axes:
                mask = self._lane_compare(e, point)
                if mask is not None:
                    return mask
            positive = False
            if e.op in ("floordiv", "mod"):
                low_a, low_b = self.simplifier.bounds(e.a)[0], self.simplifier.bounds(e.b)[0]
                positive = low_a is not None and low_a >= 0 and low_b is not None and low_b > 0
            return self.ops.binary(e.op, self.eval(e.a, point), self.eval(e.b, point), index=True, positive=positive)
        return self.ops.binary(e.op, self.eval(e.a, point), self.eval(e.b, point))

    def _lane_compare(self, e: Binary, point: Point) -> Val | None:
        """``a < b`` where the difference is a line of slope 1 along the lanes: compares 32-bit lane numbers with one scalar."""
        assert self.vector is not None
        if e.op not in ("lt", "le", "ge", "gt"):
            return None
        a, b = (e.a, e.b) if e.op in ("lt", "le") else (e.b, e.a)
        line = self.addressing.line(self.simplifier(b - a), self.vector)
        if line is None or line.step not in (1, -1):
            return None
        below = line.step == -1  # rest - lane > 0  <=>  lane < rest;   rest + lane > 0  <=>  lane > -rest
        rest = self.eval(line.rest, point)
        limit = rest if below else self.ops.binary("sub", literal(0, DType.i64), rest, index=True)
        strict = e.op in ("lt", "gt")
        clamped = self.ops.extremum("min", self.ops.extremum("max", limit, literal(-1, DType.i64)), literal(self.lanes, DType.i64))
        narrow = self.ops.cast(clamped, DType.i32)
        if self.masking or rest.literal is not None:
            narrow = self.ops.opaque(narrow)
        lanes = self.ops.iota(self.lanes, DType.i32)
        return self.ops.compare(
            {(True, True): "lt", (True, False): "le", (False, True): "gt", (False, False): "ge"}[below, strict], lanes, narrow
        )

    # -- memory --------------------------------------------------------------------------------------------------------

    def mask(self, point: Point) -> Val | None:
        """The lanes of the tile that exist at this point; None: all."""
        total: Val | None = None
        guards, self.mask_guards, self.masking = self.mask_guards, (), True
        for g in guards:
            total = self.ops.both(total, self.ops.splat(self.eval(g, point), self.lanes))
        self.mask_guards, self.masking = guards, False
        return total

    def condition(self, buffer: Buffer, index: tuple[Expr, ...], point: Point) -> Condition:
        """When an access at ``index`` may happen here."""
        scalar: Val | None = None
        lanes: Val | None = None
        parts: list[Val] = []
        free = frozenset().union(*[i.free_axes for i in index]) if index else frozenset()
        along = self.vector is not None and self.vector in free
        if not self.addressing.safe(buffer, index):
            parts.extend(self.conditions)
            if self.mask_guards and (along or any(a in g.free_axes for g in self.mask_guards for a in point if a in free)):
                m = self.mask(point)
                if m is not None:
                    parts.append(m)
        parts.extend(self._holes(index, point))
        for part in parts:
            if part.literal == 1:
                continue
            if part.lanes and not along:
                part = self.ops.any_lane(part)
            if part.lanes:
                lanes = self.ops.both(lanes, part)
            else:
                scalar = self.ops.both(scalar, part)
        return Condition(scalar, lanes)

    def _holes(self, index: tuple[Expr, ...], point: Point) -> list[Val]:
        """For each checked index into a dimension that may have size 0: whether it has elements."""
        return [self.ops.compare("gt", self.eval(c.bound, point), literal(0, DType.i64)) for c in self.addressing.checked(index)]

    def _load(self, e: Load, point: Point) -> Val:
        flat = self.addressing.flat(e.buffer, e.index)
        when = self.condition(e.buffer, e.index, point)
        if self.vector is None or self.vector not in flat.free_axes:
            if when.lanes is not None:  # the address lost its dependence on the lanes (a dimension of one element)
                when = Condition(self.ops.both(when.scalar, self.ops.any_lane(when.lanes)), None)
            return self.memory.load_scalar(e.buffer, self.eval(flat, point), when)
        line = self.addressing.line(flat, self.vector)
        if line is None or line.step not in (1, -1):
            across = self._across(e, flat, when, point)
            if across is not None:
                return self._transposed(e, flat, across, point)
        if line is None:
            return self.memory.gather(e.buffer, literal(0, DType.i64), self.vector_value(flat, point), when)
        if line.step == 1:
            if e.buffer.ahead is not None:
                self.fetches.ask(e.buffer, e.buffer.ahead, line.rest, point)
            return self.memory.load_vector(e.buffer, self.eval(line.rest, point), self.lanes, when)
        if line.step == -1 and when.lanes is None:
            low = self.ops.binary("sub", self.eval(line.rest, point), literal(self.lanes - 1, DType.i64), index=True)
            return self.memory.load_reversed(e.buffer, low, self.lanes, when)
        return self.memory.gather(e.buffer, self.eval(line.rest, point), self._steps(line, point), when)

    def _across(self, e: Load, flat: Expr, when: Condition, point: Point) -> Axis | None:
        """The UNROLL axis of 16 points along which the elements of a strided read are neighbours, when all of them may be read: nothing is masked,
        and what is known to hold at this point, and keeps the read inside the buffer, holds along the axis."""
        if self.lanes != LANES or self.mask_guards or when != Condition():
            return None
        for a in point:
            if a.static_extent == LANES and a in flat.free_axes and (a not in self.assumed or self.addressing.safe(e.buffer, e.index)):
                line = self.addressing.line(flat, a)
                if line is not None and line.step == 1:
                    return a
        return None

    def _transposed(self, e: Load, flat: Expr, across: Axis, point: Point) -> Val:
        """A strided read for all 16 points of ``across`` at once: 16 vectors along it, one per lane, turned round in registers. It
        takes a quarter of the time of 16 gathers."""
        assert self.vector is not None
        rows = []
        for lane in range(LANES):
            start = self.simplifier(substitute(flat, {self.vector: const(lane), across: const(0)}))
            rows.append(self.memory.load_vector(e.buffer, self.eval(start, point), LANES, Condition()))
        columns = self.ops.transpose(rows)
        for c, column in enumerate(columns):
            self.scopes[-1][self._key(e, {**point, across: c})] = column
        return columns[point[across]]

    def _steps(self, line: Line, point: Point) -> Val:
        if line.step is not None:
            return self.ops.iota(self.lanes, DType.i64, line.step)
        return self.ops.binary("mul", self.ops.iota(self.lanes), self.eval(line.slope, point), index=True)

    def store(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr, point: Point) -> None:
        """Writes one element, or one per lane."""
        flat = self.addressing.flat(buffer, index)
        x = self.eval(value, point)
        holes = self._holes(index, point)
        if holes:  # an index into a dimension of size 0: reported, and nothing is written
            self.vector_value(flat, point)
            exists = functools.reduce(self.ops.both, holes)
            self.w.branch(exists, lambda: self.scoped(lambda: self._write(buffer, flat, x, point)))
        else:
            self._write(buffer, flat, x, point)

    def _write(self, buffer: Buffer, flat: Expr, x: Val, point: Point) -> list[Val]:
        if self.vector is None or self.vector not in flat.free_axes:
            if x.lanes:
                raise AssertionError(f"{buffer.name} is stored at an index that does not depend on {self.vector!r}")
            self.memory.store_scalar(buffer, self.eval(flat, point), x)
            return []
        x = self.ops.splat(x, self.lanes)
        mask = self.mask(point)
        line = self.addressing.line(flat, self.vector)
        if line is None:
            self.memory.scatter(buffer, literal(0, DType.i64), self.vector_value(flat, point), x, mask)
        elif line.step == 1:
            self.memory.store_vector(buffer, self.eval(line.rest, point), x, mask)
        else:
            self.memory.scatter(buffer, self.eval(line.rest, point), self._steps(line, point), x, mask)
        return []

    # -- conditions ----------------------------------------------------------------------------------------------------

    def _conditional(self, e: Expr) -> bool:
        """Whether the conditions of enclosing selects matter to ``e``: it may report an error, or read outside a buffer."""
        if e.checked:
            return True
        if not e.loads:
            return False
        hit = self._obeys.get(e)
        if hit is None:
            outside = isinstance(e, Load) and not self.addressing.safe(e.buffer, e.index)
            hit = self._obeys[e] = outside or any(map(self._conditional, e.children))
        return hit

    def _select(self, e: Select, point: Point) -> Val:
        c = self.eval(e.c, point)
        if c.literal is not None:
            saved, self.assumed = self.assumed, self.assumed | e.c.free_axes
            try:
                return self.eval(e.a if c.literal else e.b, point)
            finally:
                self.assumed = saved
        if self._conditional(e.a) and self._conditional(e.b):
            other = self._strict(e.b)
            for shared in self._strict(e.a):  # needed on either side: computed once, or a tower of selects would have 2^n paths
                if shared in other:
                    self.eval(shared, point)
        return self.ops.choose(c, self.under(c, e.a, point), self._under_not(c, e.b, point))

    def _strict(self, e: Expr) -> dict[Expr, None]:
        """The nodes below (and with) ``e`` that obey conditions and are evaluated whenever ``e`` is."""
        found = self._needed.get(e)
        if found is None:
            found = {}
            if self._conditional(e):
                if isinstance(e, Select):
                    found.update(self._strict(e.c))
                    other = self._strict(e.b)
                    found.update((n, None) for n in self._strict(e.a) if n in other)
                elif not isinstance(e, Reduce):
                    for child in e.children:
                        found.update(self._strict(child))
                found[e] = None
            self._needed[e] = found
        return found

    def under(self, c: Val, e: Expr, point: Point) -> Val:
        """The value of ``e`` where ``c`` holds."""
        if not self._conditional(e):
            return self.eval(e, point)
        self.conditions.append(c)
        try:
            return self.eval(e, point)
        finally:
            self.conditions.pop()

    def _under_not(self, c: Val, e: Expr, point: Point) -> Val:
        if not self._conditional(e):
            return self.eval(e, point)
        return self.under(self.ops.unary("not", c), e, point)

    def _checked(self, e: CheckedIndex, point: Point) -> Val:
        ops = self.ops
        index, bound = self.eval(e.index, point), self.eval(e.bound, point)
        zero = literal(0, DType.i64)
        from_end = ops.choose(ops.compare("lt", index, zero), ops.binary("add", index, bound), index)
        last = ops.binary("sub", bound, literal(1, DType.i64))
        clamped = ops.extremum("max", ops.extremum("min", from_end, last), zero)
        bad = ops.compare("ge", ops.cast(from_end, DType.u64), ops.cast(bound, DType.u64))  # negative, too large, or into nothing
        mask = self.mask(point) if index.lanes or bound.lanes else None
        for c in [*self.conditions, *([] if mask is None else [mask])]:
            bad = ops.logic("and", bad, c if not c.lanes or bad.lanes else ops.any_lane(c))
        self.w.branch(ops.any_lane(bad), lambda: self._report(e.site, bad, index))
        return clamped

    def _report(self, site: int, bad: Val, index: Val) -> list[Val]:
        """Claims the status word; the winner alone writes the offending value."""
        w = self.w
        if index.lanes and bad.lanes:
            bits = w.op(f"bitcast {bad.typed} to i{bad.lanes}")
            first = w.call(f"llvm.cttz.i{bad.lanes}", f"i{bad.lanes}", f"i{bad.lanes} {bits}", "i1 false")
            index = Val(w.op(f"extractelement {index.typed}, i{bad.lanes} {first}"), DType.i64)
        won = w.op(f"cmpxchg ptr {self.status}, i64 0, i64 {site + 1} monotonic monotonic")
        ok = Val(w.op(f"extractvalue {{ i64, i1 }} {won}, 1"), DType.bool)

        def write() -> list[Val]:
            p = w.op(f"getelementptr i64, ptr {self.status}, i64 1")
            w.line(f"store i64 {index.text}, ptr {p}, align 8")
            return []

        return w.branch(ok, write)

    # -- folds ---------------------------------------------------------------------------------------------------------

    def inner_reduces(self, e: Expr) -> tuple[Reduce, ...]:
        """The outermost Reduces below ``e`` that are evaluated whatever the conditions: not those that obey the condition of a Select."""
        hit = self._inner.get(e)
        if hit is None:
            found: dict[Reduce, None] = {}
            if isinstance(e, Reduce):
                found[e] = None
            elif e.loads or isinstance(e, (Unary, Binary, Cast, Fma, Select)):
                branch = isinstance(e, Select)
                for c in [c for c in e.children if not branch or c is e.children[0] or not self._conditional(c)]:
                    found.update(dict.fromkeys(self.inner_reduces(c)))
            hit = self._inner[e] = tuple(found)
        return hit

    def hoist(self, roots: Iterable[Expr], inside: frozenset[Axis], point: Point) -> None:
        """Evaluates, here, the Reduces below ``roots`` that depend on no axis of ``inside``; looks into the others."""
        for root in roots:
            for r in self.inner_reduces(root):
                if inside.isdisjoint(r.free_axes):
                    self._eval_plain(r, point)
                else:
                    self.hoist((r.body,), inside | frozenset(r.axes), point)

    def hoist_checks(self, roots: Iterable[Expr], inside: frozenset[Axis], point: Point) -> None:
        """Checks, here, the indices below ``roots`` that depend on no axis of ``inside`` and that are needed whenever a root is: once before a loop
        that runs for sure, not in each of its turns."""
        for root in roots:
            for c in self.inner_checks(root):
                if inside.isdisjoint(c.free_axes):
                    self._eval_plain(c, point)

    def inner_checks(self, e: Expr) -> tuple[CheckedIndex, ...]:
        """The checked indices below ``e`` that are evaluated whenever it is."""
        hit = self._checks.get(e)
        if hit is None:
            found: dict[CheckedIndex, None] = {}
            for n in self._strict(e):
                if isinstance(n, CheckedIndex):
                    found[n] = None
                elif isinstance(n, Reduce) and n.guard is None and all(self.simplifier.proves_less(const(0), a.extent) for a in n.axes):
                    found.update((c, None) for c in self.inner_checks(n.body) if c.free_axes.isdisjoint(n.axes))
            hit = self._checks[e] = tuple(found)
        return hit

    def _eval_plain(self, e: Expr, point: Point) -> Val:
        """Evaluates something that does not depend on the lanes, outside the vector context."""
        if self.vector is None or self.vector in e.free_axes:
            return self.eval(e, point)
        saved = self.vector, self.lanes, self.mask_guards, self.conditions
        self.conditions = [self.ops.any_lane(c) for c in self.conditions]
        self.vector, self.lanes, self.mask_guards = None, 0, ()
        try:
            return self.eval(e, point)
        finally:
            self.vector, self.lanes, self.mask_guards, self.conditions = saved

    def _reduce(self, e: Reduce, point: Point) -> Val:
        if self.vector is not None and self.vector not in e.free_axes:
            return self._eval_plain(e, point)
        axes = [a for a in point if a in e.free_axes]
        if self._conditional(e):  # what holds here may not hold at another point
            axes = [] if self.conditions else [a for a in axes if a not in self.assumed]
        ranges = [range(a.static_extent or 0) for a in axes]
        points = [{**point, **dict(zip(axes, c, strict=True))} for c in itertools.product(*ranges)]
        together = [e, *(r for r in self._alike.get(e.axes, ()) if r is not e and self._runs_with(r, e, point))]
        saved, self.assumed = self.assumed, self.assumed | (frozenset() if e.guard is None else e.guard.free_axes)
        try:
            results = Fold(self, together, points).run()
        finally:
            self.assumed = saved
        for p, values in zip(points, results, strict=True):
            for r, value in zip(together, values, strict=True):
                self.scopes[-1][self._key(r, p)] = value
        hit = self._lookup(self._key(e, point))
        assert hit is not None
        return hit

    def _runs_with(self, r: Reduce, e: Reduce, point: Point) -> bool:
        """Whether ``r`` can be folded in the loop of ``e``: same guard, same points, no conditions, and not yet known. The guards of the loops around
        the two do not matter: what reads inside its buffers wherever it is bound obeys none, and what is stored in between is forgotten."""
        if r.guard is not e.guard or r.free_axes != e.free_axes or e.kind.startswith("arg") or e.axes[-1].kind is DOT:
            return False
        return not self._conditional(e) and not self._conditional(r) and self._lookup((r, self.coordinates(r, point), ())) is None
