"""Which choices a GPU can follow, and which ones lie next to a choice: what tables are checked by, and where ``tfc tune`` looks.

What is refused here cannot be, whatever else the kernel does. How many registers and how much shared memory it takes in the end Triton alone knows:
the build refuses what does not fit (``triton/device.py``), the search leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from trustformers_ir.codegen.lower.block_products import fitted, matrix_units, whole
from trustformers_ir.codegen.lower.blocks import LEAST, BlockMachine, power_of_two
from trustformers_ir.ir.schedule_table import TEMPLATES, BlockChoice, Choice, FlashChoice, ScheduleKey

MOST_THREADS = 1024  # of a program
MOST_REGISTERS = 255  # of a thread
GROUPS = (1, 4, 8, 16)
PARTS = (1, 2, 3, 4, 6, 8, 12, 16)

C = TypeVar("C", BlockChoice, FlashChoice)


def misfit(machine: BlockMachine, key: ScheduleKey, choice: Choice) -> str | None:
    """Why a choice cannot be made on such a GPU; None when it can."""
    if not isinstance(choice, (BlockChoice, FlashChoice)):
        return "it is a choice for CPUs"
    if not isinstance(choice, TEMPLATES[key.template]):
        return f"it is no choice for {key.template}"
    threads = choice.warps * machine.warp
    if threads > MOST_THREADS:
        return f"{choice.warps} warps of {machine.warp} threads are more than the {MOST_THREADS} of a program"
    if isinstance(choice, FlashChoice):
        if min(choice.queries, choice.keys) < LEAST:
            return f"blocks have {LEAST} queries and keys at least"
        elements, what = choice.queries * max(choice.keys, key.k or 0), "scores or results"
    elif choice.rows == 1 and key.template != "gpu_linear_blocks":
        if key.rows != 1:
            return "one row at a time is for products of one row"
        elements, what = choice.columns * choice.terms, "products"
    else:
        if min(choice.rows, choice.columns, choice.terms) < LEAST:
            return f"matrix instructions take {LEAST} rows, columns and terms at least"
        if not matrix_units(key.dtype) and (choice.rows, choice.columns, choice.terms) != (LEAST,) * 3:
            return f"without matrix instructions of {key.dtype.name} blocks have {LEAST} rows, columns and terms"
        elements, what = choice.rows * choice.columns, "sums"
    if elements > MOST_REGISTERS * threads:
        return f"each of {threads} threads would hold {elements // threads} {what}, and has {MOST_REGISTERS} registers"
    need = _ahead(key, choice)
    return f"what is fetched ahead takes {need} bytes, and a program has {machine.shared} of shared memory" if need > machine.shared else None


def _ahead(key: ScheduleKey, choice: BlockChoice | FlashChoice) -> int:
    """Bytes that wait in shared memory for their turn of the loop; one turn's with matrix instructions, which read it there."""
    size = key.dtype.itemsize
    if isinstance(choice, FlashChoice):
        return max(choice.stages - 1, 1) * choice.keys * ((key.n or 0) + (key.k or 0)) * size
    if choice.rows == 1:
        return 0
    right = 0.5 if key.template == "gpu_linear_blocks" else size  # codes have 4 bits at least
    return int(max(choice.stages - 1, 1) * choice.terms * (choice.rows * size + choice.columns * right))


def neighbours(machine: BlockMachine, key: ScheduleKey, choice: Choice) -> list[Choice]:
    """Choices that differ from this one in one thing, or in two that balance each other, and that the GPU can follow; the likeliest first."""
    found: list[Choice] = []
    if isinstance(choice, FlashChoice):
        found.extend(_flash(key, choice))
    elif isinstance(choice, BlockChoice):
        found.extend(_real(key, fitted(c, key)) for c in _blocks(machine, key, choice))
    return [c for c in dict.fromkeys(found) if c != choice and misfit(machine, key, c) is None]


def _real(key: ScheduleKey, c: BlockChoice) -> BlockChoice:
    """The choice with as many parts as there are turns of the loop over the terms."""
    turn = c.terms if not key.panel else key.panel * power_of_two(c.terms // key.panel)
    return replace(c, parts=whole(c.parts, None if key.k is None else -(-key.k // turn)))


def _flash(key: ScheduleKey, c: FlashChoice) -> Iterator[FlashChoice]:
    for stages in (c.stages + 1, c.stages - 1):
        yield from _changed(c, stages=stages)
    for warps in (c.warps // 2, c.warps * 2):
        yield from _changed(c, warps=warps)
    for keys, stages in ((c.keys * 2, c.stages), (c.keys // 2, c.stages), (c.keys * 2, c.stages - 1), (c.keys // 2, c.stages + 1)):
        yield from _changed(c, keys=keys, stages=stages)
    if not key.panel:  # else a block has all rows that read the same keys
        for queries, warps in ((c.queries // 2, c.warps), (c.queries // 2, c.warps // 2), (c.queries * 2, c.warps), (c.queries * 2, c.warps * 2)):
            yield from _changed(c, queries=queries, warps=warps)


def _blocks(machine: BlockMachine, key: ScheduleKey, c: BlockChoice) -> Iterator[BlockChoice]:
    for stages in (c.stages + 1, c.stages - 1):
        yield from _changed(c, stages=stages)
    for warps in (c.warps // 2, c.warps * 2):
        yield from _changed(c, warps=warps)
    for columns in (c.columns // 2, c.columns * 2):
        yield from _changed(c, columns=columns)
        yield from _changed(c, columns=columns, warps=c.warps * columns // c.columns)
    for terms in (c.terms // 2, c.terms * 2):
        yield from _changed(c, terms=terms)
        yield from _changed(c, terms=terms, stages=c.stages + (1 if terms < c.terms else -1))
    if c.rows > 1:
        for rows in (c.rows // 2, c.rows * 2):
            yield from _changed(c, rows=rows)
            yield from _changed(c, rows=rows, warps=c.warps * rows // c.rows)
            yield from _changed(c, rows=rows, columns=c.columns * c.rows // rows)
    if c.rows > 1 and key.rows is None:  # many tiles: one program a core makes one after the other, or each has its own
        for programs in (0, machine.cores):
            yield from _changed(c, programs=programs)
    for group in GROUPS:
        yield from _changed(c, group=group)
    if key.rows is not None:  # sums in parts pay where there are few tiles
        for parts in PARTS:
            yield from _changed(c, parts=parts)


def _changed(c: C, **fields: int) -> Iterator[C]:
    """The choice with other fields, where that is one."""
    try:
        yield replace(c, **fields)
    except ValueError:
        return
