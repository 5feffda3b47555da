"""Random graphs over all ops, with a bound on what rounding may do to each value, and random regions in them.

A graph is grown op by op from the samples of the ops: operands are earlier values where one fits, fresh inputs elsewhere. Every value is
evaluated as it is made, several times over: once as it is, and with the results of every inexact op moved within the bounds of
``accuracy.py`` (all up, all down, at random). How far those runs spread is what rounding errors can grow to on the way; an op that makes
them grow without measure, or that is no continuous function of an inexact operand (a comparison, ``floor``, ``argmax`` …), is not taken.

A *wild* graph has NaN and infinities in its inputs, on their way through all ops; where they are must not depend on rounding. It comes besides
with huge inputs, for which f32 overflows where the reference does not: there only regions are compared with single ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from accuracy import POINTWISE, ROUNDED, allowed_error, magnitude_of, ulp, wide

from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import Case, random_array, sample_facts
from trustformers_ir.ir.core import Block, Function, Module, Operation, Value
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.elementwise import CompareOp
from trustformers_ir.ir.ops.reduce import ArgReduceOp
from trustformers_ir.ir.ops.unary import PredicateOp
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.ir.schema import OPS, ConstraintError, FusionKind, InferContext, Op, Sample, infer_types
from trustformers_ir.ir.types import TensorType

QUANTIZE = (ops.QuantizeDynamic, ops.QuantizeStatic)
#: ops that jump: an error in their operand, however small, may change the result altogether
JUMPS = (CompareOp, PredicateOp, ArgReduceOp, ops.TopK, ops.Floor, ops.Ceil, ops.Round, ops.Trunc, ops.Sign, ops.Mod, ops.FloorDiv, *QUANTIZE)
#: where a path may be wide or narrow: vectors of 16, their neighbours, and small numbers
SIZES = (1, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 33)
#: around one and two blocks of keys
LONG_SIZES = (1, 5, 16, 63, 64, 65, 97, 130)
LARGEST = 1e4  # values beyond are not built upon
SPREAD = 1e-2  # relative to the largest element
MOST_ELEMENTS = 20_000
FEWEST = 0.25  # the part of a wild value that is finite; values with less are not built upon
WILD = (np.nan, np.inf, -np.inf)
HUGE = (*WILD, 1e38, -1e38, 3e38, 1e30, -1e20, 6e4, 1e-30, -1e-42, 0.0, -0.0)
RUNS = 4  # perturbed runs beside the plain one


def _native(sample: Sample) -> bool:
    dtype = getattr(sample.op, "dtype", None)
    return not any(t is not None and t.dtype.is_complex for t in sample.types) and not (isinstance(dtype, DType) and dtype.is_complex)


_LEFT_OUT = (ops.WeightOp, ops.Einsum, ops.Pack, ops.MakeComplex)
_FAMILIES = [k for k in OPS.values() if k.fusion is not FusionKind.STRUCTURE and k not in _LEFT_OUT]
OF_ANY_SIZE = [s for s in ops.Attention.samples() if any(t is not None and not t.is_static for t in s.types)]
SAMPLES = [family for family in ([s for s in kind.samples() if _native(s)] for kind in _FAMILIES) if family]


class Misfit(Exception):
    """The drawn op cannot be used here."""


@dataclass(eq=False)
class Traced:
    """A value of the graph with its arrays: the plain one, then the perturbed ones."""

    value: Value
    runs: list[np.ndarray]
    exact: bool
    range: tuple[float | None, float | None] = (None, None)  # of a fresh input
    slack: np.ndarray | float = 0.0  # what the op that made it may be off by itself

    @property
    def tolerance(self) -> np.ndarray | float:
        """How far compiled code may be off: the op's own error and four times the spread of the perturbed runs."""
        if self.exact:
            return 0.0
        base = wide(self.runs[0])
        with np.errstate(invalid="ignore"):
            spread = np.max([np.nan_to_num(np.abs(wide(r) - base)) for r in self.runs[1:]], axis=0)
        return self.slack + 4.0 * spread + 0.5 * spread.max(initial=0.0)


@dataclass
class Binding:
    """Sizes of the symbols, inputs of those sizes, and what the outputs are then."""

    dims: dict[str, int]
    inputs: list[np.ndarray]
    outputs: list[Traced]


@dataclass
class Step:
    """One op of the graph by the numbers of its values."""

    op: Op
    operands: list[int | None]
    types: tuple[TensorType | None, ...]
    results: tuple[TensorType, ...]


@dataclass
class Graph:
    """A module and what it computes for one binding or several."""

    module: Module
    bindings: list[Binding]
    huge: list[tuple[dict[str, int], list[np.ndarray]]]


