"""What stays in f32 where the rest of a program becomes f16.

f16 is what Apple's neural engine computes in, and it ends at 65504. So before anything is rounded the program is executed in f32 on made-up inputs
(``evaluate.py``), the largest magnitude of each tensor is noted, and ops that read or make a larger one stay in f32. So do those that make angles,
which f16 has too few digits for: what sine and cosine read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.emitter import STORED
from trustformers_ir.codegen.export.coreml.evaluate import State, run_function
from trustformers_ir.codegen.export.written import Wide
from trustformers_ir.ir.abi import PIECE, START
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.ir.progress import note

LARGEST = 65504.0  # of f16
UNSEEN = 1e38  # what masks are made of counts as infinite
PROBES = 3  # the last one is long
CALLS = 3  # of a function with states, one after the other


def look_at_ranges(function: Any, module: Module, places: Mapping[str, str], seed: int) -> tuple[tuple[Wide, ...], set[str]]:
    """Tensors beyond f16 on seeded inputs, and the names of the ops that stay in f32 for them and for angles. ``places``: of each op by its name,
    where in the source it comes from."""
    largest: dict[str, float] = {}

    def watch(op: Any, value: np.ndarray) -> None:
        if value.dtype == np.float32:
            magnitude = np.abs(value)
            magnitude = magnitude[magnitude < UNSEEN]
            name = op.outputs[0].name
            largest[name] = max(largest.get(name, 0.0), float(magnitude.max(initial=0.0)))

    constants: State = {}
    main = module.main
    for number in range(PROBES):
        note("looking at ranges", number, PROBES)
        named = zip(argument_names(main), main.args, strict=True)
        states = {name: np.zeros(v.type.concrete({}), np.float16) for name, v in named if v in main.next_states}
        for feeds in _calls(module, np.random.default_rng((seed, number)), number == PROBES - 1):
            run_function(function, feeds, watch, states, constants)
    beyond = {name for name, top in largest.items() if top > LARGEST}
    wide = tuple(Wide(n, largest[n], places.get(n, "")) for n in largest if n in beyond)
    kept = {o.name for op in function.operations for o in op.outputs if op.op_type != "const" and _touches(op, beyond)}
    return wide, _with_codes(function, kept | _angles(function))


def _calls(module: Module, random: np.random.Generator, long: bool) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of one call; of a function with states, of calls that go on where the one before ended, the first with many tokens."""
    main = module.main
    states, read = main.next_states, 0
    most = module.facts.bounds(symbol(PIECE))[1] if states else 0
    for call in range(CALLS if states else 1):
        dims = draw_dims(module, random, {PIECE: 1} if call else None, long)
        if states and read + dims[PIECE] > most:
            return
        drawn = draw_inputs(module, dims, random)
        feeds = {}
        for name, v in zip(argument_names(main), main.args, strict=True):
            if v not in states:
                kind = np.int32 if v.type.dtype is DType.bool else STORED[v.type.dtype]
                feeds[name] = np.asarray(drawn[name]).reshape(np.shape(drawn[name]) or (1,)).astype(kind)
        if states:
            feeds[START] = np.array([read], np.int32)
            read += dims[PIECE]
        yield feeds


def _touches(op: Any, names: set[str]) -> bool:
    return any(o.name in names for o in op.outputs) or any(v.name in names for v in _inputs(op))


def _inputs(op: Any) -> list[Any]:
    flat: list[Any] = []
    for v in op.inputs.values():
        flat += list(v) if isinstance(v, (list, tuple)) else [v]
    return [v for v in flat if v is not None]


def _with_codes(function: Any, kept: set[str]) -> set[str]:
    """And the weights in codes that those read, with all that reads them: products take no cast of such a weight."""
    found = set(kept)
    for op in function.operations:
        if op.op_type.startswith("constexpr"):
            family = [op, *op.outputs[0].child_ops]
            if any(o.name in found for member in family for o in member.outputs):
                found |= {o.name for member in family for o in member.outputs}
    return found


def _angles(function: Any) -> set[str]:
    """What sine and cosine read, back to where it comes from something that is no number of f32, or from a matrix product."""
    found: set[str] = set()
    waiting = [op for op in function.operations if op.op_type in ("sin", "cos")]
    while waiting:
        op = waiting.pop()
        if op.outputs[0].name in found or op.op_type == "const":
            continue
        found |= {o.name for o in op.outputs}
        waiting += [v.op for v in _inputs(op) if v.op is not None and v.op.op_type not in ("linear", "matmul", "gather", "layer_norm", "conv")]
    return found
