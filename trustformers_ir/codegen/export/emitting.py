"""What the writers of graphs (ONNX, Core ML, StableHLO) share: a rule for each op, names, refusals, and sizes that only the run knows.

Sizes come from the inputs: a symbol is the size of an axis of an input, an expression is arithmetic on those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from trustformers_ir.codegen.op_rules import OpRules
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Function, Module, Operation, Value
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.dims import Atom, Dim, SymExpr, as_symbol, evaluate, symbol, symbols_of
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.passes.canonicalize import Canonicalize
from trustformers_ir.passes.constant_fold import ConstantFold
from trustformers_ir.passes.cse import Cse
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import PassManager

PASSES = (Canonicalize(), ConstantFold(), Cse(), Dce())  #: in front of every writer of graphs
X = TypeVar("X")  #: what a value is in the file: a name, or what a builder made


class Unsupported(Exception):
    """An op, or a form of it, that no rule writes; the text says which."""


def canonical(module: Module) -> Module:
    """The module as it is written, whose operations nodes name by their places; changes the module."""
    PassManager(PASSES).run(module)
    return module


def operation_id(number: int, o: Operation) -> str:
    """``12:linear``: the operation that stands at that place of the function that is written; files say so of each node."""
    return f"{number}:{o.op.mnemonic}"


@dataclass(frozen=True)
class Stored:
    """A constant of a file, whose numbers are made when they are written. ``shape`` is that of the array; ``weight``: its name in the checkpoint."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray] = field(compare=False)
    weight: str = ""

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class GraphEmitter(ABC, Generic[X]):
    """The operations of a function as a file has them. ``system``: whose file it is, as a refusal says it; ``page``: where what can be written
    stands; ``rules``: what writes each op, given the emitter and the operation."""

    system: ClassVar[str]
    page: ClassVar[str]
    rules: ClassVar[OpRules[Any]]

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function, self.facts = module, function, module.facts
        self.problems = Collector()
        self._values: dict[Value, X] = {}
        self._taken: dict[str, int] = {}  # and how many numbers have been put behind each
        self._dims: dict[Dim, X] = {}
        self._now: Operation | None = None  # that is being written
        self._id = ""  # of it, as files say it

    # -- what each system has its own way for ------------------------------------------------------------------------------

    @abstractmethod
    def weight(self, name: str) -> X:
        """What a weight is in the file."""

    @abstractmethod
    def size(self, v: Value, axis: int) -> X:
        """The size of an axis of an input, in an array of one."""

    @abstractmethod
    def number(self, value: int) -> X:
        """A size that is known, in an array of one."""

    @abstractmethod
    def arithmetic(self, kind: str, a: X, b: X) -> X:
        """``add``, ``sub``, ``mul``, ``min``, ``max``, ``floordiv`` or ``mod`` of two sizes; the last two as Python rounds."""

    def check(self, o: Operation) -> None:
        """Raise :class:`Unsupported` for what the system has for no op."""

    @abstractmethod
    def stand_ins(self, o: Operation) -> Sequence[X]:
        """What the results of a refused operation are, so that the operations behind it are looked at too."""

    # -- operations --------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write every operation. ``CompilerError`` with all that cannot be written."""
        for number, o in enumerate(self.function.body):
            if o.op.terminator or isinstance(o.op, ops.WeightOp):  # a weight is made where it is read: it may be transposed
                continue
            self._now, self._id = o, operation_id(number, o)
            found = self.rules.get(type(o.op))
            try:
                if found is None:
                    raise Unsupported("there is no rule for it")
                self.check(o)
                made = self.made(found, o)
            except Unsupported as problem:
                self.refuse(o, str(problem))
                made = self.stand_ins(o)
            self._values.update(zip(o.results, made, strict=True))
        self._now, self._id = None, ""
        self.problems.check()

    def made(self, found: Any, o: Operation) -> Sequence[X]:
        """The results of an operation, as its rule writes them: one may be returned bare."""
        results = found(self, o)
        return results if isinstance(results, (list, tuple)) else [results]

    def results(self) -> dict[str, list[str]]:
        """Which results of operations a name is: ``12:linear.0`` is the first of an operation. One that changes nothing has its operand's name."""
        found: dict[str, list[str]] = {}
        for number, o in enumerate(self.function.body):
            for n, v in enumerate(o.results):
                if v in self._values:
                    found.setdefault(self.name(self._values[v]), []).append(f"{operation_id(number, o)}.{n}")
        return found

    def refuse(self, o: Operation, why: str) -> None:
        """Note that an operation cannot be written."""
        types = ", ".join(str(t) for t in o.operand_types)
        where = Where(file=o.loc.file if o.loc else None, line=o.loc.line if o.loc else None, op=o.op.mnemonic)
        message = f"'{o.op.mnemonic}' of {types} cannot be written {self.system}: {why}"
        self.problems.add(Code.CANNOT_EXPORT, message, where, f"{self.page} lists what can be")

    # -- names and values --------------------------------------------------------------------------------------------------

    def name(self, x: X) -> str:
        """What a value is called in the file."""
        return str(x)

    def stem(self, like: str) -> str:
        """A name as the format allows it."""
        return like

    def fresh(self, like: str) -> str:
        """A name that nothing has."""
        name = stem = self.stem(like)
        while name in self._taken:
            self._taken[stem] += 1
            name = f"{stem}_{self._taken[stem]}"
        self._taken[name] = 0
        return name

    def value(self, v: Value) -> X:
        """What a value is in the file. A weight is made where it is first read."""
        if v not in self._values and v.producer is not None and isinstance(v.producer.op, ops.WeightOp):
            self._values[v] = self.weight(v.producer.op.name)
        return self._values[v]

    def weight_of(self, v: Value) -> tuple[str, DType] | None:
        """The weight that a value is, and what it is stored in: its own dtype, or one of 16 bits to which it is cast."""
        o = v.producer
        if o is None or not isinstance(o.op, (ops.WeightOp, ops.Cast)):
            return None
        if isinstance(o.op, ops.WeightOp):
            return o.op.name, v.type.dtype
        (source,), target = o.inputs, o.op.dtype
        found = source.producer
        if found is None or not isinstance(found.op, ops.WeightOp) or target not in HALVES:
            return None
        return (found.op.name, target) if source.type.dtype in (DType.f32, DType.f64) else None

    def operand(self, o: Operation, number: int) -> X:
        """An operand that is there."""
        v = o.operands[number]
        assert v is not None
        return self.value(v)

    # -- sizes -------------------------------------------------------------------------------------------------------------

    def dim(self, d: Dim) -> X:
        """The value of a dim, in an array of one."""
        if isinstance(d, int):
            return self.number(d)
        if d not in self._dims:
            self._dims[d] = self._symbol(d) if as_symbol(d) is not None else self._expression(d)
        return self._dims[d]

    def _symbol(self, d: SymExpr) -> X:
        name = as_symbol(d)
        assert name is not None
        axes = [(v, axis, size) for v in self.function.args for axis, size in enumerate(v.type.shape)]
        for v, axis, size in axes:
            if size == d:
                return self.size(v, axis)
        for v, axis, size in axes:  # s of 3 s + 2, say
            if symbols_of(size) == {name}:
                at = [evaluate(size, {name: n}) for n in (0, 1, 2)]
                step = at[1] - at[0]
                if step > 0 and at[2] - at[1] == step and size == d * step + at[0]:
                    found = self.size(v, axis)
                    found = self.arithmetic("sub", found, self.number(at[0])) if at[0] else found
                    return self.arithmetic("floordiv", found, self.number(step)) if step > 1 else found
        raise Unsupported(f"'{name}' is the size of no input")

    def _expression(self, d: SymExpr) -> X:
        total: X | None = None
        for monomial, factor in d.terms:
            term: X | None = None
            for atom, power in monomial:
                for _ in range(power):
                    part = self._atom(atom)
                    term = part if term is None else self.arithmetic("mul", term, part)
            if term is None:
                term = self.number(factor)
            elif factor != 1:
                term = self.arithmetic("mul", term, self.number(factor))
            total = term if total is None else self.arithmetic("add", total, term)
        assert total is not None
        return total

    def _atom(self, atom: Atom) -> X:
        if atom.kind == "sym":
            return self.dim(symbol(atom.name))
        a, b = (self.dim(x) for x in atom.args)
        return self.arithmetic(atom.kind, a, b)
