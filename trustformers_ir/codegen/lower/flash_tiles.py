"""The blocks of attention on each kind of GPU, as data.

Nothing here was measured on a GPU. The sizes follow from what was seen in machine code: the largest blocks whose registers are not spilled (a block
of scores and one of results, both in f32), loads of k and v that run ahead by as many blocks as shared memory holds, and, where registers allow
it, two programs on a processor. What a compiler makes of each row is in the golden table (``tests/codegen/golden/triton.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trustformers_ir.codegen.lower.blocks import LEAST, BlockMachine, covering
from trustformers_ir.codegen.program import LAUNCH, Launch
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Operation
from trustformers_ir.ir.dims import Dim, Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import HEURISTIC, TABLE, Choice, Chosen, FlashChoice, ScheduleKey

#: Keys of a program where few queries read many. A constant: were it made of the size of a machine, results would depend on the machine.
CHUNK = 256
FEW = 64  # rows below which a program takes the queries of all heads that read the same keys


@dataclass(frozen=True)
class FlashTile:
    """``queries`` rows and ``keys`` of a block, and how the kernel is launched. ``packed``: the rows of a block are those of all heads that read one
    head of k and v. ``chunk``: the keys are cut into parts of so many, joined by a second kernel; 0: they are not."""

    queries: int
    keys: int
    launch: Launch = LAUNCH
    packed: bool = False
    chunk: int = 0


#: by kind of GPU: the largest head size, blocks for many queries and for few. f16 and bf16.
TILES: dict[str, tuple[tuple[int, FlashTile, FlashTile], ...]] = {
    "ampere": (
        (64, FlashTile(128, 32, Launch(4, 4)), FlashTile(16, 64, Launch(4, 3))),
        (128, FlashTile(128, 64, Launch(8, 3)), FlashTile(16, 64, Launch(4, 2))),
        (256, FlashTile(64, 32, Launch(8, 2)), FlashTile(16, 32, Launch(4, 2))),
    ),
    "hopper": (
        (64, FlashTile(128, 64, Launch(8, 3)), FlashTile(16, 64, Launch(4, 4))),
        (128, FlashTile(128, 128, Launch(8, 2)), FlashTile(16, 64, Launch(4, 3))),
        (256, FlashTile(128, 32, Launch(8, 2)), FlashTile(16, 32, Launch(4, 3))),
    ),
    "cdna": (
        (64, FlashTile(128, 64, Launch(4, 1)), FlashTile(16, 64, Launch(4, 1))),
        (128, FlashTile(128, 64, Launch(4, 1)), FlashTile(16, 64, Launch(4, 1))),
        (256, FlashTile(64, 32, Launch(4, 1)), FlashTile(16, 32, Launch(4, 1))),
    ),
}
#: other dtypes have no matrix instruction that is exact: their blocks are spread over plain registers
EXACT = {DType.f32: FlashTile(32, 32, Launch(8, 2)), DType.f64: FlashTile(16, 16)}
#: Keys of a block where memory says where queries stand: with 128 of them up to 32 bytes are spilled (sm_90, heads of 128).
CACHED = 64
LARGER = FlashTile(LEAST, LEAST)  # for larger heads


def flash_tile(kind: str, o: Operation, facts: Facts) -> FlashTile:
    """The blocks of an attention on a GPU of that kind; of a packed one those for many queries."""
    q, k, v = (x.type for x in o.inputs[:3])
    tile, narrow = _by_size(kind, q.dtype, max(_known(q.shape[-1]), _known(v.shape[-1])))
    if isinstance(o.op, ops.PackedAttention):
        return tile
    if isinstance(o.op, ops.CachedAttention) and tile.keys > CACHED:
        tile = replace(tile, keys=CACHED, launch=Launch(tile.launch.warps, tile.launch.stages + 1))
    group = q.shape[1] // k.shape[1]
    queries, keys = (facts.bounds(x.shape[2])[1] for x in (q, k))
    rows = queries * (group if isinstance(group, int) else 1)
    if rows <= FEW:
        height = min(covering(int(rows)), max(tile.queries, LEAST))
        return replace(narrow, queries=height, packed=True, chunk=CHUNK if keys > CHUNK else 0)
    return replace(tile, queries=tile.queries if queries >= tile.queries else covering(int(queries)))


def choose(machine: BlockMachine, o: Operation, facts: Facts, table: Mapping[ScheduleKey, Choice]) -> tuple[FlashTile, Chosen]:
    """The blocks of an attention: those of the table, where it has some; else those above."""
    q, k, v = (x.type for x in o.inputs[:3])
    tile = flash_tile(machine.kind, o, facts)
    heads = q.shape[1] // k.shape[1] if tile.packed else 0
    queries = None if isinstance(o.op, ops.PackedAttention) else q.shape[2]
    rows = tile.queries if tile.packed else queries
    known = rows if isinstance(rows, int) else None
    key = ScheduleKey("gpu_attention", q.dtype, _known(q.shape[-1]), _known(v.shape[-1]), known, heads if isinstance(heads, int) else 1)
    found = table.get(key)
    if found is None:
        return tile, Chosen(key, FlashChoice(tile.queries, tile.keys, tile.launch.warps, tile.launch.stages), HEURISTIC)
    assert isinstance(found, FlashChoice)
    choice = replace(found, queries=tile.queries if tile.packed else min(found.queries, covering(known) if known else found.queries))
    return replace(tile, queries=choice.queries, keys=choice.keys, launch=Launch(choice.warps, choice.stages)), Chosen(key, choice, TABLE)


def _by_size(kind: str, dtype: DType, features: int) -> tuple[FlashTile, FlashTile]:
    if dtype in EXACT:
        return EXACT[dtype], EXACT[dtype]
    return next(((many, few) for most, many, few in TILES[kind] if features <= most), (LARGER, LARGER))


def _known(size: Dim) -> int:
    assert isinstance(size, int)
    return size
