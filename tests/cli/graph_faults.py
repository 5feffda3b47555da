"""Faults for graphs, and with them for every format that a graph is written in; and for GGUF files, which are written of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module, Weight

EPSILON = 0.05
NORMS = (ops.LayerNorm, ops.RmsNorm)


def squares(module: Module) -> Iterator[Weight]:
    """Square matrices: those of products, as no table here is one."""
    return (w for w in module.weights.values() if w.type.rank == 2 and w.type.shape[0] == w.type.shape[1])


def _replaced(module: Module, change: Callable[[np.ndarray], np.ndarray]) -> None:
    w = next(squares(module))
    module.weights[w.name] = Weight(w.name, w.type, np.ascontiguousarray(change(np.asarray(w.data))))


def halves_as_pairs(matrix: np.ndarray) -> np.ndarray:
    """Rows 0, n/2, 1, n/2 + 1, …: what is made of a projection by who takes the one layout of rotary embeddings for the other."""
    return np.ascontiguousarray(matrix.reshape(2, len(matrix) // 2, -1).swapaxes(0, 1).reshape(matrix.shape))


def permutation(module: Module) -> None:
    _replaced(module, halves_as_pairs)


def transposed(module: Module) -> None:
    _replaced(module, np.transpose)


def epsilon(module: Module) -> None:
    for o in module.main.body:
        if isinstance(o.op, NORMS):
            o.op = dataclasses.replace(o.op, eps=EPSILON)


def mask(module: Module) -> None:
    """What is not to be seen is seen: what comes later, or padding."""
    for o in module.main.body:
        if isinstance(o.op, ops.Attention):
            o.op = dataclasses.replace(o.op, causal=False)
            if o.operands[3] is not None:
                o.set_operand(3, None)


KINDS: dict[str, Callable[[Module], None]] = {f.__name__: f for f in (permutation, transposed, epsilon, mask)}


def spoiled(module: Module, kind: str) -> Module:
    """A copy with a fault."""
    found = clone_module(module)
    KINDS[kind](found)
    return found


def spoil_gguf(path: Path, kind: str) -> None:
    """The same in a file. Masks are not written there."""
    import gguf

    reader: Any = gguf.GGUFReader(path, "r+")
    if kind == "epsilon":
        (field,) = (f for name, f in reader.fields.items() if name.endswith("_epsilon"))
        field.parts[field.data[0]][0] = EPSILON
    else:
        data = next(t.data for t in reader.tensors if t.name.endswith(("attn_output.weight", "attn_q.weight")) and t.data.shape[0] == t.data.shape[1])
        data[...] = halves_as_pairs(data.copy()) if kind == "permutation" else data.T.copy()
    reader.data.flush()
