"""The property of a rewrite rule: on random graphs that hold its pattern it fires, and the results keep their bits.

An example is a function of a :class:`Graph` that returns the results. What it draws from the graph (dtypes, shapes, forms of constants) is
random, so one example stands for many graphs. ``FIRES[rule]`` are examples on which the rule must fire, ``NEAR[rule]`` similar graphs on
which it must not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir import interpreter, ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.conformance import edge_values, random_array
from trustformers_ir.ir.core import Block, Function, Location, Module, Value
from trustformers_ir.ir.diagnostics import InternalError
from trustformers_ir.ir.dims import Dim, symbol
from trustformers_ir.ir.dtypes import ANY, DType
from trustformers_ir.ir.ops.data import Literal
from trustformers_ir.ir.rewriting import Applied, Rule, apply_rules
from trustformers_ir.ir.schema import ConstraintError, Op
from trustformers_ir.ir.types import TensorType
from trustformers_ir.ir.verifier import verify_module

Example = Callable[["Graph"], Any]
SEEDS = 16


class NotFired(AssertionError):
    """The rule did not apply to a graph that was made for it."""


class Differs(AssertionError):
    """The results have other bits after the rewrite, or the module is no longer valid."""


class Graph:
    """A function in the making, and the source of everything random in it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.module = Module()
        self.block = Block()
        self.module.add_function(Function("main", self.block))
        self.build = Builder(self.module, self.block, loc=Location("model.py", 1))
        self.dims: dict[str, int] = {}
        self.leads: dict[int, int] = {}
        self.bounds: list[tuple[float, float] | None] = []

    def __call__(self, op: Op, *operands: Value | None) -> Value:
        """One operation, each on a line of its own."""
        self.build.loc = Location("model.py", len(self.block) + 1)
        return self.build(op, *operands)

    def either(self, op: Op, a: Value, b: Value) -> Value:
        """A commutative op with its operands in a random order."""
        assert op.commutative
        return self(op, a, b) if self.coin() else self(op, b, a)

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def pick(self, choices: Iterable[Any]) -> Any:
        """One of the choices. Sets, and dtypes (lists of them are made from sets), are put in order first: one seed is one graph in every process."""
        ordered = list(choices)
        if isinstance(choices, frozenset | set) or all(isinstance(c, DType) for c in ordered):
            ordered.sort(key=str)
        return ordered[int(self.rng.integers(len(ordered)))]

    def symbol(self, name: str) -> Dim:
        if name not in self.dims:
            self.module.facts.declare(name)
            self.dims[name] = int(self.rng.integers(1, 7))
        return symbol(name)

    def size(self) -> Dim:
        """A size of an axis: a number or a symbol."""
        choice = self.pick([1, 2, 3, 5, "n", "m"])
        return choice if isinstance(choice, int) else self.symbol(choice)

    def shape(self, rank: int | None = None) -> tuple[Dim, ...]:
        return tuple(self.size() for _ in range(int(self.rng.integers(0, 4)) if rank is None else rank))

    def arg(
        self, dtype: DType | Collection[DType] = ANY, shape: Sequence[Any] | int | None = None, bounds: tuple[float, float] | None = None
    ) -> Value:
        """An argument. ``shape`` may be a rank; ``bounds`` limit the values (indices, shifts); without them edge values are mixed in."""
        if not isinstance(dtype, DType):
            dtype = self.pick(dtype)
        if shape is None or isinstance(shape, int):
            shape = self.shape(shape)
        for name in sorted(TensorType(tuple(shape), dtype).symbols):
            self.symbol(name)
        self.bounds.append(bounds)
        return self.block.add_arg(TensorType(tuple(shape), dtype), f"x{len(self.block.args)}")

    def other(self, x: Value) -> Value:
        """Another argument of x's dtype whose shape broadcasts with x's."""
        shape = [1 if self.rng.random() < 0.25 else d for d in x.type.shape]
        form = self.rng.random()
        if form < 0.3:
            shape = shape[int(self.rng.integers(len(shape) + 1)) :]
        elif form < 0.5:
            shape = [self.lead(len(shape)), *shape]
        return self.arg(x.type.dtype, shape)

    def lead(self, rank: int) -> int:
        """The size of an axis before so many others: always the same, so that all that is made from one value broadcasts."""
        if any(a.type.rank > rank for a in self.block.args):
            return 1
        return self.leads.setdefault(rank, int(self.rng.integers(1, 4)))

    def splat(self, value: Any, like: Value | DType) -> Value:
        """A constant with one value, in one of the forms in which it may come. ``value`` may be a function of the dtype."""
        dtype, shape = (like, ()) if isinstance(like, DType) else (like.type.dtype, like.type.shape)
        scalar = np.asarray(value(dtype) if callable(value) else value).astype(dtype.numpy)
        form = self.rng.random()
        if form < 0.35:
            return self(ops.Constant(Literal.of(scalar)))
        if form < 0.5:
            return self(ops.Expand(shape), self(ops.Constant(Literal.of(scalar.reshape((1,) * min(1, len(shape)))))))
        static = [d if isinstance(d, int) and self.coin() else 1 for d in shape]
        if form < 0.65:
            static = [self.lead(len(static)), *static]
        return self(ops.Constant(Literal.of(np.full(static, scalar))))

    def constant(self, array: Any, dtype: DType) -> Value:
        return self(ops.Constant(Literal.of(array, dtype)))

    def finish(self, results: Any) -> Module:
        self.build.create(ops.Return(), *(results if isinstance(results, tuple) else (results,)))
        return self.module

    def inputs(self) -> list[np.ndarray]:
        """Random values for the arguments; half of them edge values."""
        out = []
        for a, bounds in zip(self.block.args, self.bounds, strict=True):
            if bounds is not None:
                out.append(random_array(a.type, self.dims, self.rng, *bounds))
                continue
            array = random_array(a.type, self.dims, self.rng, -100, 100)
            values = edge_values(a.type.dtype)
            if a.type.dtype.is_float:  # the special ones more often than the others
                values = np.concatenate([values, *[np.array([0.0, -0.0, np.inf, -np.inf, np.nan]).astype(values.dtype)] * 4])
            edges = self.rng.choice(values, array.shape)
            out.append(np.where(self.rng.random(array.shape) < 0.5, array, edges).astype(array.dtype))
        return out