class Grower:
    """Grows one graph from a seed."""

    def __init__(self, seed: int, wild: bool = False) -> None:
        self.rng = np.random.default_rng([seed, 0x6772, *([1] if wild else [])])
        self.wild = wild
        self.sizes = LONG_SIZES if seed % 3 == 0 else SIZES
        self.block = Block()
        self.module = Module(f"random{seed}", Facts({}))
        self.module.add_function(Function("main", self.block))
        self.build = Builder(self.module, self.block)
        self.values: list[Traced] = []
        self.steps: list[Step] = []
        self.dims: dict[str, int] = {}

    def grow(self) -> Graph:
        """Between 1 and 12 ops. The outputs are the values that nothing uses and some that are used."""
        wanted = int(self.rng.integers(1, 13))
        for _ in range(wanted * 6):
            if len(self.steps) >= wanted:
                break
            try:
                self.add(self.draw())
            except (Misfit, ConstraintError, IndexError):
                continue
        numbers = [n for n, v in enumerate(self.values) if not v.value.uses or self.rng.random() < 0.15]
        self.build.create(ops.Return(), *[self.values[n].value for n in numbers])
        bindings = [self.binding(self.dims, self.values, numbers)]
        if self.dims:
            bindings += self.again(numbers)
        huge = [(b.dims, [sprinkled(a, HUGE, 0.1, self.rng) for a in b.inputs]) for b in bindings] if self.wild else []
        return Graph(self.module, bindings, huge)

    def affordable(self, types: Sequence[TensorType | None], dims: Mapping[str, int]) -> None:
        if any(t is not None and np.prod(t.concrete(dims), dtype=np.int64) > MOST_ELEMENTS for t in types):
            raise Misfit

    def binding(self, dims: dict[str, int], values: Sequence[Traced], outputs: Sequence[int]) -> Binding:
        arguments = {a: n for n, a in enumerate(self.block.args)}
        inputs: list[np.ndarray] = [np.empty(0)] * len(arguments)
        for mine, v in zip(self.values, values, strict=True):
            if mine.value in arguments:
                inputs[arguments[mine.value]] = v.runs[0]
        return Binding(dims, inputs, [values[n] for n in outputs])

    def again(self, outputs: Sequence[int]) -> list[Binding]:
        """The same graph with other sizes, where its ops allow them."""
        dims = {n: size_of(self.module.facts.symbols[n], self.sizes, self.rng) for n in self.dims}
        values: dict[int, Traced] = {}
        steps = iter(self.steps)
        try:
            for n, v in enumerate(self.values):
                if n in values:
                    continue
                if v.value.producer is None:
                    array = self.array(v.value.type, dims, v.range)
                    values[n] = Traced(v.value, [array] * (RUNS + 1), exact=True)
                    continue
                step = next(steps)
                self.affordable((*step.results, *step.types), dims)
                operands = [None if k is None else values[k] for k in step.operands]
                made = self.evaluate(step.op, operands, step.types, step.results, self.module.facts, dims)
                values.update(enumerate(made, n))
        except (Misfit, IndexError):
            return []
        return [self.binding(dims, [values[n] for n in range(len(self.values))], outputs)]

    def draw(self) -> Sample:
        """A sample of a random op, preferably one whose first operand may be a value that some op has made. Long graphs begin with an attention."""
        if self.sizes is LONG_SIZES and not self.steps:
            return OF_ANY_SIZE[int(self.rng.integers(len(OF_ANY_SIZE)))]
        made = {(v.value.type.dtype, v.value.type.rank) for v in self.values if v.value.producer is not None}
        for _ in range(int(self.rng.integers(1, 8))):
            family = SAMPLES[int(self.rng.integers(len(SAMPLES)))]
            close = [s for s in family if s.types and s.types[0] is not None and (s.types[0].dtype, s.types[0].rank) in made]
            if close:
                return close[int(self.rng.integers(len(close)))]
        return family[int(self.rng.integers(len(family)))]

    # -- one op ------------------------------------------------------------------------------------------------------

    def add(self, sample: Sample) -> None:
        facts = sample_facts(sample).symbols
        known = self.module.facts.symbols
        if any(known.get(n, f) != f for n, f in facts.items()):
            raise Misfit
        merged = Facts({**known, **facts})
        dims = {**self.dims, **{n: size_of(f, self.sizes, self.rng) for n, f in facts.items() if n not in self.dims}}
        chosen = self.operands(sample, merged)
        types = tuple(c.value.type if isinstance(c, Traced) else c for c in chosen)
        results = infer_types(sample.op, types, InferContext(merged, {}))
        self.affordable((*results, *types), dims)
        operands = [self.fresh(sample, i, t, dims) if isinstance(t, TensorType) else t for i, t in enumerate(chosen)]
        made = self.evaluate(sample.op, operands, types, results, merged, dims)
        known.update(facts)
        self.dims = dims
        for o in operands:
            if o is not None and o not in self.values:
                o.value = self.block.add_arg(o.value.type, f"x{len(self.block.args)}")
                self.values.append(o)
        operation = self.build.create(sample.op, *[None if o is None else o.value for o in operands])
        self.steps.append(Step(sample.op, [None if o is None else self.values.index(o) for o in operands], types, results))
        for value, traced in zip(operation.results, made, strict=True):
            traced.value = value
            self.values.append(traced)

    def operands(self, sample: Sample, facts: Facts) -> list[Traced | TensorType | None]:
        """Earlier values where they fit, else the types of fresh inputs."""
        plain: list[Traced | TensorType | None] = list(sample.types)
        jumps = isinstance(sample.op, JUMPS) or (isinstance(sample.op, ops.Cast) and not sample.op.dtype.is_float)
        for attempt in range(5):
            chosen = list(plain)
            for i, t in enumerate(sample.types):
                formal = sample.op.operands[min(i, len(sample.op.operands) - 1)]
                if t is None or formal.name in ("indices", "ids"):
                    continue
                fits = [v for v in self.values if v.value.type.dtype is t.dtype and (v.exact or not jumps)]
                if attempt in (1, 2) and i:
                    break  # the others take the shape of the first, or stay what they are
                fits = fits if attempt < 3 else [v for v in fits if v.value.type == t]
                if fits and self.rng.random() < 0.9:
                    chosen[i] = self.pick(fits)
            first = next(((c, t) for c, t in zip(chosen, sample.types, strict=True) if isinstance(c, Traced)), None)
            if first is not None and attempt == 1:
                old, new = first[1], first[0].value.type
                chosen = [new if c == old and isinstance(c, TensorType) else c for c in chosen]
            try:
                infer_types(sample.op, [c.value.type if isinstance(c, Traced) else c for c in chosen], InferContext(facts, {}))
                return chosen
            except ConstraintError:
                continue
        return plain

    def pick(self, fits: list[Traced]) -> Traced:
        """One of the values: nearly always one that an op has made, often the youngest."""
        made = [v for v in fits if v.value.producer is not None]
        if not made or self.rng.random() < 0.1:
            return fits[int(self.rng.integers(len(fits)))]
        return made[-1] if self.rng.random() < 0.5 else made[int(self.rng.integers(len(made)))]

    def fresh(self, sample: Sample, position: int, type: TensorType, dims: Mapping[str, int]) -> Traced:
        name = sample.op.operands[min(position, len(sample.op.operands) - 1)].name
        bounds = sample.low.get(name), sample.high.get(name)
        array = self.array(type, dims, bounds)
        return Traced(Value(type), [array] * (RUNS + 1), exact=True, range=bounds)

    def array(self, type: TensorType, dims: Mapping[str, int], bounds: tuple[float | None, float | None]) -> np.ndarray:
        array = random_array(type, dims, self.rng, *bounds)
        return sprinkled(array, WILD, 0.02, self.rng) if self.wild else array

    # -- values ------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        op: Op,
        operands: Sequence[Traced | None],
        types: tuple[TensorType | None, ...],
        results: tuple[TensorType, ...],
        facts: Facts,
        dims: Mapping[str, int],
    ) -> list[Traced]:
        """The results of all runs, each moved within the op's own bounds."""
        moved = any(o is not None and not o.exact for o in operands)
        cases = [Case(op, types, facts, dims, tuple(None if o is None else o.runs[n] for o in operands)) for n in range(RUNS + 1)]
        plain = cases[0].expected()
        runs = [plain] * (RUNS + 1)
        if moved:
            runs = [plain, *(c.expected() for c in cases[1:])]
        magnitude = magnitude_of(cases[0], plain)
        out: list[Traced] = []
        for k, type in enumerate(results):
            arrays = [r[k] for r in runs]
            if not type.dtype.is_float:
                out.append(Traced(Value(type), arrays, exact=not moved))
                if moved and any(not np.array_equal(a, arrays[0]) for a in arrays):
                    raise Misfit  # it jumped
                continue
            slack = allowed_error(op, type.dtype, arrays[0], magnitude)
            exact = not moved and not slack.any()
            if not exact:
                if moved and (op.mnemonic in ROUNDED or isinstance(op, ops.Cast)):  # rounds something else
                    slack = POINTWISE[type.dtype] * ulp(wide(arrays[0]), type.dtype)
                signs = [0.0, 1.0, -1.0, *(self.rng.choice([-1.0, 1.0], arrays[0].shape) for _ in range(RUNS - 2))]
                arrays = [round_to(wide(a) + s * slack, type.dtype) if n else a for n, (a, s) in enumerate(zip(arrays, signs, strict=True))]
            self.judge(arrays, exact)
            out.append(Traced(Value(type), arrays, exact, slack=slack))
        return out

    def judge(self, arrays: list[np.ndarray], exact: bool) -> None:
        runs = [wide(a) for a in arrays]
        finite = np.isfinite(runs[0])
        if finite.sum() < (FEWEST if self.wild else 1.0) * finite.size or np.abs(runs[0][finite]).max(initial=0.0) > LARGEST:
            raise Misfit
        if not exact:
            if any(not np.isfinite(r[finite]).all() or not np.array_equal(r[~finite], runs[0][~finite], equal_nan=True) for r in runs[1:]):
                raise Misfit
            spread = max(np.abs(r[finite] - runs[0][finite]).max(initial=0.0) for r in runs[1:])
            narrow = DType.from_numpy(arrays[0].dtype) in (DType.f16, DType.bf16)
            if not spread <= (0.1 if narrow else SPREAD) * np.abs(runs[0][finite]).max(initial=0.0):
                raise Misfit


