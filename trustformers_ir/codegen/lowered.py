"""What artifacts for CPUs and for GPUs have in common: where weights lie, what entries are called, what is told of schedules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trustformers_ir.codegen.program import Program, Storage
from trustformers_ir.ir.abi import WEIGHT_ALIGNMENT, StoredWeight
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.schedule_table import TABLE, Chosen, ScheduleTable, TunedEntry, key_row, parse_table


def stored_weights(module: Module, programs: Sequence[Program], placed: Sequence[StoredWeight] = ()) -> tuple[StoredWeight, ...]:
    """Weights that some kernel reads, page aligned: those that are ``placed`` already stay there, the others follow in order of first use."""
    known = {w.name: w for w in placed}
    names = dict.fromkeys(str(r.key) for p in programs for c in p.calls for r in c.arguments if r.storage is Storage.WEIGHT)
    out: list[StoredWeight] = []
    offset = max((_page(w.offset + w.bytes) for w in placed), default=0)
    for name in names:
        type = module.weights[name].type
        if name in known:
            assert known[name].type == type, "a name is one weight"
            out.append(known[name])
            continue
        size = type.bytes
        assert isinstance(size, int), "weights are static"
        out.append(StoredWeight(name, type, offset, size))
        offset += _page(size)
    return tuple(out)


def _page(size: int) -> int:
    return -(-size // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT


def weight_makers(module: Module, weights: Sequence[StoredWeight]) -> dict[str, Callable[[], np.ndarray]]:
    """What gives the bytes of each weight, when they are asked for."""

    def loader(name: str) -> Callable[[], np.ndarray]:
        weight = module.weights[name]
        return lambda: weight.data

    return {w.name: loader(w.name) for w in weights}


def entry_symbols(programs: Sequence[Program]) -> tuple[str, ...]:
    """The symbol of each function: what C does not allow in a name is written as ``_``, and repeated names are numbered."""
    out: list[str] = []
    for p in programs:
        symbol = "tfir_entry_" + re.sub(r"[^A-Za-z0-9_]", "_", p.name)
        out.append(symbol if symbol not in out else f"{symbol}_{len(out)}")
    return tuple(out)


def schedules(chosen: Mapping[str, Chosen], table: ScheduleTable | None) -> dict[str, object]:
    """What was chosen for each kernel that leaves a choice, by the name of its function, as plain data."""
    used = table is not None and any(c.origin == TABLE for c in chosen.values())
    return {"table": table.file if table is not None and used else None, "kernels": {name: key_row(c) for name, c in chosen.items()}}


def tuned_metadata(kind: str, programs: Sequence[Program]) -> dict[str, str]:
    """The schedules that came from a table for that kind of machine, for whoever makes the same kernels again (``tuned_table``)."""
    found = dict.fromkeys(c.schedule for p in programs for c in p.calls if c.schedule is not None and c.schedule.origin == TABLE)
    entries = tuple(TunedEntry(c.key, c.choice) for c in found)
    return {_tuned_key(kind): ScheduleTable(kind, entries).text} if entries else {}


def tuned_table(metadata: Mapping[str, str], kind: str) -> ScheduleTable | None:
    """The table in the metadata of a manifest: the entries that code for that kind of machine was made with. None when there were none."""
    text = metadata.get(_tuned_key(kind))
    return None if text is None else parse_table(text)


def _tuned_key(kind: str) -> str:
    return f"schedules.{kind}"
