"""Inputs made up for a model: what ``verify`` and ``bench`` feed it, and what an exporter looks at ranges with.

Dims are drawn within the facts of their symbols. An integer input that indexes a table stays below its size; other integers are 0 or 1
(masks, token types); floats are normal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.core import Module, Value
from trustformers_ir.ir.dtypes import Kind
from trustformers_ir.ir.interpreter import argument_names
from trustformers_ir.ir.ops.elementwise import Cast
from trustformers_ir.ir.ops.index import Embedding, Gather
from trustformers_ir.ir.ops.shape import MovementOp

LARGEST_DIM = 12
LONG_DIM = 130  # past the blocks of the kernels: 64 keys of attention, 96 rows of a matrix product
LONGEST_DIM = 512  # up to which the reference semantics take seconds


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
        if _is_mask(value):
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


# -- probes of `tfc verify` -------------------------------------------------------------------------------------------------


Change = Callable[[str, Value, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Probe:
    """Inputs with the name under which reports speak of them, and the sizes of the dims."""

    name: str
    dims: Mapping[str, int]
    arrays: Mapping[str, np.ndarray]

    @property
    def elements(self) -> int:
        return sum(a.size for a in self.arrays.values())


def make_probes(module: Module, seeded: int, seed: int) -> list[Probe]:
    """So many seeded probes, edges and a long one; what a module has no place for (a mask, ids, open dims) is left out.

    ``seeded``: dims of up to 12. ``long``: the last dim is about 130, the others as small as they may be. ``smallest``: every dim as small as it may
    be, a batch of 1, a text of 1.
    ``padding``: a batch of at least 2 whose first row is nothing but padding. ``first ids``, ``last ids``: all ids are the smallest, the largest that
    their tables have. ``longest``: a batch of 1 of the greatest length that the facts allow, where that is at most 512.
    """
    found: list[Probe] = []

    def add(name: str, dims: Mapping[str, int], random: np.random.Generator, change: Change = lambda name, a, x: x) -> None:
        arrays = draw_inputs(module, dims, random)
        for given, a in zip(argument_names(module.main), module.main.args, strict=True):
            arrays[given] = change(given, a, arrays[given])
        found.append(Probe(name, dims, arrays))

    for number in range(seeded):
        random = np.random.default_rng((seed, number))
        add(f"seeded {number}", draw_dims(module, random), random)
    random = np.random.default_rng((seed, 1 << 20))
    symbols = module.facts.symbols
    if symbols:
        smallest = {name: -(-max(f.low, 1) // f.divisor) * f.divisor for name, f in symbols.items()}
        last = next(reversed(symbols))
        add("long", smallest | {last: draw_dims(module, random, long=True)[last]}, random)
        add("smallest", smallest, random)
        high = symbols[last].high
        if high is not None and LONG_DIM < high <= LONGEST_DIM:
            add("longest", smallest | {last: high // symbols[last].divisor * symbols[last].divisor}, random)
    dims = draw_dims(module, random)
    named = list(zip(argument_names(module.main), module.main.args, strict=True))
    if symbols and any(_is_mask(a) for _, a in named):
        first = next(iter(symbols))
        high = symbols[first].high
        wide = dims if dims[first] > 1 or high == 1 else dims | {first: max(2, symbols[first].divisor)}
        add("padding", wide, random, lambda name, a, x: np.where(np.arange(len(x))[:, None] == 0, 0, x).astype(x.dtype) if _is_mask(a) else x)
    if any(_bound(a, dims) is not None for _, a in named):
        add("first ids", dims, random, lambda name, a, x: x if _bound(a, dims) is None or _is_mask(a) else np.zeros_like(x))
        add("last ids", dims, random, lambda name, a, x: x if (n := _bound(a, dims)) is None or _is_mask(a) else np.full_like(x, n - 1))
    return found


def _is_mask(value: Value) -> bool:
    """Whether an argument says which tokens of a row are there: rows of ones, then padding, as tokenizers make them."""
    return "mask" in value.name and value.type.rank == 2 and value.type.dtype.is_integer
