"""Index arithmetic of the lowering: dims as expressions, flattening and unflattening, reshapes and broadcasts as index maps."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.kernel_ir.nodes import Binary, Buffer, Const, Expr, Sym, binary, const
from trustformers_ir.codegen.program import Temporary
from trustformers_ir.ir.dims import Atom, Dim, Facts, floordiv, maximum, minimum, mod, product, symbol

Index = tuple[Expr, ...]


def dim_expr(dim: Dim) -> Expr:
    """A dim as an i64 expression over ``Sym`` nodes."""
    if isinstance(dim, int):
        return const(dim)
    total: Expr = const(0)
    for monomial, coefficient in dim.terms:
        value: Expr = const(coefficient)
        for atom, power in monomial:
            factor = _atom_expr(atom)
            for _ in range(power):
                value = value * factor
        total = total + value
    return total


def _atom_expr(atom: Atom) -> Expr:
    if atom.kind == "sym":
        return Sym(atom.name)
    a, b = (dim_expr(arg) for arg in atom.args)
    return binary(atom.kind, a, b)


def expr_dim(expr: Expr) -> Dim:
    """An i64 expression over symbols and constants back as a dim. ``TypeError`` when it depends on an axis or on memory."""
    if isinstance(expr, Const):
        return int(expr.value)
    if isinstance(expr, Sym):
        return symbol(expr.name)
    if isinstance(expr, Binary):
        a, b = expr_dim(expr.a), expr_dim(expr.b)
        if expr.op == "add":
            return a + b
        if expr.op == "sub":
            return a - b
        if expr.op == "mul":
            return a * b
        build = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}.get(expr.op)
        if build is not None:
            return build(a, b)
    raise TypeError(f"{expr!r} is not an expression of dims alone")


def temporary_view(t: Temporary, readonly: bool) -> Buffer:
    """A kernel's view of a buffer that it shares with other kernels of its region."""
    return Buffer(t.name, t.type.dtype, tuple(map(dim_expr, t.type.shape)), readonly=readonly)


class Flattening:
    """Remembers which index tuples are the digits of one linear index, so that flattening them again is free.

    A GEMM over ``[batch, seq, K]`` runs over one row axis m; its operands are read at ``(m // seq, m % seq, k)``. A contiguous buffer read at
    exactly those digits is read at row m of ``[batch * seq, K]``: :meth:`merge` finds that out, and no division is left in the loop.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._linear: dict[tuple[Index, tuple[Dim, ...]], Expr] = {}
        self._blocks: dict[tuple[Expr, int], Expr] = {}

    def joined(self, block: Expr, within: Expr, size: int) -> Expr:
        """``block * size + within``, of which :meth:`block` gives ``block`` again."""
        index = block * size + within
        self._blocks[index, size] = block
        return index

    def block(self, index: Expr, size: int) -> Expr:
        """``index // size``."""
        return self._blocks.get((index, size), index // size)

    def digits(self, linear: Expr, dims: Sequence[Dim]) -> Index:
        """Row-major digits of ``linear`` in an array of ``dims``."""
        dims = tuple(dims)
        live = [i for i, d in enumerate(dims) if d != 1]
        out: list[Expr] = [const(0)] * len(dims)
        rest = linear
        for position, i in enumerate(reversed(live)):
            last = position == len(live) - 1
            size = dim_expr(dims[i])
            out[i] = rest if last else rest % size
            if not last:
                rest = rest // size
        result = tuple(out)
        if len(live) > 1:
            self._linear[(tuple(result[i] for i in live), tuple(dims[i] for i in live))] = linear
        return result

    def linear(self, index: Index, dims: Sequence[Dim]) -> Expr:
        """The row-major position of ``index`` in an array of ``dims``."""
        index, dims = self.merge(index, tuple(dims))
        total: Expr = const(0)
        for i, d in zip(index, dims, strict=True):
            total = total * dim_expr(d) + i
        return total

    def merge(self, index: Index, dims: tuple[Dim, ...]) -> tuple[Index, tuple[Dim, ...]]:
        """The same position in the same contiguous array with runs of known digits merged into one dimension."""
        out_index: list[Expr] = []
        out_dims: list[Dim] = []
        i = 0
        while i < len(index):
            for stop in range(len(index), i + 1, -1):
                live = [j for j in range(i, stop) if dims[j] != 1]
                key = (tuple(index[j] for j in live), tuple(dims[j] for j in live))
                linear = self._linear.get(key) if len(live) > 1 else None
                if linear is not None:
                    out_index.append(linear)
                    out_dims.append(product(key[1]))
                    i = stop
                    break
            else:
                out_index.append(index[i])
                out_dims.append(dims[i])
                i += 1
        return tuple(out_index), tuple(out_dims)

    def reshape(self, index: Index, source: Sequence[Dim], target: Sequence[Dim]) -> Index:
        """Where element ``index`` of an array of shape ``source`` lies after a row-major reshape to ``target``."""
        out: list[Expr] = []
        position = 0
        for group_source, group_target in reshape_groups(tuple(source), tuple(target), self.facts):
            part = index[position : position + len(group_source)]
            position += len(group_source)
            live_source = [d for d in group_source if d != 1]
            live_target = [d for d in group_target if d != 1]
            if live_source == live_target:
                values = iter([p for p, d in zip(part, group_source, strict=True) if d != 1])
                out.extend(const(0) if d == 1 else next(values) for d in group_target)
            else:
                out.extend(self.digits(self.linear(tuple(part), group_source), group_target))
        return tuple(out)


def reshape_groups(source: tuple[Dim, ...], target: tuple[Dim, ...], facts: Facts) -> list[tuple[tuple[Dim, ...], tuple[Dim, ...]]]:
    """Cut both shapes into the shortest consecutive groups of provably equal element counts; what cannot be told apart stays together."""
    groups: list[tuple[tuple[Dim, ...], tuple[Dim, ...]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        best: tuple[int, int] | None = None
        for total in range(1, len(source) - i + len(target) - j + 1):
            for take in range(total + 1):
                si, tj = i + take, j + total - take
                if si > len(source) or tj > len(target):
                    continue
                if product(source[i:si]) == product(target[j:tj]):
                    # the rest must agree as well, or the split would be wrong for later groups
                    best = (si, tj)
                    break
            if best:
                break
        if best is None:
            best = (len(source), len(target))
        groups.append((source[i : best[0]], target[j : best[1]]))
        i, j = best
    return groups


def broadcast_index(index: Index, shape: Sequence[Dim], out_shape: Sequence[Dim]) -> Index:
    """The index into an operand of ``shape`` that numpy broadcasting to ``out_shape`` reads at ``index``."""
    offset = len(out_shape) - len(shape)
    return tuple(const(0) if d == 1 else index[offset + i] for i, d in enumerate(shape))
