"""Which loops run how on a GPU: a nest of elements becomes one of blocks.

The nests are the ones of the CPU, made from the same definitions; their VECTOR axes become TILE axes. Matrix products are the naive nest ``m, n``
with tiles of m, n and k; attention has a nest of its own (``flash.py``). Sizes are powers of two, and what a size leaves over is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, VECTOR, Axis, Expr, Reduce
from trustformers_ir.codegen.kernel_ir.schedule import Reorder, apply, axes_of, retag, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType

LINE = 1024  # elements of a block of a nest without folds
ROW = 4096  # most elements of a row that is one block
PART = 1024  # elements of a block of a longer row
LEAST = 16  # of each side of a product of blocks


@dataclass(frozen=True)
class BlockMachine:
    """What the heuristics know of a GPU: its kind, which decides the blocks of attention, and the tile of a matrix product (rows, columns, terms)."""

    product: tuple[int, int, int] = (64, 64, 32)
    kind: str = "ampere"

    def product_tile(self, dtype: DType, rows: Dim, columns: Dim, terms: Dim) -> tuple[int, int, int]:
        """The tile of a product of that size. Blocks that matrix instructions do not take are products of three dimensions, which are kept small."""
        most = self.product if dtype in (DType.f16, DType.bf16, DType.f32, DType.i8, DType.u8) else (LEAST,) * 3
        m, n, k = (min(size, covering(dim)) for size, dim in zip(most, (rows, columns, terms), strict=True))
        return m, n, max(k, 2 * LEAST) if dtype.bits == 8 else k  # matrix instructions take bytes 32 at a time


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def covering(size: Dim) -> int:
    """The smallest side of a block that covers a dim; a large number where that is not known."""
    return max(power_of_two(size), LEAST) if isinstance(size, int) else 1 << 30


def line_nest(d: Definer, shape: Sequence[Dim], emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
    """The whole index space as one line, cut into blocks."""
    line = Axis("i", dim_expr(product(tuple(shape))), PARALLEL)
    return nest([line], *emit(d.flat.digits(line, shape)))


def tiled_line(kernel: Kernel, facts: SymbolFacts | None) -> Kernel:
    """That nest with its blocks; a single element has no line."""
    for axis in [s.axis for s in walk_statements(kernel.body) if isinstance(s, For) and s.axis.kind is PARALLEL]:
        size = axis.static_extent
        kernel = tile_axis(kernel, axis, LINE if size is None else min(LINE, power_of_two(size)), facts)
    return apply(kernel, (), facts)


def folds(body: Sequence[Stmt]) -> bool:
    """Whether anything is folded in what is stored."""
    stores = [s for s in walk_statements(tuple(body)) if isinstance(s, Store)]
    return any(isinstance(n, Reduce) for s in stores for e in (*s.index, s.value) for n in walk(e))


def in_blocks(kernel: Kernel, facts: SymbolFacts | None) -> Kernel:
    """The kernel with blocks in place of vectors: whole rows where they are short, parts of them else."""
    while True:
        loops = {s.axis for s in walk_statements(kernel.body) if isinstance(s, For)}
        axis = next((a for a in axes_of(kernel) if a.kind is VECTOR), None)
        if axis is None:
            return apply(kernel, (), facts)
        size = axis.static_extent
        if size is not None and size <= ROW:
            kernel = tile_axis(kernel, axis, power_of_two(size), facts)
        elif axis not in loops and _is_place(kernel, axis):
            kernel = retag(kernel, axis, SEQ)
        else:
            kernel = tile_axis(kernel, axis, PART, facts)


def _is_place(kernel: Kernel, axis: Axis) -> bool:
    """Whether the place of an extremum is looked for along the axis: such a fold is not cut."""
    seen: set[Expr] = set()
    nodes = (n for root in kernel.expressions() for n in walk(root, seen))
    return any(isinstance(n, Reduce) and axis in n.axes and n.kind.startswith("arg") for n in nodes)


@dataclass(frozen=True)
class BlockProduct:
    """A product of matrices: dims along which the right one changes, those of the left one that share a right one, columns, terms of a sum."""

    lead: tuple[Dim, ...]
    rows: tuple[Dim, ...]
    columns: Dim
    terms: Dim
    dtype: DType

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> BlockProduct | None:
        """The product when the region is one."""
        if anchor is None or not isinstance(anchor.op, (ops.Linear, ops.MatMul, ops.LinearInt8)) or anchor.result.type.shape != shape:
            return None
        if len(shape) < 2:
            return None
        left = anchor.inputs[0].type
        if isinstance(anchor.op, ops.MatMul):
            right = anchor.inputs[1].type
            alone = all(size == 1 for size in right.shape[:-2])
            lead, rows = ((), shape[:-1]) if alone else (shape[:-2], shape[-2:-1])
        else:
            lead, rows = (), shape[:-1]
        return cls(lead, rows, shape[-1], left.shape[-1], left.dtype)

    def nest(self, d: Definer, emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
        lead = [Axis(f"b{i}", dim_expr(size), PARALLEL) for i, size in enumerate(self.lead)]
        m, n = Axis("m", dim_expr(product(self.rows)), PARALLEL), Axis("n", dim_expr(self.columns), PARALLEL)
        return nest([*lead, m, n], *emit((*lead, *d.flat.digits(m, self.rows), n)))

    def tiled(self, kernel: Kernel, machine: BlockMachine, facts: SymbolFacts | None) -> Kernel:
        """The nest with tiles, as far as its loops were not dropped because they have one turn."""
        sizes = machine.product_tile(self.dtype, product(self.rows), self.columns, self.terms)
        for name, size in zip(("m", "n", "k"), sizes, strict=True):
            for axis in [a for a in axes_of(kernel) if a.name == name]:
                kernel = tile_axis(kernel, axis, size, facts)
        names = {s.axis.name for s in walk_statements(kernel.body) if isinstance(s, For)}
        order = tuple(name for name in ("m.o", "n.o", "m.i", "n.i") if name in names)
        return apply(kernel, (Reorder(order),) if len(order) > 1 else (), facts)
