"""From operations to ops of MIL, the language of ML programs: values, constants, and sizes that are known only when the model runs.

What each op becomes is a rule in ``rules_*.py``. A rule gets an :class:`Emitter` and returns what the builder of ``coremltools`` made, or several; it
makes ops by calling the emitter with the name of one::

    @rule(ops.Silu)
    def _silu(e: Emitter, o: Operation) -> Any:
        return e("silu", x=e.operand(o, 0))

Core ML computes in f32, f16, i32 and bool. Integers of 64 bits become such of 32, bf16 becomes f32; anything else is refused. Inputs and outputs are
arrays of numbers with at least one axis: bool goes in and out as i32, a number as an array of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Function, Module, Operation, Value
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.dims import Atom, Dim, SymExpr, as_symbol, evaluate, symbol, symbols_of
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op

Rule = Callable[["Emitter", Operation], Any]
RULES: dict[type[Op], Rule] = {}
#: what a dtype is in a program
STORED: Mapping[DType, Any] = {
    DType.f32: np.float32, DType.bf16: np.float32, DType.f16: np.float16, DType.i32: np.int32, DType.i64: np.int32, DType.bool: np.bool_,
}  # fmt: skip
WORDS: Mapping[Any, str] = {np.float32: "fp32", np.float16: "fp16", np.int32: "int32", np.bool_: "bool"}
MOST_AXES = 5


class Unsupported(Exception):
    """An op, or a form of it, that no rule writes; the text says which."""


def rule(*kinds: type[Op]) -> Callable[[Rule], Rule]:
    """Register the decorated function as what writes these ops."""

    def register(function: Rule) -> Rule:
        for kind in kinds:
            assert kind not in RULES, f"{kind.__name__} has two rules"
            RULES[kind] = function
        return function

    return register


class Emitter:
    """The ops of a function, in order. Lives inside a function of the builder ``mb``; ``given``: its inputs."""

    def __init__(self, mb: Any, module: Module, function: Function, given: Sequence[Any]) -> None:
        self.mb, self.module, self.function, self.facts = mb, module, function, module.facts
        self.problems = Collector()
        #: of each op by its name, where in the source it comes from
        self.places: dict[str, str] = {}
        self._taken: set[str] = set()
        self._vars: dict[Value, Any] = {}
        self._broken: set[Value] = set()
        self._weights: dict[str, Any] = {}
        self._dims: dict[Dim, Any] = {}
        self._now: Operation | None = None
        self._ports = [self.fresh(str(v.name)) for v in given]
        for value, port in zip(function.args, given, strict=True):
            x = self("squeeze", x=port, axes=[0]) if value.type.rank == 0 else port
            self._vars[value] = self("not_equal", x=x, y=np.int32(0)) if value.type.dtype is DType.bool else x

    # -- the function ------------------------------------------------------------------------------------------------------

    def run(self) -> list[Any]:
        """Writes every operation; the outputs. ``CompilerError`` with all ops that cannot be written."""
        for o in self.function.body:
            if o.op.terminator or isinstance(o.op, ops.WeightOp):  # a weight is made where it is read
                continue
            self._now = o
            found = RULES.get(type(o.op))
            broken = any(v in self._broken for v in o.operands)
            try:
                if found is None:
                    raise Unsupported("there is no rule for it")
                for t in (*o.operand_types, *(r.type for r in o.results)):
                    if t is not None and t.dtype not in STORED:
                        raise Unsupported(f"Core ML computes in no {t.dtype}")
                    if t is not None and t.rank > MOST_AXES:
                        raise Unsupported(f"arrays have at most {MOST_AXES} axes")
                made = () if broken else self._made(found, o)
            except Unsupported as problem:
                self._refuse(o, str(problem))
                broken = True
            if broken:  # said already, of what it reads
                self._broken |= set(o.results)
                continue
            for result, x in zip(o.results, made if isinstance(made, (tuple, list)) else [made], strict=True):
                self._vars[result] = x
        self._now = None
        self.problems.check()
        return [self._output(number, value) for number, value in enumerate(self.function.outputs)]

    def _made(self, found: Rule, o: Operation) -> Any:
        try:
            return found(self, o)
        except (ValueError, TypeError, NotImplementedError) as problem:  # of the builder, which checks what it is given
            raise Unsupported(str(problem).strip().splitlines()[0]) from problem

    def _refuse(self, o: Operation, why: str) -> None:
        types = ", ".join(str(t) for t in o.operand_types)
        where = Where(file=o.loc.file if o.loc else None, line=o.loc.line if o.loc else None, op=o.op.mnemonic)
        message = f"'{o.op.mnemonic}' of {types} cannot be written for Core ML: {why}"
        self.problems.add(Code.CANNOT_EXPORT, message, where, "docs/coreml.md lists what can be")

    def _output(self, number: int, v: Value) -> Any:
        """An output under its own name."""
        x = self.value(v)
        if v.type.dtype is DType.bool:
            x = self("cast", x=x, dtype="int32")
        if v.type.rank == 0:
            x = self("expand_dims", x=x, axes=[0])
        return self.mb.identity(x=x, name=self.fresh(v.name or f"output{number}"))

    # -- ops ---------------------------------------------------------------------------------------------------------------

    def fresh(self, like: str) -> str:
        """A name that nothing has; of letters, digits and underscores, as the format asks."""
        stem = re.sub(r"\W", "_", like, flags=re.ASCII)
        stem = stem if stem and not stem[0].isdigit() else f"_{stem}"
        name, n = stem, 0
        while name in self._taken:
            n += 1
            name = f"{stem}_{n}"
        self._taken.add(name)
        return name

    def __call__(self, op: str, **given: Any) -> Any:
        """An op of MIL."""
        name = self.fresh(self._like() or op)
        o = self._now
        self.places[name] = "" if o is None or o.loc is None else f"{o.loc.file}:{o.loc.line}"
        return getattr(self.mb, op)(name=name, **given)

    def _like(self) -> str:
        """What ops of the operation at hand are called: by its weight, where it has one."""
        o = self._now
        if o is None:
            return ""
        names = [v.producer.op.name for v in o.inputs if v.producer is not None and isinstance(v.producer.op, ops.WeightOp)]
        return f"{names[0].removesuffix('.weight')}.{o.op.mnemonic}" if names else o.op.mnemonic

    def value(self, v: Value) -> Any:
        """What a value is in the program."""
        if v not in self._vars and v.producer is not None and isinstance(v.producer.op, ops.WeightOp):
            name = v.producer.op.name
            if name not in self._weights:
                self._weights[name] = self.mb.const(val=self.stored(self.module.weights[name].data, v.type.dtype), name=self.fresh(name))
            self._vars[v] = self._weights[name]
        return self._vars[v]

    def operand(self, o: Operation, number: int) -> Any:
        """An operand that is there."""
        v = o.operands[number]
        assert v is not None
        return self.value(v)

    def stored(self, array: Any, dtype: DType) -> np.ndarray:
        """Numbers as the program holds them. Refuses integers that 32 bits cannot hold."""
        if dtype not in STORED:
            raise Unsupported(f"Core ML computes in no {dtype}")
        array = np.asarray(array)
        if dtype is DType.i64 and array.size and (array.max() > DType.i32.max or array.min() < DType.i32.min):
            raise Unsupported("Core ML has integers of 32 bits, and a constant is larger")
        return np.ascontiguousarray(array.astype(STORED[dtype])) if array.ndim else np.asarray(array.astype(STORED[dtype]))

    def constant(self, array: Any, dtype: DType) -> Any:
        """A constant."""
        return self.mb.const(val=self.stored(array, dtype), name=self.fresh("constant"))

    def like(self, number: float, v: Value) -> Any:
        """A number in the dtype of ``v``."""
        return STORED[v.type.dtype](number)

    def cast(self, x: Any, source: DType, target: DType) -> Any:
        """The same numbers in another dtype."""
        return x if STORED[source] is STORED[target] else self("cast", x=x, dtype=WORDS[STORED[target]])

    # -- sizes -------------------------------------------------------------------------------------------------------------

    def dim(self, d: Dim) -> Any:
        """``i32[1]``: the value of a dim."""
        if isinstance(d, int):
            return np.array([d], np.int32)
        if d not in self._dims:
            self._dims[d] = self._symbol(d) if as_symbol(d) is not None else self._expression(d)
        return self._dims[d]

    def scalar(self, d: Dim) -> Any:
        """``i32[]``: the value of a dim."""
        return np.int32(d) if isinstance(d, int) else self("squeeze", x=self.dim(d), axes=[0])

    def _size(self, v: Value, axis: int) -> Any:
        return self("slice_by_size", x=self("shape", x=self._vars[v]), begin=[axis], size=[1])

    def _symbol(self, d: SymExpr) -> Any:
        name = as_symbol(d)
        assert name is not None
        for v in self.function.args:
            for axis, size in enumerate(v.type.shape):
                if size == d:
                    return self._size(v, axis)
        for v in self.function.args:  # s of 3 s + 2, say
            for axis, size in enumerate(v.type.shape):
                if symbols_of(size) == {name}:
                    at = [evaluate(size, {name: n}) for n in (0, 1, 2)]
                    step = at[1] - at[0]
                    if step > 0 and at[2] - at[1] == step and size == d * step + at[0]:
                        found = self("sub", x=self._size(v, axis), y=np.int32(at[0]))
                        return self("floor_div", x=found, y=np.int32(step))
        raise Unsupported(f"'{name}' is the size of no input")

    def _expression(self, d: SymExpr) -> Any:
        total: Any = None
        for monomial, factor in d.terms:
            term: Any = None
            for atom, power in monomial:
                for _ in range(power):
                    part = self._atom(atom)
                    term = part if term is None else self("mul", x=term, y=part)
            if term is None:
                term = np.array([factor], np.int32)
            elif factor != 1:
                term = self("mul", x=term, y=np.int32(factor))
            total = term if total is None else self("add", x=total, y=term)
        return total

    def _atom(self, atom: Atom) -> Any:
        if atom.kind == "sym":
            return self.dim(symbol(atom.name))
        a, b = (self.dim(x) for x in atom.args)
        kind = {"min": "minimum", "max": "maximum", "mod": "mod"}.get(atom.kind, "floor_div")
        return self(kind, x=a, y=b)

    def shape(self, dims: Sequence[Dim]) -> Any:
        """``i32[rank]``: a shape."""
        if all(isinstance(d, int) for d in dims):
            return np.array(dims, np.int32)
        parts = [self.dim(d) for d in dims]
        parts = [self.mb.const(val=p, name=self.fresh("constant")) if isinstance(p, np.ndarray) else p for p in parts]
        return parts[0] if len(parts) == 1 else self("concat", values=parts, axis=0)

    def reshape(self, x: Any, source: Sequence[Dim], target: Sequence[Dim]) -> Any:
        """``x`` under another shape. One size that is not known need not be computed."""
        if tuple(source) == tuple(target):
            return x
        if len(target) > MOST_AXES:
            raise Unsupported(f"arrays have at most {MOST_AXES} axes")
        if not target:
            return self("squeeze", x=x)
        plain = [d if isinstance(d, int) else -1 for d in target]
        if plain.count(-1) <= 1:
            return self("reshape", x=x, shape=np.array(plain, np.int32))
        return self("reshape", x=x, shape=self.shape(target))
