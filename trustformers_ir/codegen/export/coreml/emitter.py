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

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.weights import WeightForm, coded, takes
from trustformers_ir.codegen.export.emitting import GraphEmitter, Unsupported
from trustformers_ir.codegen.op_rules import OpRules
from trustformers_ir.ir import ops
from trustformers_ir.ir.core import Function, Module, Operation, Value
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType

#: reductions that an axis after the other does
FOLDS = (ops.ReduceMax, ops.ReduceMin, ops.ReduceSum, ops.ReduceMean, ops.ReduceProd)
Rule = Callable[["Emitter", Operation], Any]
RULES: OpRules[Rule] = OpRules()
rule = RULES.register
#: what a dtype is in a program
STORED: Mapping[DType, Any] = {
    DType.f32: np.float32, DType.bf16: np.float32, DType.f16: np.float16, DType.i32: np.int32, DType.i64: np.int32, DType.bool: np.bool_,
}  # fmt: skip
WORDS: Mapping[Any, str] = {np.float32: "fp32", np.float16: "fp16", np.int32: "int32", np.bool_: "bool"}
MOST_AXES = 5
MOVED = (ops.Reshape, ops.Transpose, ops.Expand, ops.Unfold)  #: ops that know arrays of more axes


def packed(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape under which an array lies in the program: one of too many axes without those of size 1, the first ones in one where need be."""
    if len(shape) <= MOST_AXES:
        return tuple(shape)
    found = [d for d in shape if d != 1]
    first = max(0, len(found) - MOST_AXES + 1)
    return tuple(found) if len(found) <= MOST_AXES else (math.prod(found[:first], start=1), *found[first:])


def is_folded(v: Value) -> bool:
    """Whether a value is what windows have, of which nothing but one number for each is read: pooling."""
    o = v.op_as(ops.Unfold)
    if o is None or v.type.dtype is DType.bool:
        return False
    count = len(o.op.windows)  # type: ignore[attr-defined]
    inner = tuple(range(v.type.rank - count, v.type.rank))
    return all(
        isinstance(user.op, FOLDS) and not user.op.keepdims and tuple(a % v.type.rank for a in user.op.axes) == inner for user in v.users
    )  # fmt: skip


class Emitter(GraphEmitter[Any]):
    """The ops of a function, in order. Lives inside a function of the builder ``mb``; ``given``: its inputs; ``form``: what matrices are kept in,
    None for numbers. Sizes are ``i32[1]``."""

    system, page, rules = "for Core ML", "docs/coreml.md", RULES

    def __init__(self, mb: Any, module: Module, function: Function, given: Sequence[Any], form: WeightForm | None = None) -> None:
        super().__init__(module, function)
        self.mb, self.form = mb, form
        #: of each op by its name, where in the source it comes from
        self.places: dict[str, str] = {}
        self._weights: dict[str, Any] = {}
        self._ports = [self.fresh(str(v.name)) for v in given]
        #: where what a state is after the call goes
        self._kept = {after: port for (_, after), port in zip(function.next_states.items(), given[len(given) - function.states :], strict=True)}
        for value, port in zip(function.args, given, strict=True):
            if value in function.next_states:
                self._values[value] = self("read_state", input=port)
                continue
            x = self("squeeze", x=port, axes=[0]) if value.type.rank == 0 else port
            self._values[value] = self("not_equal", x=x, y=np.int32(0)) if value.type.dtype is DType.bool else x

    # -- the function ------------------------------------------------------------------------------------------------------

    def run(self) -> list[Any]:
        """Writes every operation; the outputs. ``CompilerError`` with all ops that cannot be written."""
        self.write()
        results = self.function.outputs[: len(self.function.outputs) - self.function.states]
        return [self._output(number, value) for number, value in enumerate(results)]

    def check(self, o: Operation) -> None:
        for v in (*o.inputs, *o.results):
            t = v.type
            if t.dtype not in STORED:
                raise Unsupported(f"Core ML computes in no {t.dtype}")
            if t.rank > MOST_AXES and not isinstance(o.op, MOVED) and not is_folded(v):
                raise Unsupported(f"arrays have at most {MOST_AXES} axes")

    def stand_ins(self, o: Operation) -> list[None]:
        return [None] * len(o.results)  # the builder takes nothing that was not built

    def made(self, found: Rule, o: Operation) -> Sequence[Any]:
        if any(v in self._values and self._values[v] is None for v in o.operands if v is not None):  # said already, of what it reads
            return self.stand_ins(o)
        try:
            made = super().made(found, o)
            if o.results and o.results[0] in self._kept:  # what is read from then on is what the state holds
                made = [self("coreml_update_state", state=self._kept[o.results[0]], value=made[0])]
            return made
        except (ValueError, TypeError, NotImplementedError) as problem:  # of the builder, which checks what it is given
            raise Unsupported(str(problem).strip().splitlines()[0]) from problem

    def _output(self, number: int, v: Value) -> Any:
        """An output under its own name."""
        x = self.value(v)
        if v.type.dtype is DType.bool:
            x = self("cast", x=x, dtype="int32")
        if v.type.rank == 0:
            x = self("expand_dims", x=x, axes=[0])
        return self.mb.identity(x=x, name=self.fresh(v.name or f"output{number}"))

    # -- ops ---------------------------------------------------------------------------------------------------------------

    def stem(self, like: str) -> str:
        """Of letters, digits and underscores, as the format asks."""
        stem = re.sub(r"\W", "_", like, flags=re.ASCII)
        return stem if stem and not stem[0].isdigit() else f"_{stem}"

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

    def weight(self, name: str) -> Any:
        if name not in self._weights:
            w = self.module.weights[name]
            array = self.stored(w.data, w.type.dtype)
            if self.form is not None and takes(w.type.dtype, array.shape):
                self._weights[name] = self._coded(name, array, self.form)
            else:
                self._weights[name] = self.mb.const(val=array, name=self.fresh(name))
        return self._weights[name]

    def _coded(self, name: str, array: np.ndarray, form: WeightForm) -> Any:
        """A weight in codes."""
        from coremltools.converters.mil.mil import types

        found = coded(form, array)
        packed = {"int4": types.np_int4_dtype, "palette4": types.np_uint4_dtype}.get(form.value)
        operands = {k: v.astype(packed) if k == found.packed else v for k, v in found.operands.items()}
        return getattr(self.mb, found.op)(name=self.fresh(name), **operands)

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

    def scalar(self, d: Dim) -> Any:
        """``i32[]``: the value of a dim."""
        return np.int32(d) if isinstance(d, int) else self("squeeze", x=self.dim(d), axes=[0])

    def size(self, v: Value, axis: int) -> Any:
        return self("slice_by_size", x=self("shape", x=self._values[v]), begin=[axis], size=[1])

    def number(self, value: int) -> Any:
        return np.array([value], np.int32)

    def arithmetic(self, kind: str, a: Any, b: Any) -> Any:
        return self({"min": "minimum", "max": "maximum", "floordiv": "floor_div"}.get(kind, kind), x=a, y=b)

    def shape(self, dims: Sequence[Dim]) -> Any:
        """``i32[rank]``: a shape."""
        if all(isinstance(d, int) for d in dims):
            return np.array(dims, np.int32)
        parts = [self.dim(d) for d in dims]
        parts = [self.mb.const(val=p, name=self.fresh("constant")) if isinstance(p, np.ndarray) else p for p in parts]
        return parts[0] if len(parts) == 1 else self("concat", values=parts, axis=0)

    @property
    def has_states(self) -> bool:
        """Whether what came with them (iOS 18) can be said."""
        return bool(self.function.states)

    def reshape(self, x: Any, source: Sequence[Dim], target: Sequence[Dim]) -> Any:
        """``x`` under another shape. One size that is not known need not be computed."""
        source, target = packed(source), packed(target)
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

    def spread(self, x: Any, source: Sequence[Dim], target: Sequence[Dim]) -> Any:
        """``x`` of a shape as one of a wider shape, its numbers repeated."""
        pairs: list[tuple[Dim, Dim]] = list(zip((*(1 for _ in range(len(target) - len(source))), *source), target, strict=True))
        if len(target) > MOST_AXES:
            pairs = [(a, b) for a, b in pairs if b != 1]
        if len(pairs) > MOST_AXES:
            raise Unsupported(f"arrays have at most {MOST_AXES} axes")
        full = tuple(a for a, _ in pairs)
        y = x if full == tuple(source) else self.reshape(x, source, full)
        return y if all(a == b for a, b in pairs) else self("tile", x=y, reps=self.shape([1 if a == b else b for a, b in pairs]))
