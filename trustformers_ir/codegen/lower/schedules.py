"""Which loops run how: schedules as data, picked by heuristics from the shape of a naive kernel.

Nothing here can change a result; see ``kernel_ir/schedule.py`` for the moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.nodes import DOT, LANES, UNROLL, VECTOR
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL as PARALLEL_KIND
from trustformers_ir.codegen.kernel_ir.schedule import CLAMP, GUARD, Chunk, Move, Prefetch, Reorder, Split, Tag
from trustformers_ir.ir.dims import Dim


@dataclass(frozen=True)
class MachineShape:
    """What the heuristics know of the target: vector registers of 16 f32 lanes' worth, and the sizes of the caches in bytes.

    ``registers`` counts registers that hold 16 f32 (a pair of 256-bit ones counts one on AVX2).
    """

    name: str = "avx512"
    registers: int = 32
    l1: int = 32 << 10
    l2: int = 1 << 20

    @property
    def panel(self) -> int:
        """Columns of a packed B panel: the micro-tile is ``tile_rows x panel``."""
        return 48 if self.registers >= 32 else 16

    @property
    def tile_rows(self) -> int:
        """Rows of the register tile: accumulators, one B vector per column block and one broadcast must fit the registers.

        With 32 registers 8 x 48 takes 24 accumulators + 3 + 1; with 8 (AVX2: sixteen 256-bit ones) 6 x 16 takes 6 + 1 + 1.
        """
        return 8 if self.registers >= 32 else 6

    def tile_columns(self, panel: int, columns: Dim) -> int:
        """Columns of the register tile over panels of that width: several panels side by side where they fill it. Code for several targets
        reads weights that are packed for the narrowest of them (panels of 16, three at a time with AVX-512)."""
        widest = min(self.panel, -(-columns // LANES) * LANES) if isinstance(columns, int) else panel
        return widest if widest % panel == 0 else panel

    @property
    def dot_rows(self) -> int:
        """Rows of the register tile of bytes. With 32 registers as for f32. AVX2 has no instruction that adds up four products of bytes: the even
        and the odd bytes of two vectors of B (4 registers) and of a row of A (2) leave room for 4 rows x 16 columns (8)."""
        return self.tile_rows if self.registers >= 32 else 4

    @property
    def attention_vectors(self) -> int:
        """Vectors of 16 queries in a tile of attention."""
        return 2 if self.registers >= 32 else 1

    @property
    def attention_rows(self) -> int:
        """Rows of the register tiles of attention (keys, then features of v), each ``attention_vectors`` wide. 8 x 2 vectors are 16 chains of
        additions, enough to hide the latency of one; with fewer vectors the broadcasts of K, which all come from one bank of L1, would take
        longer than the products. With pairs of 256-bit registers it is 6 x 1, as for GEMM."""
        return 8 if self.registers >= 32 else 6


def gemm_schedule(machine: MachineShape, columns: int, most_rows: int | None = None) -> tuple[Move, ...]:
    """Register tiles of ``columns`` for the naive nest ``m, n`` of a GEMM whose B is packed in panels.

    The loops are, outermost first: fair chunks of rows (``m.o.o``), panels of B (``n.o``), tiles of rows in the chunk (``m.o.i``), then the
    register tile: rows x vectors of columns x 16 lanes. A panel of B stays in L2 while the tiles of A go by. The two outer loops together are cut
    over the workers: with few rows there is one chunk, and every worker reads its own share of B, once; with many rows each worker has
    chunks of its own. Rows past the end are clamped (computed again, same bits); columns past the end are guarded. ``most_rows`` is the
    number of rows where it is known.
    """
    return _register_tiles(machine.tile_rows, columns, most_rows)


def dot_schedule(machine: MachineShape, columns: int, most_rows: int | None = None) -> tuple[Move, ...]:
    """The same for bytes, whose panels are four deep: four k at a time are one DOT step."""
    return (*_register_tiles(machine.dot_rows, columns, most_rows), Split("k", 4, GUARD), Tag("k.i", DOT))


def _register_tiles(rows: int, columns: int, most_rows: int | None) -> tuple[Move, ...]:
    rows, vectors = rows if most_rows is None else min(rows, max(most_rows, 1)), -(-columns // LANES)
    return (
        Split("m", rows, CLAMP),
        Chunk("m.o", ROW_BLOCK // rows),
        Split("n", columns, GUARD),
        *((Split("n.i", LANES, GUARD),) if vectors > 1 else ()),
        Reorder(("m.o.o", "n.o", "m.o.i", "m.i", *(("n.i.o", "n.i.i") if vectors > 1 else ("n.i",)))),
        Tag("m.o.o", PARALLEL_KIND),
        Tag("n.o", PARALLEL_KIND),
        Tag("m.i", UNROLL),
        *((Tag("n.i.o", UNROLL), Tag("n.i.i", VECTOR)) if vectors > 1 else (Tag("n.i", VECTOR),)),
    )


def prefetch_schedule(weight: str, elements: int, itemsize: int) -> tuple[Move, ...]:
    """Fetch the next panel of B, ``elements`` further, while the tiles of this one run.

    Only the first tile of a panel would wait for memory, but with few rows that is all of them. Measured (4 layers of BERT-base, 2 threads): 4 %
    less time with 128 rows, 13 % with 32, 12 % with 8. A panel that leaves no room for its successor in L2 (K = 3072: 590 KB) is fetched
    a little ahead of itself instead: fetching the next one gained nothing.
    """
    whole = elements * itemsize <= PANEL_LIMIT
    return (Prefetch(weight, elements if whole else NEAR // itemsize),)


PANEL_LIMIT = 200_000  # bytes of a panel that is fetched as a whole: a fifth of L2
NEAR = 16 << 10  # bytes ahead in larger ones
ROW_BLOCK = 128  # most rows of a chunk: 128 x 1536 x 4 bytes of A are 0.8 MB, and stay in L2 while the panels stream past
