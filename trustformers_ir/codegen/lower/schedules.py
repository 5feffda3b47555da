"""Which loops run how: schedules as data, picked by a heuristic from the shape of a naive kernel, or found in a table of tuned ones.

A ``Choice`` (``ir/schedule_table.py``) says what is free: the register tile, the block of rows, how far ahead weights are fetched. ``heuristic``
makes one for every key; ``gemm_schedule`` and its like turn it into moves. Nothing here can change a result; see ``kernel_ir/schedule.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.nodes import DOT, LANES, UNROLL, VECTOR
from trustformers_ir.codegen.kernel_ir.nodes import PARALLEL as PARALLEL_KIND
from trustformers_ir.codegen.kernel_ir.schedule import CLAMP, GUARD, Chunk, Move, Prefetch, Reorder, Split, Tag
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.schedule_table import (
    HELP,
    HEURISTIC,
    TABLE,
    AttentionChoice,
    BlockChoice,
    Choice,
    Chosen,
    FlashChoice,
    ScheduleKey,
    ScheduleTable,
    TileChoice,
)


@dataclass(frozen=True)
class MachineShape:
    """What the heuristics know of the target: ``registers`` counts vector registers that hold 16 f32 (a pair of 256-bit ones counts one on AVX2)."""

    registers: int = 32

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


def heuristic(machine: MachineShape, key: ScheduleKey) -> Choice:
    """What is chosen where no table knows better."""
    if key.template == "attention":
        return AttentionChoice(machine.attention_vectors, machine.attention_rows)
    if key.template == "linear_blocks_int8":
        return _blocks_choice(machine, key)
    rows = machine.dot_rows if key.template == "linear_int8" else machine.tile_rows
    if key.panel:
        assert key.n is not None, "weights are static"
        columns = machine.tile_columns(key.panel, key.n)
    else:
        columns = machine.panel if key.n is None else min(machine.panel, -(-key.n // LANES) * LANES)
    rows = rows if key.rows is None else min(rows, max(key.rows, 1))
    return TileChoice(rows, columns, ROW_BLOCK, _bytes_ahead(key, columns) if key.panel and key.k else 0)


def _blocks_choice(machine: MachineShape, key: ScheduleKey) -> TileChoice:
    """Products by weights in blocks: tiles of one panel, whose rows need a sum in i32 and one in f32 each.

    Measured on one core (Zen 5, processor time, 10⁹ operations per second, medians), 128 rows by q4_0 [2048, 2048] and q4_1 [576, 576]: 4 x 16 465
    and 373, 6 x 16 486 and 408, 8 x 16 352 and 377, 4 x 32 256 and 373, 6 x 32 310 and 384, 8 x 32 328 and 376. Rows that lie 2 KB apart share a bank
    of L1. One row by q4_0 [2048, 2048], GB/s: panels of 16 23.0, fetched 4 KB ahead 24.1; of 32 23.8.
    """
    rows = BLOCK_ROWS if machine.registers >= 32 else machine.dot_rows
    return TileChoice(rows if key.rows is None else min(rows, max(key.rows, 1)), LANES, ROW_BLOCK, NEAR_BLOCKS)


def _bytes_ahead(key: ScheduleKey, columns: int) -> int:
    """How far ahead a packed weight is fetched: by a panel, so that the next one arrives while the tiles of this one run.

    With the whole panel asked for by the first tile, that one waited for memory, which gives a panel in twice the time of a tile, and the others
    asked for what had come. Each asks for its part now. BERT-base on one core, processor time: 9 rows 16.1 -> 13.6 ms, 16 rows 16.1 -> 14.0, 32 rows
    27.6 -> 24.9, 77 rows 63.6 -> 61.9, 128 rows 102 -> 99.
    """
    panel = panel_bytes(key, columns)
    return panel if panel <= PANEL_MOST else NEAR


def panel_bytes(key: ScheduleKey, columns: int) -> int:
    """What a tile of so many columns reads of a packed weight."""
    return columns * (key.k or 0) * key.dtype.itemsize


def choose(machine: MachineShape, table: Mapping[ScheduleKey, Choice], key: ScheduleKey) -> Chosen:
    """The choice of the table, where it has one; else that of the heuristic."""
    found = table.get(key)
    return Chosen(key, heuristic(machine, key), HEURISTIC) if found is None else Chosen(key, found, TABLE)


def misfit(machine: MachineShape, key: ScheduleKey, choice: Choice) -> str | None:
    """Why a choice cannot be made on such a machine; None when it can."""
    if isinstance(choice, (BlockChoice, FlashChoice)):
        return "it is a choice for GPUs"
    if choice.registers > machine.registers:
        return f"a tile of {choice.tile} holds {choice.registers} vector registers at once, and the target has {machine.registers}"
    if isinstance(choice, TileChoice):
        if key.panel and choice.columns % key.panel and key.panel % choice.columns:
            return f"tiles of {choice.columns} columns do not fit panels of {key.panel}: one has to be a multiple of the other"
        if choice.ahead and not key.panel:
            return "only packed weights are fetched ahead"
        if 0 < choice.ahead < key.dtype.itemsize:
            return f"{choice.ahead} bytes ahead are less than an element"
    return None


def check_table(table: ScheduleTable, misfit: Callable[[ScheduleKey, Choice], str | None]) -> None:
    """``SCHEDULE_TABLE`` with every entry that a machine cannot follow, for the reasons that ``misfit`` has."""
    problems = Collector()
    for entry in table.entries:
        if (reason := misfit(entry.key, entry.choice)) is not None:
            problems.add(Code.SCHEDULE_TABLE, f"{entry.key}: {reason}", Where(file=table.file), HELP)
    problems.check()


def gemm_schedule(choice: TileChoice, most_rows: int | None = None) -> tuple[Move, ...]:
    """Register tiles for the naive nest ``m, n`` of a GEMM.

    The loops are, outermost first: fair chunks of rows (``m.o.o``), panels of B (``n.o``), tiles of rows in the chunk (``m.o.i``), then the
    register tile: rows x vectors of columns x 16 lanes. A panel of B stays in L2 while the tiles of A go by. The two outer loops together are cut
    over the workers: with few rows there is one chunk, and every worker reads its own share of B, once; with many rows each worker has
    chunks of its own. Rows past the end are clamped (computed again, same bits); columns past the end are guarded. ``most_rows`` is the
    number of rows where it is known.
    """
    rows, vectors = choice.rows if most_rows is None else min(choice.rows, max(most_rows, 1)), choice.columns // LANES
    return (
        Split("m", rows, CLAMP),
        Chunk("m.o", max(choice.block // rows, 1)),
        Split("n", choice.columns, GUARD),
        *((Split("n.i", LANES, GUARD),) if vectors > 1 else ()),
        Reorder(("m.o.o", "n.o", "m.o.i", "m.i", *(("n.i.o", "n.i.i") if vectors > 1 else ("n.i",)))),
        Tag("m.o.o", PARALLEL_KIND),
        Tag("n.o", PARALLEL_KIND),
        Tag("m.i", UNROLL),
        *((Tag("n.i.o", UNROLL), Tag("n.i.i", VECTOR)) if vectors > 1 else (Tag("n.i", VECTOR),)),
    )


def expert_schedule() -> tuple[Move, ...]:
    """Several vectors of columns for the naive nest ``rows…, n`` of products by chosen matrices: as many chains of sums side by side, over neighbours
    in memory. Rows have a matrix each, so no tile of rows shares one; parts of columns are cut over the workers as well.

    Measured, Mixtral of 2 layers, 512 wide, 2 of 8 experts of 1024, f32, 2 threads, against one vector and rows alone, best ms: a token 0.66 (2.3),
    128 tokens 109 (225). A LLaMA with as much to compute takes 15 for 128: tokens of one expert do not share what is read of it yet.
    """
    return (
        Split("n", EXPERT_COLUMNS, GUARD),
        Split("n.i", LANES, GUARD),
        Tag("n.o", PARALLEL_KIND),
        Tag("n.i.o", UNROLL),
        Tag("n.i.i", VECTOR),
    )


def dot_schedule(choice: TileChoice, most_rows: int | None = None) -> tuple[Move, ...]:
    """The same for bytes, whose panels are four deep: four k at a time are one DOT step."""
    return (*gemm_schedule(choice, most_rows), Split("k", 4, GUARD), Tag("k.i", DOT))


def prefetch_schedule(weight: str, choice: TileChoice, key: ScheduleKey) -> tuple[Move, ...]:
    """Fetches what lies ``choice.ahead`` bytes further in the weight. Where that is the next panel, each tile of rows fetches its part of it; if
    there is one tile only, it fetches a little ahead of itself where a panel leaves no room for its successor in L2: 3 % less time for 8 rows."""
    if not choice.ahead:
        return ()
    size, panel = key.dtype.itemsize, panel_bytes(key, choice.columns)
    if choice.ahead != panel or choice.columns % key.panel:
        return (Prefetch(weight, choice.ahead // size),)
    return (Prefetch(weight, panel // size, "m.o.i", 0 if panel <= PANEL_LIMIT else NEAR // size),)


PANEL_LIMIT = 200_000  # bytes of a panel that leaves room for the next one: a fifth of L2
PANEL_MOST = 640 << 10  # bytes of a panel beyond which two of them would drive each other out of an L2 of 1 MB
EXPERT_COLUMNS = 128  # that a row takes of its expert at once
BLOCK_ROWS = 6  # of a tile of products by weights in blocks
NEAR_BLOCKS = 4 << 10  # bytes ahead of which their codes are fetched
NEAR = 16 << 10  # bytes ahead of a single tile over panels above PANEL_LIMIT, and of all tiles above PANEL_MOST
#: Most rows of a chunk. All tiles of a chunk go by while a panel of B stays in L2. Two workers take 197 rows (25 tiles of 8) as halves of the panels,
#: which is fair; as two chunks of at most 128 rows they would take 12 and 13 tiles. Measured, BERT-base f32, 2 threads, chunks of 128 / 256 in
#: turn, ms: 197 rows 88.4 / 85.7, 200 rows 87.5 / 86.0, 3 x 128 166 / 163, 512 248 / 247, 128 63.8 / 63.3.
ROW_BLOCK = 256
