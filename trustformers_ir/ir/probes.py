"""Inputs made up for a model: what ``verify`` and ``bench`` feed it, and what an exporter looks at ranges with.

Dims are drawn within the facts of their symbols. An integer input that indexes a table stays below its size; other integers are 0 or 1
(masks, token types); floats are normal.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trustformers_ir.ir.core import Module, Value
from trustformers_ir.ir.dtypes import DType, Kind
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.ops.elementwise import Cast
from trustformers_ir.ir.ops.index import Embedding, Gather
from trustformers_ir.ir.ops.shape import MovementOp

LARGEST_DIM = 12
LONG_DIM = 130  # past the blocks of the kernels: 64 keys of attention, 96 rows of a matrix product


def draw_dims(module: Module, random: np.random.Generator, given: Mapping[str, int] | None = None, long: bool = False) -> dict[str, int]:
    """A value for every dim symbol of the module, up to 12; with ``long`` the last one (sequences come last) is about 130."""
    dims = {}
    symbols = module.facts.symbols
    for name, fact in symbols.items():
        stretched = long and name == next(reversed(symbols))
        first = -(-max(fact.low, 1) // fact.divisor) * fact.divisor
        high = min(max(first, LONG_DIM if stretched else LARGEST_DIM), fact.high if fact.high is not None else 1 << 30)
        steps = (high - first) // fact.divisor
        dims[name] = first + fact.divisor * int(random.integers(steps * 3 // 4 if stretched else 0, steps + 1))
    return dims | {k: v for k, v in (given or {}).items() if k in dims}


def draw_inputs(module: Module, dims: Mapping[str, int], random: np.random.Generator) -> dict[str, np.ndarray]:
    """An array for every argument of the main function, by name."""
    function = module.main
    return {name: _draw(a, dims, random) for name, a in zip(argument_names(function), function.args, strict=True)}


def _draw(value: Value, dims: Mapping[str, int], random: np.random.Generator) -> np.ndarray:
    shape, dtype = value.type.concrete(dims), value.type.dtype
    if dtype.kind is Kind.BOOL:
        return random.random(shape) < 0.8
    if dtype.is_integer:
        if "mask" in value.name and len(shape) == 2:  # rows of ones, then padding, as tokenizers make them
            lengths = random.integers(1, shape[1] + 1, size=(shape[0], 1))
            return (np.arange(shape[1]) < lengths).astype(dtype.numpy)
        return random.integers(0, 2 if (bound := _bound(value, dims)) is None else bound, shape).astype(dtype.numpy)
    drawn = random.standard_normal(shape)
    if dtype.is_complex:
        drawn = drawn + 1j * random.standard_normal(shape)
    return drawn.astype(dtype.numpy)


def _bound(value: Value, dims: Mapping[str, int]) -> int | None:
    """The size of the smallest table that ``value`` indexes; None when it indexes none."""
    bounds: list[int | None] = []
    for user, position in value.uses:
        if isinstance(user.op, Embedding) and position == 1:
            bounds.append(_rows(user.operands[0], 0, dims))
        elif isinstance(user.op, Gather) and position == 1:
            bounds.append(_rows(user.operands[0], user.op.axis, dims))
        elif isinstance(user.op, MovementOp | Cast):
            bounds.append(_bound(user.result, dims))
        elif user.body is not None and position < len(user.body.args):
            bounds.append(_bound(user.body.args[position], dims))
    return min((b for b in bounds if b is not None), default=None)


def _rows(table: Value | None, axis: int, dims: Mapping[str, int]) -> int | None:
    return table.type.concrete(dims)[axis] if table is not None else None


def tolerance_of(dtype: DType) -> float:
    """How far outputs of ``dtype`` may lie apart, relative to the largest magnitude in the output, unless the user says otherwise."""
    if not (dtype.is_float or dtype.is_complex):
        return 0.0
    return {DType.bf16: 4e-2, DType.f16: 5e-3, DType.f64: 1e-10, DType.c128: 1e-10}.get(dtype, 2e-5)
