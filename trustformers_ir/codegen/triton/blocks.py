"""Blocks from expressions: where each is computed, under which masks it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, Store, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import (
    TILE,
    UNROLL,
    WALK,
    Axis,
    Buffer,
    CheckedIndex,
    Const,
    Expr,
    Load,
    Reduce,
    Select,
    Sym,
    binary,
    conjuncts,
    const,
    unary,
)
from trustformers_ir.codegen.kernel_ir.simplify import Simplifier, SymbolFacts
from trustformers_ir.codegen.triton.ask import always_loaded, dimensions, hint_of, is_block, roots, tile_axes
from trustformers_ir.codegen.triton.write import INDENT, LEVELS, LONGEST, Scope, Val, Writer, joined
from trustformers_ir.ir.dtypes import DType


class Blocks(Writer):
    """The state of an emission, and the values of expressions."""

    def __init__(self, kernel: Kernel, facts: SymbolFacts | None) -> None:
        super().__init__()
        self.kernel = kernel
        self.simplifier = Simplifier(facts)
        self.dimension = dimensions(kernel)
        stored = {s.buffer for s in walk_statements(kernel.body) if isinstance(s, Store)}
        self.mutable = frozenset(b for b in stored if b in set(kernel.scratch) or any(b in e.loads for e in kernel.expressions()))
        self.blocks = frozenset(b for b in kernel.scratch if is_block(kernel, b))
        self.memory = tuple(b for b in kernel.scratch if b not in self.blocks)
        self.count([e for s in walk_statements(kernel.body) for e in roots(s)])
        self.names: dict[Buffer, str] = {b: self.fresh(b.name) for b in (*kernel.params, *kernel.scratch)}
        self.symbols = {s: self.fresh(s) for s in kernel.symbols}
        self.checks = any(e.checked for e in kernel.expressions())
        self.entered: list[tuple[Scope, Scope]] = []
        self.guards: list[Expr] = []
        self.axes: dict[Axis, str] = {}
        self.looping: dict[Expr, bool] = {}

    # -- loops

    def open(self, axis: Axis, outside: Scope) -> None:
        """Begins a loop at the end of a scope."""
        extent = self.value(axis.extent)
        name = self.axes[axis] = self.fresh(axis.name)
        inner = Scope(outside, axis, outside.indent + INDENT)
        turns = {UNROLL: "tl.static_range", WALK: "tl.range"}.get(axis.kind, "range")
        how = ", flatten=True" if axis.kind is WALK else ""  # one loop with the one inside, whose first loads of a turn run ahead of it
        inner.lines.append(f"{outside.indent}for {name} in {turns}(0, {extent.text}{how}):")  # where it ends up when the loop is closed
        self.entered.append((self.scope, outside))
        self.scope = inner

    def close(self) -> None:
        inner = self.scope
        current, outside = self.entered.pop()
        if len(inner.lines) == 1:
            inner.line("pass")
        outside.lines += inner.lines
        self.scope = current

    def forget(self, buffers: set[Buffer]) -> None:
        """What was made of the contents of these buffers is known no more."""
        stale = frozenset(buffers) & self.mutable
        if stale:
            for scope in self.scope.chain():
                for key in [k for k in scope.values if k.loads & stale]:
                    del scope.values[key]
                texts = [self.names[b] for b in stale]
                for text in [k for k in scope.named if any(re.search(rf"\b{re.escape(n)}\b", k[0]) for n in texts)]:
                    del scope.named[text]

    # -- values --------------------------------------------------------------------------------------------------------

    def is_positive(self, e: Expr) -> bool:
        return self.simplifier.proves_nonneg(e)

    def home(self, e: Expr, conditions: tuple[Expr, ...] = ()) -> Scope:
        """The outermost scope in which an expression can be computed."""
        around = (*conditions, *(self.guards_of(e) if e.loads or e.checked else ()))
        axes = e.free_axes.union(*(c.free_axes for c in around))
        loads = e.loads.union(*(c.loads for c in around))
        if loads & self.mutable:
            return self.scope
        for scope in self.scope.chain():
            if scope.axis is not None and scope.axis in axes:
                return scope
        return list(self.scope.chain())[-1]

    def value(self, e: Expr, conditions: tuple[Expr, ...] = (), root: bool = False) -> Val:
        """The value of an expression; loads in it happen only where ``conditions`` hold. ``root``: it gets a name from who asks."""
        if (not e.loads and not e.checked) or (isinstance(e, Load) and self.is_inside(e)):
            conditions = ()
        for scope in self.scope.chain():
            for known, value in scope.values.get(e, ()):
                if known <= frozenset(conditions):
                    return value
        made = self.make(e, conditions)
        home = self.home(e, conditions)
        simple = isinstance(e, (Const, Sym, Axis)) or (isinstance(e, Load) and e.buffer in self.blocks)
        long = not root and len(made.text) > LONGEST
        if not simple and (self.uses.get(e, 0) > 1 or long or isinstance(e, (Load, CheckedIndex))):
            made = self.name(made, hint_of(e), home)
        home.values.setdefault(e, []).append((frozenset(conditions), made))
        return made

    def is_inside(self, e: Load) -> bool:
        """Whether the place of a load is known to exist wherever the guards around hold."""
        prove = self.simplifier
        for i, size in zip(e.index, e.buffer.shape, strict=True):
            if i.checked or not prove.proves_nonneg(i) or not (binary("lt", i, size) in self.guards or prove.proves_less(i, size)):
                return False
        return True

    def make(self, e: Expr, conditions: tuple[Expr, ...]) -> Val:
        if isinstance(e, Const):
            return self.const(e)
        if isinstance(e, Sym):
            return Val(self.symbols[e.name])
        if isinstance(e, Axis):
            return self.tile_axis(e) if e.kind is TILE else Val(self.axes[e])
        if isinstance(e, Load):
            return self.load(e, conditions)
        if isinstance(e, Reduce):
            return self.fold(e, conditions)
        if isinstance(e, CheckedIndex):
            mask = self.mask([*self.guards_of(e), *conditions])
            dims = joined(*([] if mask is None else [mask]), self.value(e.index, conditions))
            index, bound = self.value(e.index, conditions), self.value(e.bound)
            shown = f"{index.text} == {index.text}" if mask is None else mask.over(dims)
            return Val(f"checked({index.over(dims)}, {bound.text}, {shown}, status, {e.site + 1})", dims)
        under = [conditions for _ in e.children]
        if isinstance(e, Select):
            under = [conditions, self.also(conditions, e.c), self.also(conditions, unary("not", e.c))]
            other = always_loaded(e.b)
            for x in always_loaded(e.a):
                if x in other:  # once, not under each condition
                    self.value(x, conditions)
        # what a loop adds up comes first: whatever else is loaded would lie in registers while it runs
        order = sorted(range(len(under)), key=lambda n: not self.holds_loop(e.children[n]))
        values = {n: self.value(e.children[n], under[n]) for n in order}
        return self.operation(e, self.operands(e, [values[n] for n in range(len(under))]))

    def holds_loop(self, e: Expr) -> bool:
        """Whether a fold over a loop is among what an expression is made of."""
        if e not in self.looping:
            self.looping[e] = (isinstance(e, Reduce) and any(a.kind is not TILE for a in e.axes)) or any(map(self.holds_loop, e.children))
        return self.looping[e]

    def also(self, conditions: tuple[Expr, ...], more: Expr) -> tuple[Expr, ...]:
        """The conditions with some more, but for those that guards around know."""
        return (*conditions, *(c for c in conjuncts(more) if c not in self.guards and c not in conditions))

    def tile_axis(self, a: Axis) -> Val:
        root = list(self.scope.chain())[-1]
        points = self.name(Val(f"tl.arange(0, {a.static_extent})"), f"r{a.static_extent}", root)
        return Val(points.text, (self.dimension[a],))

    # -- memory --------------------------------------------------------------------------------------------------------

    def place(self, buffer: Buffer, index: tuple[Expr, ...], conditions: tuple[Expr, ...] = ()) -> Val:
        """The offset of an element, in elements."""
        total: Expr = const(0)
        for i, stride in zip(index, buffer.strides, strict=True):
            total = total + i * stride
        return self.value(total, conditions)

    def address(self, buffer: Buffer, place: Val, dims: tuple[int, ...]) -> str:
        """The pointers to a place, for a block of those dimensions."""
        if place.text == "0":
            return self.names[buffer]
        return f"{self.names[buffer]} + {place.over(dims, LEVELS['+'])}"

    def guards_of(self, e: Expr) -> list[Expr]:
        """The guards around that hold for whole blocks, or depend on nothing but what the expression depends on."""
        return [g for g in self.guards if g.free_axes <= e.free_axes or not tile_axes(g)]

    def mask(self, conditions: Sequence[Expr]) -> Val | None:
        """Where all conditions hold; None for no condition."""
        values = [self.value(c) for c in dict.fromkeys(conditions)]
        if not values:
            return None
        dims = joined(*values)
        if len(values) == 1:
            return values[0]
        return Val(" & ".join(v.over(dims, LEVELS["&"] + 1) for v in values), dims, LEVELS["&"])

    def load(self, e: Load, conditions: tuple[Expr, ...]) -> Val:
        if e.buffer in self.blocks:
            order = [self.dimension[i] for i in e.index if isinstance(i, Axis)]
            name = self.names[e.buffer]
            return Val(name if order == sorted(order) else f"tl.trans({name})", tuple(sorted(order)))
        place = self.place(e.buffer, e.index, conditions)
        inside = [i.bound > 0 for i in e.index if isinstance(i, CheckedIndex) and not self.simplifier.proves_nonneg(i.bound - 1)]
        mask = self.mask([*self.guards_of(e), *conditions, *inside])
        if mask is None:
            return Val(f"tl.load({self.address(e.buffer, place, place.dims)})", place.dims)
        zero = "0.0" if e.dtype is DType.f8e4m3 else "0"  # Triton takes no integer for one of those
        dims = joined(place, mask)
        if dims != place.dims:
            sizes = self.sizes(e, conditions)
            shape = [sizes[d] for d in dims]
            place = Val(f"tl.broadcast_to({place.over(dims)}, {shape})", dims)
        return Val(f"tl.load({self.address(e.buffer, place, dims)}, mask={mask.over(dims)}, other={zero})", dims)

    def extents(self, axes: Iterable[Axis]) -> tuple[list[int | None], tuple[int, ...]]:
        """Shape and dimensions of a block with those TILE axes."""
        order = sorted(axes, key=lambda a: self.dimension[a])
        return [a.static_extent for a in order], tuple(self.dimension[a] for a in order)

    def sizes(self, e: Expr, conditions: Sequence[Expr] = ()) -> dict[int, int]:
        """The size of each dimension of an expression."""
        axes = e.free_axes.union(*(c.free_axes for c in conditions))
        return {self.dimension[a]: a.static_extent or 1 for a in axes if a.kind is TILE}

    def fold(self, e: Reduce, conditions: tuple[Expr, ...]) -> Val:
        """The value of a fold (``fold.py``)."""
        raise NotImplementedError
