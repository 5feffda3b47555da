"""From operations to nodes: names of values, constants, and sizes that are known only when the model runs.

What each op becomes is a rule in ``rules_*.py``. A rule gets an :class:`Emitter` and returns the name of its result, or several; it makes nodes by
calling the emitter with the name of an ONNX op::

    @rule(ops.Rsqrt)
    def _rsqrt(e: Emitter, o: Operation) -> str:
        return e("Reciprocal", e("Sqrt", e.operand(o, 0)))

Not every ONNX op takes every dtype. What each takes is in the schemas of the package ``onnx``: where a node's dtype is missing there, it is computed
in the next one that is there and wider, between two casts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.emitting import GraphEmitter, Stored, Unsupported
from trustformers_ir.codegen.op_rules import OpRules
from trustformers_ir.ir.core import Function, Module, Operation, Value, Weight
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.rounding import round_to

Rule = Callable[["Emitter", Operation], "str | Sequence[str]"]
RULES: OpRules[Rule] = OpRules()
rule = RULES.register
#: what ONNX calls a dtype (``TensorProto.DataType``)
ELEMENTS: Mapping[DType, int] = {
    DType.f32: 1, DType.u8: 2, DType.i8: 3, DType.u16: 4, DType.i16: 5, DType.i32: 6, DType.i64: 7, DType.bool: 9, DType.f16: 10, DType.f64: 11,
    DType.u32: 12, DType.u64: 13, DType.bf16: 16, DType.f8e4m3: 17,
}  # fmt: skip
UINT4, INT4 = 21, 22  #: integers of 4 bits, which no dtype of ours is
OLDEST, NEWEST, USUAL = 18, 24, 20  # operator sets
DTYPES = {number: dtype for dtype, number in ELEMENTS.items()}
#: how ONNX writes the dtype of a tensor
_WORDS: Mapping[DType, str] = {
    dtype: f"tensor({word})"
    for dtype, word in {
        DType.f32: "float", DType.u8: "uint8", DType.i8: "int8", DType.u16: "uint16", DType.i16: "int16", DType.i32: "int32", DType.i64: "int64",
        DType.bool: "bool", DType.f16: "float16", DType.f64: "double", DType.u32: "uint32", DType.u64: "uint64", DType.bf16: "bfloat16",
        DType.f8e4m3: "float8e4m3fn",
    }.items()
}  # fmt: skip
#: what a dtype is computed in instead, the first choice first
_WIDER: Mapping[DType, tuple[DType, ...]] = {
    DType.f8e4m3: (DType.f16, DType.f32), DType.bf16: (DType.f32,), DType.f16: (DType.f32,), DType.f64: (DType.f32,),
    **dict.fromkeys((DType.i8, DType.u8, DType.i16, DType.u16), (DType.i32, DType.i64)),
    DType.bool: (DType.u8, DType.i32), DType.i32: (DType.i64,), DType.u32: (DType.i64, DType.u64),
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A node as it will be written. ``place``: where in the source it comes from. ``operation``: the operation of the graph that it is a part of,
    as :func:`operation_id` names it."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    place: str = ""
    operation: str = ""


@dataclass(frozen=True)
class Nibbles(Stored):
    """An initializer of 4-bit integers, ``UINT4`` or ``INT4``; ``make`` gives its bytes, each with two elements."""

    element: int = UINT4

    @property
    def bytes(self) -> int:
        return -(-int(np.prod(self.shape, dtype=np.int64)) // 2)


class Emitter(GraphEmitter[str]):
    """Nodes and initializers of a function, in order. A value is the name of a tensor; sizes are ``i64[1]``."""

    system, page, rules = "as ONNX", "docs/onnx_export.md", RULES

    def __init__(self, onnx: Any, module: Module, function: Function, opset: int) -> None:
        super().__init__(module, function)
        self.onnx, self.opset = onnx, opset
        self.nodes: list[Node] = []
        self.stored: dict[str, Stored] = {}
        self._dtypes: dict[str, DType] = {}
        self._schemas: dict[str, Any] = {}
        self._constants: dict[tuple[object, ...], str] = {}
        self._weights: dict[tuple[str, bool, DType], str] = {}
        self._packed: dict[tuple[str, int], str] = {}
        self.inputs = [self._named(v, v.name or f"input{i}") for i, v in enumerate(function.args)]

    # -- the function ------------------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Writes every operation; the names of the outputs. ``CompilerError`` with all ops that cannot be written."""
        self.write()
        return self._outputs()

    def check(self, o: Operation) -> None:
        if any(t is not None and t.dtype not in ELEMENTS for t in (*o.operand_types, *(r.type for r in o.results))):
            raise Unsupported("ONNX has no such dtype")

    def stand_ins(self, o: Operation) -> list[str]:
        return [self.fresh(o.op.mnemonic) for _ in o.results]

    def _outputs(self) -> list[str]:
        """The outputs under their own names: of nodes, or of copies where a value is an input, a weight, or handed out twice."""
        made = {x for node in self.nodes for x in node.outputs}
        names: list[str] = []
        renamed: dict[str, str] = {}
        for number, value in enumerate(self.function.outputs):
            source, name = self.value(value), self.fresh(value.name or f"output{number}")
            names.append(name)
            if source in made and source not in renamed:
                renamed[source] = name
            else:
                self.nodes.append(Node("Identity", (source,), (name,), name=f"Identity_{len(self.nodes)}"))

        def new(given: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(renamed.get(x, x) for x in given)

        self.nodes[:] = [replace(node, inputs=new(node.inputs), outputs=new(node.outputs)) for node in self.nodes]
        self._values = {v: renamed.get(name, name) for v, name in self._values.items()}
        return names

    # -- names -------------------------------------------------------------------------------------------------------------

    def _named(self, value: Value, like: str) -> str:
        name = self._values[value] = self.fresh(like)
        self._dtypes[name] = value.type.dtype
        return name

    # -- nodes -------------------------------------------------------------------------------------------------------------

    def __call__(self, op: str, *inputs: str | None, **attributes: Any) -> str:
        """A node with one output; the name of that. Attributes that are None are left out."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, outputs: int, *inputs: str | None, **attributes: Any) -> tuple[str, ...]:
        """A node with so many outputs."""
        given = ["" if x is None else x for x in inputs]
        while given and not given[-1]:
            del given[-1]
        kept = {k: v for k, v in attributes.items() if v is not None}
        schema = self._schema(op)
        dtypes = self._bound(schema, given)
        instead = {t: self._legal(schema, t, dtype) for t, dtype in dtypes.items()}
        for n, x in enumerate(given):
            t = _formal(schema.inputs, n).type_str
            if x and t in instead and instead[t] is not dtypes[t]:
                given[n] = self._node("Cast", [x], {"to": ELEMENTS[instead[t]]}, [instead[t]])[0]
        made: list[DType | None] = []
        wanted: list[DType | None] = []
        for n in range(outputs):
            t = _formal(schema.outputs, n).type_str
            found = instead.get(t) or next((d for d, w in _WORDS.items() if w == t), None)
            made.append(DTYPES[kept["to"]] if "to" in kept else found)
            wanted.append(dtypes.get(t, made[-1]))
        names = self._node(op, given, kept, made)
        for n, (have, want) in enumerate(zip(made, wanted, strict=True)):
            if have is not None and want is not None and have is not want:
                names[n] = self._node("Cast", [names[n]], {"to": ELEMENTS[want]}, [want])[0]
        return tuple(names)

    def _node(self, op: str, inputs: Sequence[str], attributes: Mapping[str, Any], dtypes: Sequence[DType | None]) -> list[str]:
        o = self._now
        names = [self.fresh(o.op.mnemonic if o is not None else op.lower()) for _ in dtypes]
        self._dtypes |= {name: d for name, d in zip(names, dtypes, strict=True) if d is not None}
        place = str(o.loc) if o is not None and o.loc is not None else ""
        self.nodes.append(Node(op, tuple(inputs), tuple(names), attributes, f"{op}_{len(self.nodes)}", place, self._id))
        return names

    def _schema(self, op: str) -> Any:
        if op not in self._schemas:
            self._schemas[op] = self.onnx.defs.get_schema(op, self.opset)
        return self._schemas[op]

    def _bound(self, schema: Any, inputs: Sequence[str]) -> dict[str, DType]:
        """What the type parameters of an op are for these inputs."""
        found: dict[str, DType] = {}
        for n, x in enumerate(inputs):
            if x in self._dtypes:
                found.setdefault(_formal(schema.inputs, n).type_str, self._dtypes[x])
        return found

    def _legal(self, schema: Any, parameter: str, dtype: DType) -> DType:
        """The dtype in which an op is computed: its own, where the op takes that."""
        allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == parameter), None)
        if allowed is None or _WORDS[dtype] in allowed:
            return dtype
        for wider in _WIDER.get(dtype, ()):
            if _WORDS[wider] in allowed:
                return wider
        raise Unsupported(f"{schema.name} takes no {dtype}")

    def constant(self, value: Any, dtype: DType) -> str:
        """A small constant, each once."""
        array = np.asarray(value, dtype.numpy)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.fresh("constant")
            self._store(Stored(name, dtype, array.shape, lambda: array))
        return self._constants[key]

    def _store(self, s: Stored) -> None:
        self.stored[s.name], self._dtypes[s.name] = s, s.dtype

    def like(self, value: float, v: Value) -> str:
        """A scalar in the dtype of ``v``."""
        return self.constant(value, v.type.dtype)

    def cast(self, name: str, source: DType, target: DType) -> str:
        """The same numbers in another dtype."""
        return name if source is target else self("Cast", name, to=ELEMENTS[target])

    def weight(self, name: str, transposed: bool = False, dtype: DType | None = None) -> str:
        """The initializer of a weight; ``transposed``: its last two axes change places; ``dtype``: rounded to it on its way to the file."""
        w = self.module.weights[name]
        key = (name, transposed, w.type.dtype if dtype is None else dtype)
        if key not in self._weights:
            shape = tuple(int(d) for d in w.type.shape)  # type: ignore[arg-type]
            shape = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
            given = self._weights[key] = self.fresh(name)
            self._store(Stored(given, key[2], shape, _reader(w, transposed, key[2])))
        return self._weights[key]

    def packed(self, weight: str, element: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> str:
        """The initializer of 4-bit integers that are made of a weight."""
        if (weight, element) not in self._packed:
            name = self._packed[weight, element] = self.fresh(weight)
            self.stored[name] = Nibbles(name, DType.u8, shape, make, element=element)
        return self._packed[weight, element]

    def typed(self, name: str, dtype: DType) -> str:
        """The name, of whose dtype the schema of its op does not tell."""
        self._dtypes[name] = dtype
        return name

    # -- sizes -------------------------------------------------------------------------------------------------------------

    def size(self, v: Value, axis: int) -> str:
        return self("Shape", self._values[v], start=axis, end=axis + 1)

    def number(self, value: int) -> str:
        return self.constant([value], DType.i64)

    def arithmetic(self, kind: str, a: str, b: str) -> str:
        if kind not in ("floordiv", "mod"):
            return self(kind.capitalize(), a, b)
        rest = self("Mod", a, b)  # of the sign of b
        return rest if kind == "mod" else self("Div", self("Sub", a, rest), b)

    def shape(self, dims: Sequence[Dim]) -> str:
        """``i64[rank]``: a shape."""
        if all(isinstance(d, int) for d in dims):
            return self.constant(np.array(dims, np.int64), DType.i64)
        runs: list[str] = []
        for whole, values in _runs(dims):
            runs += [self.constant(values, DType.i64)] if whole else [self.dim(d) for d in values]
        return runs[0] if len(runs) == 1 else self("Concat", *runs, axis=0)

    def reshape(self, x: str, source: Sequence[Dim], target: Sequence[Dim]) -> str:
        """``x`` under another shape; sizes that stay where they are, and one other, need not be computed."""
        if tuple(source) == tuple(target):
            return x
        if all(isinstance(d, int) for d in target) and 0 not in target:
            return self("Reshape", x, self.constant(np.array(target, np.int64), DType.i64))
        plain: list[int] = []
        for n, d in enumerate(target):
            if isinstance(d, int):
                plain.append(d)
            else:
                plain.append(0 if n < len(source) and source[n] == d else -1)
        sure = all(self.facts.bounds(d)[0] >= 1 for d in (*source, *target))  # of an empty array nothing can be inferred
        if plain.count(-1) <= 1 and sure:
            return self("Reshape", x, self.constant(np.array(plain, np.int64), DType.i64))
        return self("Reshape", x, self.shape(target), allowzero=1)


def _formal(formals: Sequence[Any], number: int) -> Any:
    """A parameter of an op; the last one may stand for any number."""
    return formals[min(number, len(formals) - 1)]


def _runs(dims: Sequence[Dim]) -> Iterator[tuple[bool, list[Any]]]:
    """Neighbouring numbers, and others."""
    run: list[Any] = []
    whole: bool | None = None
    for d in dims:
        kind = isinstance(d, int)
        if whole is not None and kind is not whole:
            yield whole, run
            run = []
        whole = kind
        run.append(d)
    if whole is not None:
        yield whole, run


def _reader(weight: Weight, transposed: bool, dtype: DType) -> Callable[[], np.ndarray]:
    return lambda: round_to(weight.data.swapaxes(-1, -2) if transposed else weight.data, dtype)