def sprinkled(array: np.ndarray, values: Sequence[float], part: float, rng: np.random.Generator) -> np.ndarray:
    """Floats with some of the values in random places; anything else as it is."""
    if array.dtype.kind in "biu":
        return array
    with np.errstate(over="ignore"):
        return np.where(rng.random(array.shape) < part, rng.choice(values, array.shape), array).astype(array.dtype)


def size_of(fact: SymbolFact, sizes: Sequence[int], rng: np.random.Generator) -> int:
    """A size that the fact admits."""
    fitting = [s for s in sizes if fact.admits(s)] or [s for s in range(fact.low, fact.low + 4 * fact.divisor) if fact.admits(s)]
    return int(fitting[int(rng.integers(len(fitting)))])


# --- regions -----------------------------------------------------------------------------------------------------------------------------

ORDERED = (FusionKind.OPAQUE, FusionKind.WRITE)
ANCHORS = (FusionKind.CONTRACTION, FusionKind.ATTENTION, *ORDERED)


def fuse(module: Module, rng: np.random.Generator) -> bool:
    """Wrap random runs of neighbouring operations into regions. Gives whether a region holds an attention."""
    pending = [o for o in module.main.body.operations if not o.op.terminator]
    attention = False
    while pending:
        run = pending[: int(rng.integers(1, 7))]
        run = run[: legal(run)]
        if len(run) > 1:
            wrap(run)
            attention |= any(isinstance(o.op, ops.Attention) for o in run)
        pending = pending[len(run) :]
    return attention


