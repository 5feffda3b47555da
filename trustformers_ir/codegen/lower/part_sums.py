"""Long sums of few results: each program adds up a part of the terms, and a second kernel adds up the parts.

A result of 16 x 1024 elements has 16 tiles of 64 columns. On a GPU of 132 cores 116 would look on while the others read the matrix, so the terms are
cut as well. Part p has the terms ``[p C, (p + 1) C)``, where C is a whole number of turns of the loop over them::

    sums[p, m, n] = sum of the terms of part p                                              (f32; i32 of bytes)
    out[m, n]     = what stands behind the product, of ((sums[0, m, n] + sums[1, m, n]) + sums[2, m, n]) + ...

Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU", 2023, call it a fixed split. The
parts are added in their order by one program, not by atomic additions in the order in which programs end: each call gives the same bits. What
stands before the product is computed by the first kernel, what stands behind it by the second.

Both kernels are made of the plain nest, before it has tiles, so that they get those of any other (``block_products.py`` says which).
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, UNROLL, Axis, Buffer, Expr, Load, Reduce
from trustformers_ir.codegen.kernel_ir.rewrite import Substitution
from trustformers_ir.codegen.kernel_ir.schedule import apply, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts, simplify_kernel
from trustformers_ir.codegen.lower.blocks import power_of_two
from trustformers_ir.codegen.lower.indexing import expr_dim, temporary_view
from trustformers_ir.codegen.program import Temporary
from trustformers_ir.ir.types import TensorType

JOINED = 512  # columns of a program that adds up parts: four of each thread


@dataclass(frozen=True)
class Cut:
    """The fold over the axis of that name is cut into so many ``parts``, of whole turns of ``turn`` steps each."""

    axis: str
    turn: int
    parts: int


@dataclass(frozen=True)
class PartSums:
    """The plain nests of a product in parts: ``first`` leaves ``sums`` for ``second``. The last parameter of either is its view of them."""

    sums: Temporary
    first: Kernel
    second: Kernel

    @classmethod
    def of(cls, kernel: Kernel, cut: Cut, most_rows: int | None, facts: SymbolFacts | None) -> PartSums | None:
        """``kernel``, the plain nest of a product, in parts. It computes ``most_rows`` at most (None: as many as its loop has). None where it has no
        such fold, or more than one."""
        chain, body = _loops(kernel)
        fold = _fold(body, cut.axis)
        if fold is None or not fold.free_axes <= {f.axis for f in chain} or any(f.guard is not None for f in chain):
            return None
        loops = sorted((f.axis for f in chain), key=lambda a: a.name == "n")  # columns lie next to each other
        shape = [most_rows if a.name == "m" and most_rows is not None else expr_dim(a.extent) for a in loops]
        sums = Temporary("sums", TensorType((cut.parts, *shape), fold.dtype))
        written, read = temporary_view(sums, readonly=False), temporary_view(sums, readonly=True)
        part, every = Axis("part", cut.parts, PARALLEL), Axis("part", cut.parts, UNROLL)
        first = nest([part, *loops], Store(written, (part, *loops), _share(fold, part, cut)))
        joined = Substitution({fold: Reduce("sum", (every,), Load(read, (every, *loops)))})
        second = nest(loops, *(joined.stmt(s) for s in body))
        return cls(sums, *(simplify_kernel(_kernel(kernel, b, view), facts) for b, view in ((first, written), (second, read))))


def joined(kernel: Kernel, facts: SymbolFacts | None) -> Kernel:
    """The second kernel in blocks of columns."""
    chain, _ = _loops(kernel)
    if chain:
        size = chain[-1].axis.static_extent
        kernel = tile_axis(kernel, chain[-1].axis, JOINED if size is None else min(JOINED, power_of_two(size)), facts)
    return apply(kernel, (), facts)


def _loops(kernel: Kernel) -> tuple[list[For], tuple[Stmt, ...]]:
    """The PARALLEL loops of a plain nest, and what stands inside them."""
    found: list[For] = []
    body = kernel.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].axis.kind is PARALLEL:
        found.append(body[0])
        body = body[0].body
    return found, body


def _fold(body: tuple[Stmt, ...], name: str) -> Reduce | None:
    """The sum over the axis of that name, where there is one alone."""
    seen: set[Expr] = set()
    roots = (e for s in walk_statements(body) if isinstance(s, Store) for e in (*s.index, s.value))
    found = [n for root in roots for n in walk(root, seen) if isinstance(n, Reduce) and any(a.name == name for a in n.axes)]
    return found[0] if len(found) == 1 and found[0].kind == "sum" and len(found[0].axes) == 1 else None


def _share(fold: Reduce, part: Axis, cut: Cut) -> Reduce:
    """What a part adds up."""
    (axis,) = fold.axes
    turns = (axis.extent + (cut.turn - 1)) // cut.turn
    share = (turns + (cut.parts - 1)) // cut.parts * cut.turn
    mine = Axis(axis.name, share, SEQ)
    at = part * share + mine
    here = Substitution({axis: at})
    inside = at < axis.extent
    return Reduce("sum", (mine,), here(fold.body), inside if fold.guard is None else inside & here(fold.guard))


def _kernel(kernel: Kernel, body: tuple[Stmt, ...], view: Buffer) -> Kernel:
    """A kernel with those of the parameters that it touches, and ``view``."""
    stores = [s for s in walk_statements(body) if isinstance(s, Store)]
    touched = {s.buffer for s in stores}.union(*(e.loads for s in stores for e in (*s.index, s.value)))
    return Kernel(kernel.name, (*(b for b in kernel.params if b in touched), view), body)
