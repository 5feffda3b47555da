"""Which loops run how on a GPU: a nest of elements becomes one of blocks.

The nests are the ones of the CPU, made from the same definitions; their VECTOR axes become TILE axes. Matrix products are the naive nest ``m, n``
with tiles of m, n and k (``block_products.py``); attention has a nest of its own (``flash.py``). Sizes are powers of two, and what a size leaves over
is masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, SEQ, TILE, VECTOR, Axis, Binary, Expr, Reduce
from trustformers_ir.codegen.kernel_ir.schedule import Reorder, apply, axes_of, retag, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.definer import Arithmetic, Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.program import Launch
from trustformers_ir.ir.dims import Dim, product

LINE = 1024  # elements of a block of a nest without folds
ROW = 16384  # most elements of a row that is one block
PART = 4096  # elements of a block of a longer row; of one whose length is not known ``LINE``
COLUMNS = 4096  # most elements of a block of columns, each of which is folded by itself
WIDTH = 64  # columns of a block in which each is folded by itself, in parts
HEIGHT = 128  # elements above each other that are one block
SHORT = 2048  # elements up to which a program takes several rows
LEAST = 16  # of each side of a product of blocks
THREAD = 16  # elements of a row that a thread holds, where there are threads enough
WARPS, MOST_WARPS = 4, 16  # of a program that works on rows
BLOCKS = Arithmetic(tree=ROW, fast_exp=True)


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

    def row_warps(self, elements: int) -> int:
        """Warps of a program that works on so many elements of rows at once."""
        return max(WARPS, min(MOST_WARPS, elements // (THREAD * self.warp)))

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


def in_blocks(kernel: Kernel, machine: BlockMachine, facts: SymbolFacts | None) -> tuple[Kernel, Launch]:
    """The kernel with blocks in place of vectors, and how it is launched: several rows where they are short, whole rows up to a size, parts of
    longer ones.

    What such a kernel waits for is memory, so a program has to ask for much at once: 16 elements in each thread are one or two loads of 16 bytes of
    16-bit numbers. A row of 384 in a block of 512 is less than that for the four warps that a program has; four rows fill them, and each then lies in
    one or two warps, whose sums need few steps through shared memory. A longer row gets more warps, so that it is read once and kept in registers: in
    parts it would be read again for each fold.
    """
    of_rows = any(isinstance(n, Reduce) and any(a.kind is VECTOR for a in n.axes) for n in _nodes(kernel))
    longest = ROW if of_rows else COLUMNS
    if not of_rows and _folds_columns(kernel):
        kernel = _columns(kernel, facts)
    while True:
        loops = {s.axis for s in walk_statements(kernel.body) if isinstance(s, For)}
        axis = next((a for a in axes_of(kernel) if a.kind is VECTOR), None)
        if axis is None:
            break
        size = axis.static_extent
        if size is not None and size <= (longest // 2 if _is_double(kernel, axis) else longest):
            kernel = tile_axis(kernel, axis, power_of_two(size), facts)
        elif axis not in loops and _is_place(kernel, axis):
            kernel = retag(kernel, axis, SEQ)
        else:
            kernel = tile_axis(kernel, axis, LINE if size is None or not of_rows else PART, facts)
    if of_rows:
        kernel = _several_rows(kernel, machine, facts)
    return apply(kernel, (), facts), Launch(machine.row_warps(_widest(kernel)))


def _folds_columns(kernel: Kernel) -> bool:
    """Whether each element of a row is folded with those above and below it: along other axes than the last, and not as a product of matrices."""
    reduces = [n for n in _nodes(kernel) if isinstance(n, Reduce)]
    products = any(isinstance(n.body, Binary) and n.body.op == "mul" and n.kind == "sum" for n in reduces)
    return bool(reduces) and not products and not kernel.scratch and all(a.kind is SEQ for n in reduces for a in n.axes)


def _columns(kernel: Kernel, facts: SymbolFacts | None) -> Kernel:
    """The kernel with blocks of neighbouring columns, and of what is folded or looped over above them: all of it where that is little, else parts,
    which loops add up. One column after the other would be read in pieces of one element."""
    for vector in [a for a in axes_of(kernel) if a.kind is VECTOR]:
        kernel = retag(kernel, vector, PARALLEL)
    loops = [s.axis for s in walk_statements(kernel.body) if isinstance(s, For)]
    if not any(a.kind is PARALLEL for a in loops):
        return kernel
    columns = next(a for a in reversed(loops) if a.kind is PARALLEL)
    reduces = [n for n in _nodes(kernel) if isinstance(n, Reduce)]
    around = {a for n in reduces for a in (*n.free_axes, *(b for own in n.axes for b in own.extent.free_axes))}  # of which other folds are made
    along = dict.fromkeys([n.axes[-1] for n in reduces if n.axes[-1] not in around] + [a for a in loops[-1:] if a.kind is SEQ])
    if not along:
        return kernel
    heights = [a.static_extent if a.static_extent is not None else HEIGHT + 1 for a in along]
    whole = max(heights) <= HEIGHT
    height = power_of_two(max(heights)) if whole else SHORT // WIDTH
    for a, size in zip(along, heights, strict=True):
        if whole or not _is_place(kernel, a):
            kernel = tile_axis(kernel, a, power_of_two(size) if whole else height, facts)
    width = min(SHORT // height, LINE, LINE if columns.static_extent is None else power_of_two(columns.static_extent))
    kernel = tile_axis(kernel, columns, width, facts)
    loops = [s.axis for s in walk_statements(kernel.body) if isinstance(s, For)]
    inside = [a.name for kind in (PARALLEL, SEQ, TILE) for a in loops if a.kind is kind]  # a loop goes round blocks
    return apply(kernel, (Reorder(tuple(inside)),), facts) if inside != [a.name for a in loops] else kernel


def _is_double(kernel: Kernel, axis: Axis) -> bool:
    """Whether there is a number of 64 bits for each point of the axis, which takes two registers."""
    return any(n.dtype.itemsize == 8 and not n.pure_index and axis in n.free_axes for n in _nodes(kernel))


def _several_rows(kernel: Kernel, machine: BlockMachine, facts: SymbolFacts | None) -> Kernel:
    """The kernel with as many rows in a program as make ``SHORT`` elements, as long as there is a program for each core: a block of rows, those
    that are left over masked."""
    loops = [s.axis for s in walk_statements(kernel.body) if isinstance(s, For)]
    parallel = [a for a in loops if a.kind is PARALLEL]
    axes = [*loops, *(a for n in _nodes(kernel) if isinstance(n, Reduce) for a in n.axes)]
    if not parallel or kernel.scratch or any(a.kind not in (PARALLEL, TILE) for a in axes):
        return kernel
    rows = SHORT // max(_widest(kernel), 1)
    last, sizes = parallel[-1], [a.static_extent for a in parallel]
    if last.static_extent is not None:
        rows = min(rows, power_of_two(last.static_extent))
    if None not in sizes:
        rows = min(rows, power_of_two(math.prod(s or 1 for s in sizes) // machine.cores))
    return tile_axis(kernel, last, rows, facts) if rows > 1 else kernel


def _widest(kernel: Kernel) -> int:
    """The most elements that a value of the kernel has."""
    return max((math.prod(a.static_extent or 1 for a in n.free_axes if a.kind is TILE) for n in _nodes(kernel)), default=1)


def _nodes(kernel: Kernel) -> Iterator[Expr]:
    """Every expression of the kernel."""
    seen: set[Expr] = set()
    for root in kernel.expressions():
        yield from walk(root, seen)


def _is_place(kernel: Kernel, axis: Axis) -> bool:
    """Whether the place of an extremum is looked for along the axis: such a fold is not cut."""
    return any(isinstance(n, Reduce) and axis in n.axes and n.kind.startswith("arg") for n in _nodes(kernel))