def graph_of(example: Example, seed: int) -> tuple[Module, list[np.ndarray], dict[str, int]]:
    """The module of an example, inputs for it and the values of its symbols. Equal seeds give equal graphs."""
    g = Graph(seed)
    module = g.finish(example(g))
    return module, g.inputs(), g.dims


def evaluate(module: Module, inputs: Sequence[np.ndarray], dims: dict[str, int]) -> tuple[np.ndarray, ...]:
    out = interpreter.evaluate(module, *inputs, dims=dims)
    return out if isinstance(out, tuple) else (out,)


def bits(array: np.ndarray) -> np.ndarray:
    """The bytes of an array with every NaN written alike: the semantics know one NaN."""
    kind = DType.from_numpy(array.dtype)
    if kind.is_complex:
        array = np.stack([array.real, array.imag])
    if kind.is_float or kind.is_complex:
        array = np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array)
    return np.ascontiguousarray(array).view(np.uint8)


def require_same(before: Sequence[np.ndarray], after: Sequence[np.ndarray], what: str) -> None:
    for x, y in zip(before, after, strict=True):
        if x.dtype != y.dtype or x.shape != y.shape or not np.array_equal(bits(x), bits(y)):
            raise Differs(f"{what}\nbefore: {x!r}\nafter: {y!r}")


def check_graph(rules: Sequence[Rule], example: Example, seed: int, fires: bool | None = True) -> Applied:
    """Applies the rules to a graph and compares the results; ``fires``: the first rule must (True), must not (False), or may (None) fire."""
    module, inputs, dims = graph_of(example, seed)
    text = str(module)
    before = evaluate(module, inputs, dims)
    types = module.main.output_types
    applied = apply_rules(module, rules)
    what = f"{rules[0].name}, seed {seed}:\n{text}\nbecomes\n{module}"
    if fires is True and not applied.applied[rules[0].name]:
        raise NotFired(f"{what}\n{dict(applied.misses)}")
    if fires is False and applied.applied[rules[0].name]:
        raise Differs(f"fires where it must not: {what}")
    violations = verify_module(module)
    if violations or module.main.output_types != types:
        raise Differs(f"{what}\n" + "\n".join(map(str, violations)))
    if any(o.loc is None for o in module.main.body if not o.op.terminator):
        raise Differs(f"an operation has no location: {what}")
    require_same(before, evaluate(module, inputs, dims), what)
    return applied


def seed_of(rule: str, number: int, repeat: int) -> int:
    return zlib.crc32(f"{rule}/{number}/{repeat}".encode())


def check_rule(rule: Rule, fires: Sequence[Example], near: Sequence[Example], seeds: int = SEEDS) -> None:
    """The property, on every example with so many seeds."""
    assert fires, f"the rule '{rule.name}' has no example"
    for number, example in enumerate(fires):
        for repeat in range(seeds):
            check_graph([rule], example, seed_of(rule.name, number, repeat))
    for number, example in enumerate(near, len(fires)):
        for repeat in range(seeds):
            check_graph([rule], example, seed_of(rule.name, number, repeat), fires=False)


def killer(rule: Rule, examples: Sequence[Example], seeds: int = SEEDS) -> str | None:
    """How the property finds out that a rule is wrong: the kind of failure, or None. Not firing is no proof."""
    for number, example in enumerate(examples):
        for repeat in range(seeds):
            try:
                check_graph([rule], example, seed_of(rule.name, number, repeat), fires=None)
            except (Differs, InternalError, ConstraintError) as error:
                return type(error).__name__
    return None
