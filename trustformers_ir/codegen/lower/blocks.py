"""Which loops run how on a GPU: a nest of elements becomes one of blocks.

The nests are the ones of the CPU, made from the same definitions; their VECTOR axes become TILE axes. Matrix products are the naive nest ``m, n``
with tiles of m, n and k (``block_products.py``); attention has a nest of its own (``flash.py``). Sizes are powers of two, and what a size leaves over
is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, VECTOR, Axis, Expr, Reduce
from trustformers_ir.codegen.kernel_ir.schedule import apply, axes_of, retag, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.ir.dims import Dim, product

LINE = 1024  # elements of a block of a nest without folds
ROW = 4096  # most elements of a row that is one block
PART = 1024  # elements of a block of a longer row
LEAST = 16  # of each side of a product of blocks


@dataclass(frozen=True)
class BlockMachine:
    """What the heuristics know of a GPU: its kind, which decides the blocks of attention and whether matrix units read shared memory (wgmma), the
    bytes of shared memory that a program can have, its cores (multiprocessors, compute units), and the threads of a warp."""

    kind: str = "hopper"
    shared: int = 227 << 10
    cores: int = 132
    warp: int = 32

    @property
    def wgmma(self) -> bool:
        return self.kind == "hopper"

    @property
    def filled(self) -> int:
        """Elements of a result from which on each core has a large tile of its own."""
        return self.cores * 128 * 128

    def warps(self, elements: int) -> int:
        """Warps of a program that makes a large tile: 64 sums in each thread, or as many as there may be."""
        return min(8, elements // (64 * self.warp))

    def stages(self, rows: int, columns: int, terms: int, size: int) -> int:
        """Stages of a loop over tiles of elements of ``size`` bytes for which there is room, two at least."""
        return max(2, self.shared // ((rows + columns) * terms * size))


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
