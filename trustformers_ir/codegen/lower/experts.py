"""Products by chosen matrices on a CPU: rows of one expert together, so that what is read of its matrix is multiplied by all of them.

Two kernels. The first puts the rows in the order of their experts (a counting sort, by one worker: a few instructions for each row), in tiles of
as many rows as the register tile of the product has. A tile has rows of one expert; those that an expert leaves empty are -1::

    experts  2 0 2 1 2 2     size 3     owners  0        1        2        2        …
                                        slots   1 -1 -1  3 -1 -1  0  2  4  5 -1 -1  -1 …

R rows of E experts make at most ``(R + (size - 1) min(R, E)) / size`` tiles: that many there are, and empty ones cost the look at their slots. The
second kernel is the product of a matrix and a matrix in the register tiles of ``packed_blocks.py``, but for where a row lies and whose panels are
read. A full tile is done at once. Rows of another are done one by one, and a panel is read from its beginning to its end: a token that is generated
alone reads each panel of its experts once. No order of a sum depends on the grouping, so neither does a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import For, Stmt, Store, nest
from trustformers_ir.codegen.kernel_ir.nodes import SCRATCH, SEQ, VECTOR, Axis, Buffer, Const, Expr, Load, Reduce, cast, const, minimum
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.indexing import Index, dim_expr, temporary_view
from trustformers_ir.codegen.program import Temporary
from trustformers_ir.ir import dims, ops
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class ExpertRows:
    """The rows of a product by chosen matrices, in ``tiles`` of ``size``: the first ``tiles * size`` slots are their numbers, or -1, the first
    ``tiles`` owners the matrices. (Both have room for a tile for each row, which the plan can reckon with.)"""

    operation: Operation
    experts: Value
    count: int
    size: int
    tiles: Dim
    slots: Temporary
    owners: Temporary

    @classmethod
    def of(cls, o: Operation, size: int) -> ExpertRows | None:
        """None for a single row without axes, and where only a call knows how many matrices there are."""
        assert isinstance(o.op, ops.ExpertBlocksInt8)
        codes, experts = o.operands[o.op.planes_at], o.operands[-1]
        assert codes is not None and experts is not None
        count, rows = codes.type.shape[0], product(experts.type.shape)
        if not isinstance(count, int) or not count or not experts.type.rank:
            return None
        tiles = dims.floordiv(rows + (size - 1) * dims.minimum(rows, count), size)
        slots, owners = (Temporary(name, TensorType((most,), DType.i32)) for name, most in (("slots", rows * size), ("owners", rows)))
        return cls(o, experts, count, size, tiles, slots, owners)

    def buffers(self, readonly: bool) -> dict[Temporary, Buffer]:
        """A kernel's view of both."""
        return {t: temporary_view(t, readonly) for t in (self.slots, self.owners)}

    def grouping(self, d: Definer, buffers: Mapping[Temporary, Buffer]) -> tuple[Stmt, ...]:
        """The first kernel. ``ends`` has the number of rows of each expert, then the first slot of each, then the one behind its last row."""
        slots, owners, size, i32 = buffers[self.slots], buffers[self.owners], self.size, DType.i32
        ends = Buffer("ends", i32, (const(self.count + 1),), space=SCRATCH)
        rows, shape = dim_expr(product(self.experts.type.shape)), self.experts.type.shape

        def expert(row: Axis) -> Expr:
            return d.checked(self.operation, d.at(self.experts, d.flat.digits(row, shape)), self.count, "expert")

        zero, counted, placed = Axis("zero", self.count + 1, SEQ), Axis("row", rows, SEQ), Axis("placed", rows, SEQ)
        e, before = Axis("expert", self.count, SEQ), Axis("before", self.count, SEQ)
        tile, slot = Axis("tile", dim_expr(self.tiles), SEQ), Axis("slot", dim_expr(self.tiles * size), VECTOR)
        padded = (ends[e + 1] + (size - 1)) // size * size
        behind = Reduce("sum", (before,), cast(ends[before + 1] <= cast(tile * size, i32), i32))
        one, place = expert(counted) + 1, expert(placed)
        return (
            *nest([zero], Store(ends, (zero,), Const(0, i32))),
            *nest([counted], Store(ends, (one,), ends[one] + 1)),
            *nest([e], Store(ends, (e + 1,), ends[e] + padded)),
            *nest([tile], Store(owners, (tile,), minimum(behind, Const(self.count - 1, i32)))),
            *nest([slot], Store(slots, (slot,), Const(-1, i32))),
            *nest([placed], Store(slots, (cast(ends[place], DType.i64),), cast(placed, i32)), Store(ends, (place,), ends[place] + 1)),
        )

    def nest(self, d: Definer, buffers: Mapping[Temporary, Buffer], columns: int, emit: Callable[[Index], list[Store]]) -> tuple[Stmt, ...]:
        """The second kernel, one element of the result after the other: loops ``m`` over slots and ``n`` over columns."""
        slots, owners = buffers[self.slots], buffers[self.owners]
        m, n = Axis("m", dim_expr(self.tiles * self.size), SEQ), Axis("n", dim_expr(columns), SEQ)
        d.overrides[self.experts] = lambda at: cast(Load(owners, (m // self.size,)), self.experts.type.dtype)
        stores = emit((*self._row(d, cast(Load(slots, (m,)), DType.i64)), n))
        return (For(m, nest([n], *stores), slots[m] >= 0),)

    def _row(self, d: Definer, row: Expr) -> Index:
        """The index of a row. Where several experts serve one token, that of the token is checked: it is what activations are read by."""
        *lead, last = self.experts.type.shape
        if not lead or not isinstance(last, int):
            return d.flat.digits(self._checked(d, row, product((*lead, last))), (*lead, last))
        token = self._checked(d, row // last, product(tuple(lead)))
        return (*d.flat.digits(token, lead), self._checked(d, row % last, last))

    def _checked(self, d: Definer, index: Expr, bound: Dim) -> Expr:
        return const(0) if bound == 1 else d.checked(self.operation, index, bound, f"row of {bound}")
