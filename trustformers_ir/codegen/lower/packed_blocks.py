"""Products of 8-bit activations by packed weights in blocks, on a CPU.

The plain nest has loops over rows m and columns n, and folds over groups g (with t, the steps of a group) and, in a group, over h and j
(``definitions/blocks_int8.py``). The register tile is rows x vectors of 16 columns. For each group it has a sum in i32 for each row and vector, which
lives for that group only, and one in f32 that lives for all of them. A vector of codes is taken apart once and multiplied by a row's four bytes
from memory: with VNNI 8 products of a group of 32 stand beside a conversion, a product of scales and one or two fused multiply-adds.

Rows that fill no tile are done one by one, not clamped as in ``gemm_schedule``: a single row is what generation asks for, token by token. Then memory
decides, and a panel is read from its beginning to its end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from trustformers_ir.codegen.kernel_ir.nodes import DOT, UNROLL
from trustformers_ir.codegen.kernel_ir.schedule import SKIP, Move, Prefetch, Split, Tag
from trustformers_ir.codegen.lower.definer import Definer
from trustformers_ir.codegen.lower.schedules import gemm_schedule
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import PLANES
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.schedule_table import ScheduleKey, TileChoice
from trustformers_ir.ir.types import Panels

DEPTH = 4
MOST_UNROLLED = 8  # fours of bytes in a group that are written out


@dataclass(frozen=True)
class PackedBlocks:
    """A product by packed planes, with its epilogue in the same index space: ``rows``, of ``columns`` each."""

    rows: tuple[Dim, ...]
    columns: int
    planes: tuple[Value, ...]
    layout: Panels
    terms: int
    run: int  # neighbouring elements of a group whose codes lie in neighbouring bytes

    lead: ClassVar[tuple[Dim, ...]] = ()
    products: ClassVar[int] = 1

    @classmethod
    def of(cls, anchor: Operation | None, shape: tuple[Dim, ...]) -> PackedBlocks | None:
        """The product when the region is one that has register tiles."""
        if anchor is None or not isinstance(anchor.op, ops.LinearBlocksInt8 | ops.ExpertBlocksInt8):
            return None
        if anchor.result.type.shape != shape or len(shape) < 2:
            return None
        at = anchor.op.planes_at
        planes = tuple(v for v in anchor.operands[at : at + len(PLANES)] if v is not None)
        layout, terms, columns = planes[0].type.layout, anchor.inputs[0].type.shape[-1], shape[-1]
        if not isinstance(layout, Panels) or layout.depth != DEPTH or not isinstance(columns, int) or columns == 1:
            return None
        assert isinstance(terms, int)
        return cls(shape[:-1], columns, planes, layout, terms, anchor.op.run)

    @property
    def key(self) -> ScheduleKey:
        rows = product(self.rows)
        dtype, width = self.planes[0].type.dtype, self.layout.width
        return ScheduleKey("linear_blocks_int8", dtype, self.columns, self.terms, rows if isinstance(rows, int) else None, width)

    def moves(self, d: Definer, choice: TileChoice) -> tuple[Move, ...]:
        """The schedule, and how far ahead codes are fetched."""
        tiles = (replace(m, tail=SKIP) if isinstance(m, Split) and m.axis == "m" else m for m in gemm_schedule(choice, self.key.rows))
        quads = self.run // DEPTH
        written = Tag("j.o" if quads > 1 else "j", UNROLL) if 1 < quads <= MOST_UNROLLED else None
        split = (Split("j", DEPTH), Tag("j.i", DOT)) if quads > 1 else (Tag("j", DOT),)
        fetched = [Prefetch(d.buffers[self.planes[0]].name, choice.ahead)] if choice.ahead else []
        return (*tiles, *split, *([] if written is None else [written]), *fetched)
