"""Rebuilding expressions, statements and kernels: substitution of axes and node-by-node maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store
from trustformers_ir.codegen.kernel_ir.nodes import (
    Axis,
    Binary,
    Buffer,
    Cast,
    CheckedIndex,
    Expr,
    Fma,
    Load,
    Reduce,
    Select,
    Unary,
    binary,
    cast,
    select,
    unary,
)


def rebuild(e: Expr, kids: tuple[Expr, ...]) -> Expr:
    """The node ``e`` over other operands, through the smart constructors. Axes of a Reduce are kept."""
    if kids == e.children:
        return e
    if isinstance(e, Unary):
        return unary(e.op, *kids)
    if isinstance(e, Binary):
        return binary(e.op, *kids)
    if isinstance(e, Select):
        return select(*kids)
    if isinstance(e, Cast):
        return cast(kids[0], e.dtype)
    if isinstance(e, Fma):
        return Fma(*kids)
    if isinstance(e, Load):
        return Load(e.buffer, kids)
    if isinstance(e, Reduce):
        return Reduce(e.kind, e.axes, kids[0], kids[1] if len(kids) == 2 else None)
    if isinstance(e, CheckedIndex):
        return CheckedIndex(kids[0], kids[1], e.site)
    raise TypeError(f"{type(e).__name__} has no operands to replace")


class Substitution:
    """Replaces expressions (usually axes) by others, everywhere below; one memo for many roots.

    Where the extent of an axis bound below changes, the axis is replaced by a fresh one, the same for all roots.
    """

    def __init__(self, mapping: Mapping[Expr, Expr]) -> None:
        self.mapping = dict(mapping)
        self.touched = frozenset(a for e in mapping for a in e.free_axes)
        self.memo: dict[Expr, Expr] = {}

    def __call__(self, e: Expr) -> Expr:
        hit = self.mapping.get(e)
        if hit is not None:
            return hit
        if not e.children or (self.touched.isdisjoint(e.free_axes) and not isinstance(e, Reduce) and not e.loads):
            return e
        done = self.memo.get(e)
        if done is None:
            done = self.memo[e] = self._rebuild(e)
        return done

    def axis(self, a: Axis) -> Axis:
        """The axis as it is after substitution in its extent."""
        hit = self.mapping.get(a)
        if hit is not None:
            assert isinstance(hit, Axis), f"axis {a.name} is bound here and cannot become an expression"
            return hit
        extent = self(a.extent)
        if extent is a.extent:
            return a
        fresh = a.like(extent=extent)
        self.mapping[a] = fresh
        self.touched |= {a}
        return fresh

    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, Reduce):
            axes = tuple(self.axis(a) for a in e.axes)
            return Reduce(e.kind, axes, self(e.body), None if e.guard is None else self(e.guard))
        return rebuild(e, tuple(self(c) for c in e.children))

    def stmt(self, s: Stmt) -> Stmt:
        """The statement after substitution."""
        if isinstance(s, For):
            axis = self.axis(s.axis)
            return For(axis, tuple(self.stmt(b) for b in s.body), None if s.guard is None else self(s.guard))
        assert isinstance(s, Store)
        return Store(s.buffer, tuple(self(i) for i in s.index), self(s.value))


def substitute(e: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """``e`` with each key of ``mapping`` replaced by its value."""
    return Substitution(mapping)(e)


def map_expressions(body: tuple[Stmt, ...], f: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """Statements with ``f`` applied to every root expression (indices, values, guards); extents stay."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, For):
            out.append(For(s.axis, map_expressions(s.body, f), None if s.guard is None else f(s.guard)))
        elif isinstance(s, Store):
            out.append(Store(s.buffer, tuple(f(i) for i in s.index), f(s.value)))
    return tuple(out)


def with_body(k: Kernel, body: tuple[Stmt, ...]) -> Kernel:
    """The kernel with another body."""
    return Kernel(k.name, k.params, body)


def replace_buffer(k: Kernel, old: Buffer, new: Buffer) -> Kernel:
    """The kernel with one parameter that it only reads, of the same dtype and rank, in the place of another."""
    memo: dict[Expr, Expr] = {}

    def visit(e: Expr) -> Expr:
        if old not in e.loads:
            return e
        if e not in memo:
            kids = tuple(map(visit, e.children))
            memo[e] = Load(new, kids) if isinstance(e, Load) and e.buffer is old else rebuild(e, kids)
        return memo[e]

    return Kernel(k.name, tuple(new if b is old else b for b in k.params), map_expressions(k.body, visit))
