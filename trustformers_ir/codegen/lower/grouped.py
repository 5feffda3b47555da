"""Products by weights in blocks on a GPU: matrix instructions on codes, scales once for each group.

For each group g of terms, with the codes of 4 bits in pairs (``definitions/blocks.py``)::

    part[n, m] = sum_j low(codes[n, g, j]) * x[m, g, j]  +  sum_j high(codes[n, g, j]) * x[m, g, j + half]
    acc[n, m]  = acc + scale[n, g] * part

Both sums are products of blocks. A code is an integer of 8 bits at most, which f16 and bf16 hold exactly, so matrix instructions of 16 bits take it
without a rounding, and the scale needs no arithmetic per weight: a group of 128 costs one multiply-add in f32 for each 128 products. Rows of the
weight come first: the factor that is computed in registers is then the one that matrix instructions take from there (wgmma has its second one in
shared memory), and few rows of x fill their narrow side.

As with other products there is a kernel for each range of rows (``block_products.py``):

* **few rows** (up to 16, then 32) are bound by the bytes of the weight, if only there are enough warps: 16 columns to a program give 4096 columns
  256 programs, two for each core of an H100. So a program takes many groups at a time, a batch of products of which each warp has its own, and adds
  them up at the end. A row of the weight is then read 256 to 512 bytes at a time. Masked rows of x are not read. One row is no case of its own:
  multiplied and summed up without matrix instructions a weight takes 4 to 5 instructions, and an H100 has three for each weight of 4 bits that memory
  delivers (132 cores x 128 lanes x 1.75 GHz over 9.6 T weights/s). Taking four codes apart at a time takes 1.4, and matrix instructions do the sums;
* **more rows**: tiles, one group after the other. (Predicted, not measured: no GPU was there.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from trustformers_ir.codegen.kernel_ir.kernel import For, Kernel, Stmt, Store, nest, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL, UNROLL, VECTOR, Axis, const
from trustformers_ir.codegen.kernel_ir.schedule import Move, Reorder, Split, Tag, apply, axes_of, tile_axis
from trustformers_ir.codegen.kernel_ir.simplify import SymbolFacts
from trustformers_ir.codegen.lower.block_products import BlockProduct, in_turn
from trustformers_ir.codegen.lower.blocks import LEAST, BlockMachine, covering, power_of_two
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr
from trustformers_ir.codegen.lower.part_sums import Cut
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice, ScheduleKey

FEW = 32  # rows up to which warps have groups of their own
TURN = 128  # terms of a turn of the loop; of each warp where it has groups of its own
MOST_SUMS, SUMS = 64, 32  # of a thread: those of a group and those of all are there at once; and of small groups, which leave less to scales
OF_GROUPS = 16  # sums of a thread where warps have groups of their own: with twice as many up to 24 bytes are spilled (Triton 3.9)


@dataclass(frozen=True)
class GroupedProduct(BlockProduct):
    """A product whose terms share scales, ``group`` of them each."""

    group: int

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> GroupedProduct | None:
        """The product when the region is one."""
        if anchor is None or not isinstance(anchor.op, ops.LinearBlocks) or anchor.result.type.shape != shape or len(shape) < 2:
            return None
        x = anchor.inputs[0].type
        return cls((), shape[:-1], shape[-1], x.shape[-1], x.dtype, f"gpu_{anchor.op.mnemonic}", anchor.op.group)

    def nest(self, d: Definer, emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
        """One element of the result after the other."""
        n, m = Axis("n", dim_expr(self.columns), PARALLEL), Axis("m", dim_expr(product(self.rows)), PARALLEL)
        single = all(size == 1 for size in self.rows)  # matrix instructions take one row as one of many: it is not left out as the only one
        rows = (*(const(0) for _ in self.rows[1:]), m) if single else d.flat.digits(m, self.rows)
        return nest([n, m], *emit((*rows, n)))

    def limits(self, machine: BlockMachine) -> list[int]:
        """Rows up to which a kernel of its own serves."""
        return [LEAST, FEW, 2 * FEW] if isinstance(self.columns, int) and self.dtype is not DType.f32 else []

    def key(self, rows: int | None) -> ScheduleKey:
        """The group is how the right side is packed."""
        return replace(super().key(rows), panel=self.group)

    def preferred(self, machine: BlockMachine, key: ScheduleKey) -> BlockChoice:
        """What the heuristic says of such products."""
        return heuristic(machine, key)

    def sums(self, most: int) -> int:
        """How many sums a thread may have where it could hold ``most``: those of a group are there besides."""
        return min(most, MOST_SUMS if self.group >= TURN // 2 else SUMS)

    def cut(self, choice: BlockChoice) -> Cut:
        """Where the sums are cut into parts: between turns of the loop over the groups."""
        return Cut("g", self.groups(choice), choice.parts)

    def turns(self, choice: BlockChoice) -> int | None:
        """How often that loop runs in all parts; None where only a call knows."""
        return -(-self.terms // (self.group * self.groups(choice))) if isinstance(self.terms, int) else None

    def reads(self, choice: BlockChoice) -> int:
        """Bytes of a turn of that loop."""
        return stage(choice.rows, choice.columns, self.group * self.groups(choice))

    def groups(self, choice: BlockChoice) -> int:
        """Groups of a turn."""
        return power_of_two(choice.terms // self.group)

    def tiled(self, kernel: Kernel, choice: BlockChoice, facts: SymbolFacts | None) -> Kernel:
        """The nest with tiles, as far as its loops were not dropped because they have one turn. A run of codes is one block."""
        groups, few = self.groups(choice), choice.rows <= FEW and self.dtype is not DType.f32
        sizes = {"n": choice.columns, "m": choice.rows, **({"g": groups} if few and groups > 1 else {})}
        for axis in axes_of(kernel):
            if axis.kind is VECTOR:
                assert axis.static_extent is not None
                kernel = tile_axis(kernel, axis, power_of_two(axis.static_extent), facts)
        for name, size in sizes.items():  # n before m: the older axis is that of the first factor
            for axis in [a for a in axes_of(kernel) if a.name == name]:
                kernel = tile_axis(kernel, axis, size, facts)
        names = {s.axis.name for s in walk_statements(kernel.body) if isinstance(s, For)}
        order = tuple(name for name in ("n.o", "m.o", "n.i", "m.i") if name in names)
        moves: list[Move] = [Reorder(order)] if len(order) > 1 else []
        moves += in_turn(tuple(name for name in ("n.o", "m.o") if name in names), choice)
        if not few and groups > 1 and any(a.name == "g" for a in axes_of(kernel)):
            moves += [Split("g", groups), Tag("g.i", UNROLL)]
        return apply(kernel, moves, facts)


def heuristic(machine: BlockMachine, key: ScheduleKey) -> BlockChoice:
    """The tile of a product of that size where no table knows better."""
    if key.dtype is DType.f32:  # not a product of matrices for the hardware: sums of plain registers
        return BlockChoice(LEAST, LEAST, TURN, warps=4, stages=2, group=1)
    if key.rows is not None and key.rows <= FEW:
        rows = covering(key.rows)
        wide = key.n is not None and key.n > 4 * LEAST * machine.cores  # there are programs enough without narrow ones
        columns, warps = (2 * LEAST, 4) if wide else (LEAST, 8)
        while warps > 1 and stage(rows, columns, TURN * warps) > machine.shared:
            warps //= 2
        groups = OF_GROUPS * 32 * warps // (rows * columns)  # each has sums of its own
        terms = min(TURN * warps, max(1, power_of_two(groups)) * key.panel)
    else:
        terms = min(TURN, 2 * key.panel)  # of four small groups at a time too much is there at once: it spills
        small = key.rows is not None and key.rows <= 2 * FEW
        rows, columns, warps = (2 * FEW, 2 * FEW, 4) if small else (128, 128 if machine.wgmma else 64, 8)
    return BlockChoice(rows, columns, terms, warps, min(3, 1 + machine.shared // stage(rows, columns, terms)), group=1)


def stage(rows: int, columns: int, terms: int) -> int:
    """Bytes of shared memory for a turn: activations of 16 bits, codes of 8 at most."""
    return terms * (2 * rows + columns)
