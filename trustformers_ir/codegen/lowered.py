"""What artifacts for CPUs and for GPUs have in common: where weights lie, and what entries are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from trustformers_ir.codegen.program import Program, Storage
from trustformers_ir.ir.abi import WEIGHT_ALIGNMENT, StoredWeight
from trustformers_ir.ir.core import Module


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
