"""Products by weights in blocks on a GPU: matrix instructions on codes, scales once for each group.

For each group g of terms, with the codes of 4 bits in pairs (``definitions/blocks.py``)::

    part[n, m] = sum_j low(codes[n, g, j]) * x[m, g, j]  +  sum_j high(codes[n, g, j]) * x[m, g, j + half]
    acc[n, m]  = acc + scale[n, g] * part

Both sums are products of blocks. A code is an integer of 8 bits at most, which f16 and bf16 hold exactly, so matrix instructions of 16 bits take it
without a rounding, and the scale needs no arithmetic per weight: a group of 128 costs one multiply-add in f32 for each 128 products. Rows of the
weight come first: the factor that is computed in registers is then the one that matrix instructions take from there (wgmma has its second one in
shared memory), and few rows of x fill their narrow side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, VECTOR, Axis
from trustformers_ir.codegen.kernel_ir.schedule import Reorder, apply, axes_of, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.blocks import BlockMachine, covering, power_of_two
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, product

ROWS = 64  # most rows of x in a block
COLUMNS = 64  # rows of the weight


@dataclass(frozen=True)
class GroupedProduct:
    """Rows of x, and how many outputs each gives."""

    rows: tuple[Dim, ...]
    columns: Dim

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> GroupedProduct | None:
        """The product when the region is one."""
        if anchor is None or not isinstance(anchor.op, ops.LinearBlocks) or anchor.result.type.shape != shape or len(shape) < 2:
            return None
        return cls(shape[:-1], shape[-1])

    def nest(self, d: Definer, emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
        """One element of the result after the other."""
        n, m = Axis("n", dim_expr(self.columns), PARALLEL), Axis("m", dim_expr(product(self.rows)), PARALLEL)
        return nest([n, m], *emit((*d.flat.digits(m, self.rows), n)))

    def tiled(self, kernel: Kernel, machine: BlockMachine, facts: SymbolFacts | None) -> Kernel:
        """The nest with tiles, as far as its loops were not dropped because they have one turn. A run of codes is one block."""
        sizes = {"n": min(COLUMNS, covering(self.columns)), "m": min(ROWS, covering(product(self.rows)))}
        for axis in axes_of(kernel):
            if axis.kind is VECTOR:
                assert axis.static_extent is not None
                kernel = tile_axis(kernel, axis, power_of_two(axis.static_extent), facts)
            elif axis.name in sizes:
                kernel = tile_axis(kernel, axis, sizes[axis.name], facts)
        names = {s.axis.name for s in walk_statements(kernel.body) if isinstance(s, For)}
        order = tuple(name for name in ("n.o", "m.o", "n.i", "m.i") if name in names)
        return apply(kernel, (Reorder(order),) if len(order) > 1 else (), facts)
