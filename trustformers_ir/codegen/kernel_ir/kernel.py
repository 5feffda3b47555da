"""Statements and kernels: a loop nest over typed buffers, and its name-free fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from trustformers_ir.codegen.kernel_ir.nodes import (
    SCRATCH,
    Axis,
    Binary,
    Buffer,
    Cast,
    CheckedIndex,
    Const,
    Expr,
    ExprLike,
    Fma,
    Load,
    Node,
    Reduce,
    Select,
    Sym,
    Unary,
    as_expr,
    check_index,
    const,
)
from trustformers_ir.ir.dtypes import DType

#: Alignment of every scratch buffer inside a worker's scratch area.
SCRATCH_ALIGN = 64


class Stmt(Node):
    """Something that runs."""

    __slots__ = ()


class For(Stmt):
    """Runs ``body`` for each value of ``axis`` at which ``guard`` holds."""

    __slots__ = ("axis", "body", "guard")
    axis: Axis
    body: tuple[Stmt, ...]
    guard: Expr | None

    def __init__(self, axis: Axis, body: tuple[Stmt, ...], guard: Expr | None = None) -> None:
        if not isinstance(body, tuple) or not all(isinstance(s, Stmt) for s in body):
            raise TypeError("the body of a For is a tuple of statements")
        if guard is not None and guard.dtype is not DType.bool:
            raise TypeError(f"a guard is a bool, got {guard.dtype}")
        self.axis, self.body, self.guard = axis, body, guard

    @staticmethod
    def _intern_key(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if len(args) == 3 else (*args, None)


class Store(Stmt):
    """Writes one element."""

    __slots__ = ("buffer", "index", "value")
    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr

    def __init__(self, buffer: Buffer, index: tuple[Expr, ...], value: Expr) -> None:
        check_index(buffer, index)
        if value.dtype is not buffer.dtype:
            raise TypeError(f"store of {value.dtype} into {buffer.name} of {buffer.dtype}; cast first")
        self.buffer, self.index, self.value = buffer, index, value


def store(buffer: Buffer, index: ExprLike | tuple[ExprLike, ...], value: Expr) -> Store:
    """``buffer[index] = value``."""
    entries = index if isinstance(index, tuple) else (index,)
    return Store(buffer, tuple(as_expr(i, DType.i64) for i in entries), value)


def nest(axes: Sequence[Axis], *body: Stmt) -> tuple[Stmt, ...]:
    """``body`` inside the loops of ``axes``, outermost first."""
    for axis in reversed(axes):
        body = (For(axis, body),)
    return body


class Kernel(Node):
    """A named loop nest. ``params`` are the global buffers in the order of the caller's pointer array."""

    __slots__ = ("_key", "_scratch", "_symbols", "body", "name", "params")
    name: str
    params: tuple[Buffer, ...]
    body: tuple[Stmt, ...]

    def __init__(self, name: str, params: tuple[Buffer, ...], body: tuple[Stmt, ...]) -> None:
        self.name, self.params, self.body = name, params, body
        self._scratch: tuple[Buffer, ...] | None = None
        self._symbols: tuple[str, ...] | None = None
        self._key: str | None = None

    @property
    def scratch(self) -> tuple[Buffer, ...]:
        """Scratch buffers in order of first appearance."""
        if self._scratch is None:
            seen: dict[Buffer, None] = {}
            for s in walk_statements(self.body):
                if isinstance(s, Store):
                    for e in (*s.index, s.value):
                        for n in walk(e):
                            if isinstance(n, Load) and n.buffer.space is SCRATCH:
                                seen.setdefault(n.buffer)
                    if s.buffer.space is SCRATCH:
                        seen.setdefault(s.buffer)
            self._scratch = tuple(seen)
        return self._scratch

    def scratch_layout(self) -> tuple[tuple[tuple[Buffer, Expr], ...], Expr]:
        """Byte offset of each scratch buffer, and the total."""
        offset: Expr = const(0)
        rows = []
        for b in self.scratch:
            rows.append((b, offset))
            size = b.size * b.dtype.itemsize
            if isinstance(size, Const):
                size = const(-(-int(size.value) // SCRATCH_ALIGN) * SCRATCH_ALIGN)
            else:
                size = (size + (SCRATCH_ALIGN - 1)) // SCRATCH_ALIGN * SCRATCH_ALIGN
            offset = offset + size
        return tuple(rows), offset

    @property
    def scratch_bytes(self) -> Expr:
        """Scratch that each worker needs, an i64 expression of the symbols."""
        return self.scratch_layout()[1]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the dimensions that the kernel reads, sorted."""
        if self._symbols is None:
            names = {n.name for e in self.expressions() for n in walk(e) if isinstance(n, Sym)}
            self._symbols = tuple(sorted(names))
        return self._symbols

    def expressions(self) -> Iterator[Expr]:
        """Every root expression: indices, values, guards, extents, shapes and strides of what is touched."""
        buffers: dict[Buffer, None] = dict.fromkeys(self.params)
        for s in walk_statements(self.body):
            if isinstance(s, For):
                yield s.axis.extent
                if s.guard is not None:
                    yield s.guard
            elif isinstance(s, Store):
                buffers.setdefault(s.buffer)
                yield from s.index
                yield s.value
        for b in (*buffers, *self.scratch):
            yield from b.shape
            yield from b.strides

    def key(self) -> str:
        """sha256 of the structure: equal for equal kernels in any process, whatever the names of kernel, axes and buffers."""
        if self._key is None:
            self._key = _Fingerprint(self).digest()
        return self._key

    def __repr__(self) -> str:
        return f"<kernel {self.name} {self.key()[:12]}>"


def kernel(name: str, params: list[Buffer] | tuple[Buffer, ...], *body: Stmt) -> Kernel:
    """A kernel of those statements."""
    return Kernel(name, tuple(params), body)


def walk(expr: Expr, seen: set[Expr] | None = None) -> Iterator[Expr]:
    """Every distinct node below ``expr``, operands first; also the extents of axes bound inside."""
    seen = set() if seen is None else seen
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, done = stack.pop()
        if done:
            yield node
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack.extend((c, False) for c in reversed(node.children))
        if isinstance(node, Reduce):
            stack.extend((a.extent, False) for a in node.axes)


def walk_statements(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement, in program order, outer before inner."""
    for s in body:
        yield s
        if isinstance(s, For):
            yield from walk_statements(s.body)


class _Fingerprint:
    """Serialises a kernel with axes, buffers and shared expressions numbered in order of first meeting."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.lines: list[str] = []
        self.exprs: dict[Expr, int] = {}
        self.axes: dict[Axis, int] = {}
        self.buffers: dict[Buffer, int] = {}

    def digest(self) -> str:
        for b in self.kernel.params:
            self.buffer(b)
        for s in self.kernel.body:
            self.statement(s)
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def add(self, *parts: object) -> int:
        self.lines.append(" ".join(map(str, parts)))
        return len(self.lines) - 1

    def buffer(self, b: Buffer) -> int:
        if b not in self.buffers:
            parts = [self.expr(e) for e in (*b.shape, *b.strides)]
            self.buffers[b] = self.add("buffer", b.dtype, b.space.value, int(b.readonly), int(b.noalias), b.ahead, *parts)
        return self.buffers[b]

    def axis(self, a: Axis) -> int:
        if a not in self.axes:
            extent = self.expr(a.extent)
            self.axes[a] = self.add("axis", a.kind.value, extent)
        return self.axes[a]

    def statement(self, s: Stmt) -> None:
        if isinstance(s, For):
            guard = -1
            axis = self.axis(s.axis)
            if s.guard is not None:
                guard = self.expr(s.guard)
            self.add("for", axis, guard)
            for inner in s.body:
                self.statement(inner)
            self.add("end")
        elif isinstance(s, Store):
            self.add("store", self.buffer(s.buffer), *[self.expr(e) for e in (*s.index, s.value)])

    def expr(self, root: Expr) -> int:
        for node in _postorder(root, self.exprs):
            self.exprs[node] = self.one(node)
        return self.exprs[root]

    def one(self, e: Expr) -> int:
        kids = [self.exprs[c] for c in e.children]
        if isinstance(e, Const):
            return self.add("const", e.dtype, float(e.value).hex() if e.dtype.is_float else e.value)
        if isinstance(e, Sym):
            return self.add("sym", e.name)
        if isinstance(e, Axis):
            return self.axis(e)
        if isinstance(e, (Unary, Binary)):
            return self.add(e.op, *kids)
        if isinstance(e, Load):
            return self.add("load", self.buffer(e.buffer), *kids)
        if isinstance(e, Reduce):
            return self.add("reduce", e.kind, *[self.axis(a) for a in e.axes], *kids)
        if isinstance(e, CheckedIndex):
            return self.add("checked", e.site, *kids)
        if isinstance(e, Cast):
            return self.add("cast", e.dtype, *kids)
        assert isinstance(e, (Select, Fma))
        return self.add(type(e).__name__, *kids)


def _postorder(root: Expr, done: dict[Expr, int]) -> list[Expr]:
    order: list[Expr] = []
    seen: set[Expr] = set(done)
    stack: list[tuple[Expr, bool]] = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((c, False) for c in reversed(node.children))
    return order
