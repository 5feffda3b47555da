"""The loops of a Reduce over a register tile: one loop for all points of the tile and all Reduces over the same axes, with an accumulator each.

``tile.py`` decides which points and which Reduces run together; here are their loops, the fixed-order fold of 16 lanes, and the groups of four bytes
of ``dot.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from trustformers_ir.codegen.kernel_ir.nodes import DOT, LANES, SEQ, UNROLL, VECTOR, Axis, Binary, Expr, Reduce, const
from trustformers_ir.codegen.kernel_ir.rewrite import substitute
from trustformers_ir.codegen.llvm.dot import Bytes, Grouping, Groups
from trustformers_ir.codegen.llvm.text import Val, literal
from trustformers_ir.ir.dtypes import DType

if TYPE_CHECKING:
    from trustformers_ir.codegen.llvm.tile import Evaluator, Point

Bodies = tuple[Expr, ...]


def conjuncts(guard: Expr | None) -> list[Expr]:
    """The parts of a conjunction."""
    if guard is None:
        return []
    if isinstance(guard, Binary) and guard.op == "and" and guard.dtype is DType.bool:
        return conjuncts(guard.a) + conjuncts(guard.b)
    return [guard]


class Fold:
    """Reduces over the same axes and a set of tile points: their loops, with an accumulator per point and Reduce."""

    def __init__(self, ev: Evaluator, together: list[Reduce], points: list[Point]) -> None:
        e = together[0]  # axes, guard and dependences are those of all
        self.ev = ev
        self.ops = ev.ops
        self.w = ev.w
        self.e = e
        self.together = together
        self.points = points
        lane_axis = e.axes[-1] if e.axes[-1].kind is VECTOR else None
        # Inside a vector context the lanes of the fold become 16 accumulators of vectors; see ``_spread``.
        self.spread = lane_axis is not None and ev.vector is not None
        self.place: Expr = e.axes[0]  # the position that argmax and argmin report
        self.limits: dict[Axis, list[Expr]] = {}
        self.rest: list[Expr] = []
        for g in conjuncts(e.guard):
            mine = [a for a in e.axes if a in g.free_axes]
            limit = ev.addressing.limit(g, mine[-1]) if mine and mine[-1].kind is not UNROLL else None
            tile = any(a in limit.free_axes for a in points[0]) if limit is not None else True
            if limit is None or tile or (ev.vector is not None and ev.vector in limit.free_axes):
                self.rest.append(g)
            else:
                self.limits.setdefault(mine[-1], []).append(limit)

    def run(self) -> list[list[Val]]:
        """The values of all Reduces at each point."""
        e, ev = self.e, self.ev
        lanes = ev.lanes if ev.vector is not None else LANES if e.axes[-1].kind is VECTOR else 0
        starts = [[self.ops.splat(v, lanes) for v in self.ops.neutral(r.kind, r.body.dtype)] for r in self.together]
        self.width = len(starts[0])
        self.slots = LANES if self.spread else 1
        accumulators = [v for _ in self.points for start in starts for _ in range(self.slots) for v in start]
        bodies = tuple(r.body for r in self.together)
        for p in self.points:
            ev.hoist((*bodies, *self.rest), frozenset(e.axes), p)
        if e.guard is None and all(map(self._never_empty, e.axes)):
            for p in self.points:
                ev.hoist_checks(bodies, frozenset(e.axes), p)
        groups = self._groups()
        around, ev.folded = ev.folded, ev.folded.union(e.axes, () if groups is None else (groups.axis,))
        ev.fetches.prepare(bodies)
        final = self._dots(groups, accumulators) if groups is not None else self._level(0, accumulators, bodies, self.rest, {}, 0)
        ev.folded = around
        step = self.slots * self.width
        parts = [final[at : at + step] for at in range(0, len(final), step)]
        count = len(self.together)
        return [[self._joined(r, parts[n * count + j]) for j, r in enumerate(self.together)] for n in range(len(self.points))]

    def _joined(self, r: Reduce, acc: list[Val]) -> Val:
        """The value from the accumulators of one point."""
        slots = [acc[s * self.width : (s + 1) * self.width] for s in range(self.slots)]
        while len(slots) > 1:
            half = len(slots) // 2
            slots = [self.ops.merge(r.kind, slots[j], slots[j + half]) for j in range(half)]
        result = slots[0]
        if r.axes[-1].kind is VECTOR and not self.spread:
            result = self.ops.tree(r.kind, result)
        return self._finish(result)

    def _finish(self, acc: Sequence[Val]) -> Val:
        if not self.e.kind.startswith("arg"):
            return acc[0]
        position = acc[1]
        return self.ops.extremum("max", position, self.ops.like(position, 0))

    def _extent(self, axis: Axis, fixed: Point) -> Val:
        """Number of iterations: the extent, cut by the guards that bound this axis from above. ``fixed``: where unrolled axes of the fold stand."""
        ev, point = self.ev, {**self.points[0], **fixed}
        stop = ev.eval(axis.extent, point)
        for limit in self.limits.get(axis, ()):
            stop = self.ops.extremum("min", stop, ev.eval(limit, point))
        return stop

    def _never_empty(self, axis: Axis) -> bool:
        return axis not in self.limits and self.ev.simplifier.proves_less(const(0), axis.extent)

    def _level(self, depth: int, acc: list[Val], bodies: Bodies, rest: list[Expr], fixed: Point, lane: int) -> list[Val]:
        """The loops from ``depth`` inwards."""
        e, ev = self.e, self.ev
        if depth == len(e.axes):
            return self._element(acc, bodies, rest, fixed, lane)
        axis = e.axes[depth]
        if depth:
            for p in self.points:
                ev.hoist(bodies, frozenset(e.axes[depth:]), {**p, **fixed})
        if axis.kind is UNROLL:
            for c in range(axis.static_extent or 0):
                acc = self._level(depth + 1, acc, bodies, rest, {**fixed, axis: c}, lane)
            return acc
        if axis.kind is VECTOR:
            return self._spread(axis, acc, bodies, rest, fixed) if self.spread else self._lanes(axis, acc, bodies, rest, fixed)

        def turn(i: Val, values: list[Val]) -> Sequence[Val]:
            ev.bound[axis] = i
            return ev.scoped(lambda: self._level(depth + 1, values, bodies, rest, fixed, lane))

        return self.w.loop(literal(0, DType.i64), self._extent(axis, fixed), acc, turn, may_skip=not self._never_empty(axis))

    def _lanes(self, axis: Axis, acc: list[Val], bodies: Bodies, rest: list[Expr], fixed: Point) -> list[Val]:
        """The 16-lane fold in a scalar context: whole chunks of 16, then one masked chunk."""
        ev = self.ev
        stop = self._extent(axis, fixed)
        sixteen = literal(LANES, DType.i64)
        static = axis.static_extent if axis not in self.limits else None
        if static is None:
            stop = self.ops.extremum("max", stop, literal(0, DType.i64))
        chunks = self.ops.binary("floordiv", stop, sixteen, index=True, positive=True)
        left = self.ops.binary("mod", stop, sixteen, index=True, positive=True)
        chunk = Axis(f"{axis.name}.c", axis.extent // LANES, SEQ)
        lane = Axis(f"{axis.name}.l", LANES, VECTOR)

        def at(where: Expr, c: Val, guard: Expr | None, values: list[Val]) -> list[Val]:
            ev.bound[chunk] = c
            mapping: dict[Expr, Expr] = {axis: where * LANES + lane}
            self.place = mapping[axis]
            new_bodies = tuple(ev.simplifier(substitute(b, mapping)) for b in bodies)
            new_rest = [ev.simplifier(substitute(g, mapping)) for g in rest]
            ev.vector, ev.lanes = lane, LANES
            ev.mask_guards = () if guard is None else (guard,)
            try:
                return ev.scoped(lambda: self._element(values, new_bodies, new_rest, fixed, 0))
            finally:
                ev.vector, ev.lanes, ev.mask_guards = None, 0, ()

        if chunks.literal != 0:
            acc = self.w.loop(
                literal(0, DType.i64), chunks, acc, lambda c, values: at(chunk, c, None, values), may_skip=chunks.literal is None
            )
        if left.literal == 0:
            return acc
        tail = Axis(f"{axis.name}.t", chunk.extent + 1, SEQ)
        ev.bound[tail] = chunks
        count = Axis(f"{axis.name}.n", axis.extent + 1, SEQ)  # stands for the register that holds the number of iterations
        ev.bound[count] = stop
        guard = tail * LANES + lane < count
        if left.literal is not None:
            return at(tail, chunks, guard, acc)
        return self.w.branch(self.ops.compare("gt", left, literal(0, DType.i64)), lambda: at(tail, chunks, guard, acc), acc)

    def _spread(self, axis: Axis, acc: list[Val], bodies: Bodies, rest: list[Expr], fixed: Point) -> list[Val]:
        """The 16-lane fold inside a vector context: lane j of the fold is accumulator j, itself a vector."""
        ev = self.ev
        stop = self._extent(axis, fixed)
        chunk = Axis(f"{axis.name}.c", (axis.extent + (LANES - 1)) // LANES, SEQ)
        last = self.ops.binary("add", stop, literal(LANES - 1, DType.i64), index=True)
        last = self.ops.extremum("max", last, literal(0, DType.i64))
        chunks = self.ops.binary("floordiv", last, literal(LANES, DType.i64), index=True, positive=True)
        exact = axis not in self.limits and axis.static_extent is not None and axis.static_extent % LANES == 0

        def turn(c: Val, values: list[Val]) -> Sequence[Val]:
            ev.bound[chunk] = c

            def lanes() -> list[Val]:
                current = values
                for lane in range(LANES):
                    place = chunk * LANES + lane
                    mapping: dict[Expr, Expr] = {axis: place}
                    self.place = place
                    inside = [] if exact else [place < axis.extent, *(place < limit for limit in self.limits.get(axis, ()))]
                    guards = inside + [ev.simplifier(substitute(g, mapping)) for g in rest]  # in this order: a guard may read what is inside
                    current = self._element(current, tuple(ev.simplifier(substitute(b, mapping)) for b in bodies), guards, fixed, lane)
                return current

            return ev.scoped(lanes)

        return self.w.loop(literal(0, DType.i64), chunks, acc, turn)

    def _groups(self) -> Groups | None:
        """The fold as groups of four bytes, where the machine has instructions for them."""
        ev = self.ev
        if self.e.axes[-1].kind is not DOT or ev.dots is None or ev.vector is None or ev.lanes != LANES:
            return None
        return Grouping(self.e, ev.vector, ev.addressing).groups()

    def _dots(self, groups: Groups, acc: list[Val]) -> list[Val]:
        """A group of every point per turn; what rows and columns share is loaded once."""
        ev, dots = self.ev, self.ev.dots
        assert dots is not None

        def group(factors: tuple[Bytes, Bytes], values: list[Val]) -> list[Val]:
            known: dict[Hashable, list[Val]] = {}

            def shift_of(b: Bytes, point: Point) -> int | None:
                return None if b.shift is None else int(ev.eval(b.shift, point).literal or 0)

            def operand(b: Bytes, point: Point) -> list[Val]:
                shift, high, above = shift_of(b, point), b.high, None
                place: Hashable = (b, ev.coordinates(b.start, point), shift)
                if high is not None:
                    place = (place, ev.coordinates(high.start, point), shift_of(high, point))
                if place not in known:
                    if b.buffer.ahead is not None and not shift:  # a vector of 16 columns is one cache line
                        ev.fetches.ask(b.buffer, b.buffer.ahead, b.start, point)
                    if high is not None:
                        above = dots.above(high, ev.eval(high.start, point), shift_of(high, point) or 0, b.bits)
                    known[place] = dots.operand(b, ev.eval(b.start, point), shift, above)
                return known[place]

            for turn in itertools.product(*(range(a.static_extent or 0) for a in reversed(groups.unrolled))):
                fixed = dict(zip(reversed(groups.unrolled), turn, strict=True))
                points = [{**p, **fixed} for p in self.points]
                values = [dots.add(total, *(operand(b, p) for b in factors)) for total, p in zip(values, points, strict=True)]
            return values

        def turn(i: Val, values: list[Val]) -> Sequence[Val]:
            ev.bound[groups.axis] = i
            return ev.scoped(lambda: group(groups.factors, values))

        if groups.whole == 1:
            acc = list(turn(literal(0, DType.i64), acc))
        elif groups.whole:
            acc = self.w.loop(literal(0, DType.i64), literal(groups.whole, DType.i64), acc, turn, may_skip=False)
        if groups.rest is None:
            return acc
        rest = groups.rest
        return ev.scoped(lambda: group(rest, acc))

    def _element(self, acc: list[Val], bodies: Bodies, rest: list[Expr], fixed: Point, slot: int) -> list[Val]:
        """Folds one element into the accumulator of each point."""
        ev, e = self.ev, self.e
        out = list(acc)
        for n, p in enumerate(self.points):
            point = {**p, **fixed} if fixed else p
            keep: Val | None = None
            for g in rest:
                holds = ev.eval(g, point) if keep is None else ev.under(keep, g, point)
                if holds.literal != 1:
                    keep = self.ops.both(keep, holds)
            mask = ev.mask(point) if ev.vector is not None and e.axes[-1].kind is VECTOR and not self.spread else None
            for j, (r, body) in enumerate(zip(self.together, bodies, strict=True)):
                at = ((n * len(bodies) + j) * self.slots + slot) * self.width
                old = acc[at : at + self.width]
                if keep is not None:
                    ev.conditions.append(keep)
                new = self._step(r, old, body, point)
                if keep is not None:
                    ev.conditions.pop()
                chosen = keep if mask is None else self.ops.both(keep, mask)
                lanes = old[0].lanes
                new = [self.ops.splat(v, lanes) for v in new]
                out[at : at + self.width] = new if chosen is None else [self.ops.choose(chosen, a, b) for a, b in zip(new, old, strict=True)]
        return out

    def _step(self, e: Reduce, old: list[Val], body: Expr, point: Point) -> list[Val]:
        ev = self.ev
        if e.kind == "sum" and e.body.dtype.is_float and _product(e.body) and isinstance(body, Binary) and body.op == "mul":
            return [self.ops.fma(ev.eval(body.a, point), ev.eval(body.b, point), old[0])]
        x = ev.eval(body, point)
        position = None
        if e.kind.startswith("arg"):
            position = ev.eval(self.place, point)
        return self.ops.fold(e.kind, old, x, position)


def _product(e: Expr) -> bool:
    return isinstance(e, Binary) and e.op == "mul"
