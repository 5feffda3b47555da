"""Conformance cases: every sample of every op turned into actual arrays and the results that the reference semantics give.

Whatever claims to implement an op (the interpreter, code generation, an exporter) is run over these::

    for case in cases():
        got = run(case.module(), *case.inputs)
        compare(got, case.expected(), case)

A case has a name, ``linear#3``: the op and the number of its sample. :func:`named` makes it again from that name alone.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import Facts, SymbolFact, SymExpr, symbols_of
from trustformers_ir.ir.dtypes import DType, Kind
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.contract import pack_panels
from trustformers_ir.ir.ops.region import Return
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.schema import OPS, InferContext, Op, Sample, infer_types
from trustformers_ir.ir.types import Panels, TensorType


@dataclass(frozen=True, eq=False)
class Case:
    """One op on actual arrays (None for an absent operand). ``name`` is empty when no sample stands behind it."""

    op: Op
    types: tuple[TensorType | None, ...]
    facts: Facts
    dims: Mapping[str, int]
    arrays: tuple[np.ndarray | None, ...]
    name: str = ""

    @cached_property
    def results(self) -> tuple[TensorType, ...]:
        return infer_types(self.op, self.types, InferContext(self.facts, {}))

    @property
    def inputs(self) -> list[np.ndarray]:
        """The arrays of the operands that are present: the arguments of :meth:`module`."""
        return [a for a in self.arrays if a is not None]

    def expected(self, wide: bool = False) -> tuple[np.ndarray, ...]:
        """The results by the reference semantics."""
        return evaluate_operation(self.op, self.arrays, self.results, self.dims, self.types, wide)

    def module(self) -> Module:
        """A module whose ``main`` applies the op to its arguments and returns all results."""
        module = Module(self.op.mnemonic, self.facts.copy())
        formals = self.op.operands
        names = [f"{formals[min(i, len(formals) - 1)].name}{i}" for i in range(len(self.types))]
        block = Block()
        values = [None if t is None else block.add_arg(t, name) for name, t in zip(names, self.types, strict=True)]
        module.add_function(Function("main", block))
        build = Builder(module, block)
        operation = build.create(self.op, *values)
        build.create(Return(), *operation.results)
        return module

    def __str__(self) -> str:
        operands = ", ".join("none" if t is None else str(t) for t in self.types)
        dims = ", ".join(f"{k}={v}" for k, v in self.dims.items())
        return (f"{self.name} " if self.name else "") + f"{self.op!r}({operands})" + (f" with {dims}" if dims else "")


def cases(ops: Iterable[type[Op]] | None = None, seed: int = 0) -> Iterator[Case]:
    """A case of every sample of the given ops (default: all that have samples)."""
    for kind in OPS.values() if ops is None else ops:
        for number, sample in enumerate(kind.samples()):
            yield dataclasses.replace(make_case(sample, seed + number), name=f"{kind.mnemonic}#{number}")


def named(name: str) -> Case:
    """The case of that name, as :func:`cases` gives it. ``KeyError`` for a name without a case."""
    mnemonic = name.partition("#")[0]
    for case in cases([OPS[mnemonic]]):
        if case.name == name:
            return case
    raise KeyError(name)


def make_case(sample: Sample, seed: int = 0, dims: Mapping[str, int] | None = None) -> Case:
    """Arrays for a sample. The same seed gives the same case; ``dims`` fixes symbols."""
    rng = np.random.default_rng([seed, zlib.crc32(repr((sample.op, sample.types)).encode())])
    facts = sample_facts(sample)
    env = {name: _size(fact, rng) for name, fact in facts.symbols.items()} | dict(dims or {})
    formals = sample.op.operands
    arrays: list[np.ndarray | None] = []
    for i, t in enumerate(sample.types):
        name = formals[min(i, len(formals) - 1)].name
        arrays.append(None if t is None else random_array(t, env, rng, sample.low.get(name), sample.high.get(name)))
    return Case(sample.op, sample.types, facts, env, tuple(arrays))


def sample_facts(sample: Sample) -> Facts:
    """The symbols of a sample's types and attributes, with the facts that it declares."""
    names: set[str] = set()
    for t in sample.types:
        names |= t.symbols if t is not None else set()
    for field in dataclasses.fields(sample.op):
        value = getattr(sample.op, field.name)
        entries = value if isinstance(value, tuple) else (value,)
        names |= symbols_of(*(e for e in entries if isinstance(e, SymExpr)))
    return Facts({name: sample.facts.get(name, SymbolFact()) for name in sorted(names)})


def random_array(
    type: TensorType, dims: Mapping[str, int], rng: np.random.Generator, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """Values between the bounds (integers include both), in the storage shape of the type."""
    shape, dtype = type.concrete(dims), type.dtype
    low = -2.0 if low is None else low
    high = 2.0 if high is None else high
    if dtype.kind is Kind.BOOL:
        array = rng.random(shape) < 0.6
    elif dtype.is_integer:
        low, high = max(int(low), dtype.min), min(int(high), dtype.max)
        array = rng.integers(low, high, shape, endpoint=True).astype(dtype.numpy)
    elif dtype.is_complex:
        array = round_to(rng.uniform(low, high, shape) + 1j * rng.uniform(low, high, shape), dtype)
    else:
        array = round_to(rng.uniform(low, high, shape), dtype)
    return pack_panels(array, type.layout.width, type.layout.depth) if isinstance(type.layout, Panels) else array


def edge_values(dtype: DType) -> np.ndarray:
    """Values of a dtype at which implementations go wrong: signed zeros, infinities, NaN, extremes, the smallest numbers, halves."""
    if dtype.kind is Kind.BOOL:
        return np.array([False, True])
    if dtype.is_integer:
        values = {0, 1, 2, 3, 7, dtype.max, dtype.max - 1, dtype.min, dtype.min + 1} | ({-1, -2, -3, -7} if dtype.is_signed else set())
        return np.array(sorted(values), dtype.numpy)
    if dtype.is_complex:
        part = np.array([0.0, -0.0, 1.0, -2.5, np.inf, np.nan])
        return round_to(np.array([complex(a, b) for a in part for b in part]), dtype)
    tops: dict[DType, tuple[float, float, float]] = {
        DType.f8e4m3: (448.0, 2.0**-6, 2.0**-9),
        DType.f16: (65504.0, 2.0**-14, 2.0**-24),
        DType.bf16: (float.fromhex("0x1.fep127"), 2.0**-126, 2.0**-133),
        DType.f32: (float.fromhex("0x1.fffffep127"), 2.0**-126, 2.0**-149),
        DType.f64: (float.fromhex("0x1.fffffffffffffp1023"), 2.0**-1022, 2.0**-1074),
    }
    magnitudes = [0.0, 0.1, 0.5, 1.0, 1.5, 2.5, 3.0, 10.0, 89.0, 1e4, *tops[dtype], np.inf]
    return round_to(np.array([*magnitudes, *(-m for m in magnitudes), np.nan]), dtype)


def _size(fact: SymbolFact, rng: np.random.Generator) -> int:
    first: Any = -(-fact.low // fact.divisor) * fact.divisor
    last = first + 6 * fact.divisor if fact.high is None else min(fact.high, first + 6 * fact.divisor)
    return int(rng.integers(first // fact.divisor, last // fact.divisor, endpoint=True)) * fact.divisor