def legal(run: list[Operation]) -> int:
    """How many of the operations may share a region: one anchor at most, and nothing after an ordered one."""
    anchors = 0
    for n, o in enumerate(run):
        anchors += o.op.fusion in ANCHORS
        if anchors > 1:
            return n
        if o.op.fusion in ORDERED:
            alone = all(not o2.results or all(u in run[: n + 1] for v in o2.results for u in v.users) for o2 in run[:n])
            return n + 1 if alone else max(n, 1)
    return len(run)


def wrap(run: Sequence[Operation]) -> Operation:
    """One region in the place of neighbouring operations."""
    inside = set(run)
    inputs = list(dict.fromkeys(v for o in run for v in o.inputs if v.producer not in inside))
    outputs = [v for o in run for v in o.results if any(u not in inside for u in v.users)]
    body = Block([v.type for v in inputs])
    inner: dict[Value, Value] = dict(zip(inputs, body.args, strict=True))
    for o in run:
        clone = Operation(o.op, [None if v is None else inner[v] for v in o.operands], [r.type for r in o.results], o.loc)
        body.append(clone)
        inner.update(zip(o.results, clone.results, strict=True))
    body.append(Operation(ops.Yield(), [inner[v] for v in outputs], []))
    region = Operation(ops.Fused(), inputs, [v.type for v in outputs], run[-1].loc, body)
    assert run[0].block is not None
    run[0].block.insert_before(run[0], region)
    for old, new in zip(outputs, region.results, strict=True):
        for user, place in list(old.uses):
            if user not in inside:
                user.set_operand(place, new)
    for o in reversed(run):
        o.erase()
    return region
