"""An ONNX model as a module: nodes in order, each by the rule of its op; functions and graphs within nodes are read in place.

What decides over shapes or structure has to be known while the model is read: constants, sizes (which stay symbolic), and what follows from them.
Where it depends on an input, that input is *frozen* to its example: it stays an input of the module, which checks at every call that its value is
the one it was compiled for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trustformers_ir.frontend.names import unique_name
from trustformers_ir.frontend.onnx import rules
from trustformers_ir.frontend.onnx.arithmetic import folded
from trustformers_ir.frontend.onnx.budget import Budget
from trustformers_ir.frontend.onnx.elements import ELEMENTS, STRING, Element, held
from trustformers_ir.frontend.onnx.node import RULES, Node
from trustformers_ir.frontend.onnx.reader import OnnxFile
from trustformers_ir.frontend.onnx.schemas import came_later, expansion, standard
from trustformers_ir.frontend.onnx.values import SMALL, Failed, Item, Missing, Refused, Row, Unknown, text_of
from trustformers_ir.ir import ops
from trustformers_ir.ir.binding import Shaped, bind_dims
from trustformers_ir.ir.core import Block, Function, Location, Module, Operation, Value, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dims import Dim, SymbolFact, SymExpr, UndecidedDim, symbol, symbols_of
from trustformers_ir.ir.dims import evaluate as evaluate_dim
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.ir.ops.region import Return
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.schema import ConstraintError, Op, infer_types
from trustformers_ir.ir.tensor import Tensor, as_tensor
from trustformers_ir.ir.tracing import Trace, tracing
from trustformers_ir.ir.types import TensorType

assert rules  # imported for its rules
NEWEST = 28  # operator set of ONNX that the rules were written for
MOST_DEPTH = 48  # functions and graphs within each other
FULL = 1 << 20  # elements of a sparse tensor that is stored with its zeros, and 64 times those that are there
_NAME = re.compile(r"[^A-Za-z0-9_]")


class _NodeTrace(Trace):
    """A trace whose operations come from nodes of a file."""

    location: Location | None = None

    def __init__(self, module: Module, block: Block, budget: Budget) -> None:
        super().__init__(module, block)
        self.block, self.budget = block, budget

    def emit_all(self, op: Op, *operands: Value | None) -> Operation:
        self.budget.operation()
        try:
            return self.builder.create(op, *operands, loc=self.location)
        except ConstraintError as error:
            given = [v.type for v in operands if v is not None]
            names = self.given() & {s for t in given for s in t.symbols}
            if names and _ORDER.search(str(error)) and self.narrowed(names, functools.partial(self.fits, op, operands)):
                return self.builder.create(op, *operands, loc=self.location)
            types = ", ".join("absent" if v is None else str(v.type) for v in operands) or "no operands"
            raise Refused(f"{error}\nthe operands are {types}", broken=True) from None

    def given(self) -> set[str]:
        """The symbols in the shapes of inputs: calls check their bounds. What the program computes has the size that it has."""
        return {s for a in self.block.args for s in a.type.symbols}

    def fits(self, op: Op, operands: Sequence[Value | None]) -> bool:
        """Whether an op surely accepts the operands, by what is known of the dims now."""
        try:
            infer_types(op, [None if v is None else v.type for v in operands], self.module.infer_context)
        except ConstraintError:
            return False
        return True

    def narrowed(self, names: set[str], holds: Callable[[], bool]) -> bool:
        """Whether ``holds`` once each of these symbols is at least so large; the smallest such sizes are declared. The model has no meaning for
        smaller ones, and a call with one is told so."""
        symbols = self.module.facts.symbols
        before = {name: symbols[name] for name in sorted(names)}

        def at_least(name: str, low: int) -> bool:
            fact = before[name]
            if fact.high is not None and low > fact.high:
                return False
            symbols[name] = replace(fact, low=max(low, fact.low))
            return True

        for least in _LEAST:
            possible = [at_least(name, least) for name in before]
            if not all(possible):
                break
            if not holds():
                continue
            for name, fact in before.items():  # one symbol after the other as low as it may be
                low, high = fact.low, max(least, fact.low)
                while low < high:
                    middle = (low + high) // 2
                    at_least(name, middle)
                    low, high = (low, middle) if holds() else (middle + 1, high)
                at_least(name, high)
                if high > fact.low:
                    self.module.metadata[f"onnx.least.{name}"] = f"{high}, for {self.location}"
            return True
        symbols.update(before)
        return False


_ORDER = re.compile(r"cannot decide whether .* <= ")
_LEAST = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass
class Scope:
    """The names of one graph, those around it, and what nodes in it mean."""

    opsets: Mapping[str, int]
    parent: Scope | None = None
    names: dict[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of the call of the function that this is the body of
    depth: int = 0
    callers: tuple[tuple[str, ...], ...] = ()

    def find(self, name: str) -> Any:
        if not name:
            return None
        at: Scope | None = self
        while at is not None:
            if name in at.names:
                return at.names[name]
            at = at.parent
        raise Refused(f"nothing above defines '{name}'", broken=True)

    def attribute(self, node: Any, name: str) -> Any:
        """The attribute of a node; one that refers to an attribute of the function's call is that."""
        for a in node.attribute:
            if a.name == name:
                return self.attributes.get(a.ref_attr_name) if a.ref_attr_name else a
        return None


class Reader:
    """Reads one model into one module."""

    def __init__(self, file: OnnxFile, examples: Mapping[str, Any], dynamic: Sequence[str] | None = None) -> None:
        self.file, self.examples, self.dynamic = file, dict(examples), dynamic
        name = _NAME.sub("_", file.proto.graph.name or (file.path.stem if file.path else "")).strip("_")
        self.module = Module(name if name and not name[0].isdigit() else f"model_{name}" if name else "model")
        self.block = Block()
        self.budget = Budget.of(file.proto)
        self.trace = _NodeTrace(self.module, self.block, self.budget)
        self.problems = Collector()
        self.inputs: dict[Value, str] = {}
        self.examples_of: dict[Value, np.ndarray] = {}
        self.frozen: dict[Value, np.ndarray] = {}
        self.functions = {(f.domain, f.name, getattr(f, "overload", "")): f for f in file.proto.functions}
        self.values: dict[Value, np.ndarray] = {}
        self.by_example = False  # structure follows the examples, and with it the shapes

    # --- the whole --------------------------------------------------------------------------------------------------------------

    def run(self) -> Module:
        graph = self.file.proto.graph
        opsets = {_domain(o.domain): int(o.version) for o in self.file.proto.opset_import}
        if opsets.get("", 0) > NEWEST:
            message = f"the model follows operator set {opsets['']} of ONNX, and {NEWEST} is the newest that is known"
            raise self.file.fail(message, help=f"export it for {NEWEST} or an earlier one", code=Code.ONNX_UNSUPPORTED)
        scope = Scope(opsets)
        with tracing(self.trace):
            made = {t.name for t in graph.initializer}
            own = [g for g in graph.input if g.name not in made]
            self.by_example = any(g.type.WhichOneof("value") in ("sequence_type", "optional_type") for g in own)
            for g in own:
                self.declare(g, scope)
            self.initializers(graph, scope)
            self.body(graph.node, scope)
            results = list(self.results(graph, scope))
            self.problems.check()
            self.finish(results)
        return self.module

    def declare(self, info: Any, scope: Scope) -> None:
        """Adds the arguments of an input: one, or one for each element of a sequence."""
        try:
            scope.names[info.name] = self._declared(info.name, info.type)
        except Refused as error:
            self.problem(error, f"input '{info.name}'")
            scope.names[info.name] = Failed()

    def _declared(self, name: str, type: Any) -> Item | Row | Missing:
        kind = type.WhichOneof("value")
        example = self.examples.get(name)
        if kind == "optional_type":
            if name not in self.examples:
                raise _needs(f"whether the optional input '{name}' is there", name)
            if example is None:
                return Missing()
            return self._declared(name, type.optional_type.elem_type)
        if kind == "sequence_type":
            if not isinstance(example, (list, tuple)):
                raise _needs(f"how many tensors the sequence '{name}' has", name)
            one = type.sequence_type.elem_type.tensor_type
            items = [self._argument(f"{name}_{i}", one, np.asarray(x), exact=True) for i, x in enumerate(example)]
            return Row(items, ELEMENTS.get(one.elem_type))
        if kind != "tensor_type":
            raise Refused(f"the input '{name}' is of type {kind}, not a tensor")
        array = None if example is None or isinstance(example, (TensorType, list, tuple)) else np.asarray(example)
        return self._argument(name, type.tensor_type, array, exact=self.by_example and array is not None)

    def _argument(self, name: str, type: Any, example: np.ndarray | None, exact: bool = False) -> Item:
        if type.elem_type == STRING:
            raise Refused(f"the input '{name}' holds strings", "strings are not compiled: leave the text processing outside of the model")
        element = ELEMENTS.get(type.elem_type)
        if element is None:
            raise Refused(f"the input '{name}' has the unknown element type {type.elem_type}", broken=True)
        dims: list[Dim] = []
        if exact or not type.HasField("shape"):
            if example is None:
                raise _needs(f"the shape of the input '{name}', which the model leaves open,", name)
            dims = list(example.shape)
        else:
            for axis, d in enumerate(type.shape.dim):
                if d.HasField("dim_value"):
                    if not 0 <= d.dim_value < 1 << 48:
                        raise Refused(f"axis {axis} of the input '{name}' has the size {d.dim_value}", broken=True)
                    dims.append(int(d.dim_value))
                else:
                    chosen = port_name(d.dim_param[:60] or f"{name[:60]}_{axis}")
                    empty = example is not None and example.ndim == len(type.shape.dim) and example.shape[axis] == 0
                    fixed = example is not None and example.ndim == len(type.shape.dim) and self.dynamic is not None and chosen not in self.dynamic
                    size = example.shape[axis] if example is not None and fixed else None
                    self.module.facts.declare(chosen, SymbolFact(size, size) if size is not None else SymbolFact(0) if empty else None)
                    dims.append(symbol(chosen))
        if len(dims) > 32:
            raise Refused(f"the input '{name}' has {len(dims)} axes", broken=True)
        given = {a.name for a in self.block.args}
        chosen = unique_name(port_name(name), given)
        value = self.block.add_arg(TensorType(tuple(dims), element.dtype), chosen)
        self.inputs[value] = name
        if example is not None:
            self.examples_of[value] = example
        return Item(element, None, Tensor(self.trace, value), name)

    def initializers(self, graph: Any, scope: Scope) -> None:
        for tensor in graph.initializer:
            try:
                element, array = self.file.array(tensor)
                self.budget.stores(array.size)
                scope.names[tensor.name] = self.weight(tensor.name, element, array)
            except CompilerError as error:
                self.problems.extend(error.diagnostics)
                scope.names[tensor.name] = Failed()
        for sparse in graph.sparse_initializer:
            scope.names[sparse.values.name] = self.guarded(functools.partial(self.dense, sparse), f"sparse initializer '{sparse.values.name}'")

    def guarded(self, make: Any, where: str) -> Any:
        try:
            return make()
        except CompilerError as error:
            self.problems.extend(error.diagnostics)
        except Refused as error:
            self.problem(error, where)
        return Failed()

    def dense(self, sparse: Any) -> Item:
        """A sparse tensor with its zeros."""
        element, values = self.file.array(sparse.values)
        _, indices = self.file.array(sparse.indices)
        shape = tuple(int(d) for d in sparse.dims)
        size = 1
        for d in shape:
            size *= d
        if min(shape, default=1) < 0 or size > FULL + 64 * values.size or len(shape) > 32:
            raise Refused(f"a sparse tensor of shape {list(shape)[:40]}", "store it as a dense one")
        self.budget.makes(max(0, size - 64 * values.size), "a sparse tensor")
        flat = np.zeros(size, element.dtype.numpy)
        if indices.dtype.kind not in "iu" or values.ndim > 1:
            raise Refused("indices of a sparse tensor are no whole numbers, or its values no list", broken=True)
        at = indices.astype(np.int64)
        if at.ndim == 2:
            if at.shape[1] != len(shape) or ((at < 0) | (at >= np.array(shape))).any():
                raise Refused("indices of a sparse tensor lie outside of it", broken=True)
            at = np.ravel_multi_index(tuple(at.T), shape)
        if at.shape != values.reshape(-1).shape or ((at < 0) | (at >= size)).any():
            raise Refused("indices of a sparse tensor do not fit its values", broken=True)
        flat[at] = values.reshape(-1)
        return Item.array(flat.reshape(shape), element)

    def weight(self, name: str, element: Element, array: np.ndarray) -> Item:
        """A tensor of the file: known, and a weight of the module once something computes with it."""
        item = Item.array(array, element)
        if array.size > 64:
            item.weight = functools.partial(self.stored, name or "weight", item)
        return item

    def stored(self, name: str, item: Item) -> Tensor:
        """The weight of the module that a large known tensor becomes."""
        assert item.known is not None
        while name in self.module.weights:
            name += "_"
        weight = Weight(name, TensorType(item.known.shape, item.element.dtype), np.ascontiguousarray(item.known))
        return Tensor(self.trace, self.trace.stored(weight))

    # --- nodes ------------------------------------------------------------------------------------------------------------------

    def body(self, nodes: Sequence[Any], scope: Scope) -> None:
        top = scope.depth == 0
        for number, node in enumerate(nodes):
            if top:
                note("reading the graph", number, len(nodes))
                self.trace.location = Location(self.file.path.name if self.file.path else "model.onnx", number + 1, _title(node))
            self.one(node, scope, number)

    def one(self, node: Any, scope: Scope, number: int) -> None:
        """Reads a node; what it gives stands under the names of its outputs."""
        names = list(node.output)
        try:
            self.budget.operation()
            inputs = [None if not name else scope.find(name) for name in node.input]
            if any(isinstance(v, Failed) for v in inputs):
                results: Sequence[Any] = [Failed()] * len(names)
            else:
                results = self.results_of(node, scope, inputs)
        except Refused as error:
            if scope.depth:
                raise
            given = ", ".join(f"{name or 'none'}: {text_of(_found(scope, name))}" for name in node.input)
            self.problem(error, f"node {number} {_title(node)}", f"its inputs are {given or 'none'}", node.op_type)
            results = [Failed()] * len(names)
        for name, value in zip(names, results, strict=False):
            if name:
                scope.names[name] = value
                if isinstance(value, Item) and not value.name:
                    value.name = name
        for name in names[len(results) :]:
            if name:
                scope.names[name] = Failed()

    def results_of(self, node: Any, scope: Scope, inputs: Sequence[Any]) -> Sequence[Any]:
        domain = _domain(node.domain)
        version = scope.opsets.get(domain, 0)
        n = Node(self, scope, node, version, inputs)
        try:
            own = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
            if own is not None:
                return self.call(own, n)
            if (first := came_later(domain, n.op, version)) is not None:
                message = f"the op {n.op} came with operator set {first}, and the model follows {version}"
                raise Refused(message, "convert the model to that set (onnx.version_converter)", broken=True)
            early = folded(n) if domain == "" else None
            if early is not None:
                return [early]
            row = RULES.get((domain, node.op_type))
            out = None if row is None else row.rule(n)
            if row is None or out is None:
                found = expansion(n)
                if found is None:
                    raise self.unread(n)
                return self.call(found, n)
        except (Refused, RecursionError, MemoryError):
            raise
        except CompilerError as error:
            raise Refused("; ".join(d.message for d in error.diagnostics), error.diagnostics[0].help, broken=True) from None
        except UndecidedDim as error:
            raise Refused(str(error), "give the dim a fixed size") from None
        except Exception as error:
            raise Refused(f"it cannot be read: {type(error).__name__}: {str(error)[:300]}", broken=True) from None
        several = out if isinstance(out, (list, tuple)) else [out]
        element = n.element(0) if row.keeps and n.has(0) and isinstance(n.inputs[0], Item) else None
        return [self.wrapped(v, element if i == 0 or row.keeps else None) for i, v in enumerate(several)]

    def unread(self, n: Node) -> Refused:
        domain = _domain(n.proto.domain)
        if standard(domain, n.op):
            return Refused(f"the op {n.op} is not compiled")
        what = f"{domain}.{n.op}" if domain else n.op
        return Refused(f"there is no op {what} in the operator sets of the model", "its functions would have to be in the file")

    def wrapped(self, value: Any, element: Element | None) -> Any:
        if isinstance(value, Tensor):
            fits = element is not None and element.dtype is value.dtype
            return Item.of(value, element if fits else None)
        return value

    def call(self, function: Any, n: Node) -> list[Any]:
        """The body of a function, in place of a node."""
        key = (function.domain, function.name, getattr(function, "overload", ""))
        if n.scope.depth >= MOST_DEPTH or key in n.scope.callers:
            raise Refused(f"the function {function.name} calls itself, or functions are nested more than {MOST_DEPTH} deep", broken=True)
        given = {a.name: a for a in function.attribute_proto}
        for a in n.proto.attribute:
            found = n.scope.attribute(n.proto, a.name)
            if found is not None:
                given[a.name] = found
        opsets = {**n.scope.opsets, **{_domain(o.domain): int(o.version) for o in function.opset_import}}
        inner = Scope(opsets, None, {}, given, n.scope.depth + 1, (*n.scope.callers, key))
        for i, name in enumerate(function.input):
            value = n.inputs[i] if i < len(n.inputs) else None
            inner.names[name] = Missing() if value is None else value
        self.body(function.node, inner)
        return [inner.find(name) if n.output_used(i) or name in inner.names else None for i, name in enumerate(function.output)]

    def subgraph(self, graph: Any, given: Sequence[Any], outer: Scope) -> list[Any]:
        """The outputs of a graph in a node."""
        if outer.depth >= MOST_DEPTH:
            raise Refused(f"graphs are nested more than {MOST_DEPTH} deep")
        if len(given) < len(graph.input):
            raise Refused(f"a graph of {len(graph.input)} inputs is given {len(given)}", broken=True)
        scope = Scope(outer.opsets, outer, {}, outer.attributes, outer.depth + 1, outer.callers)
        for info, value in zip(graph.input, given, strict=False):
            scope.names[info.name] = value
        for tensor in graph.initializer:
            element, array = self.file.array(tensor)
            scope.names[tensor.name] = Item.array(array, element)
        self.body(graph.node, scope)
        return [scope.find(o.name) for o in graph.output]

    def problem(self, error: Refused, where: str, detail: str = "", op: str | None = None) -> None:
        code = Code.ONNX_VALUE if error.unknown else Code.ONNX_NODE if error.broken else Code.ONNX_UNSUPPORTED
        message = f"{where}: {error.message}" + (f"\n{detail}" if detail else "")
        if "cannot decide" in error.message and not error.help:
            error.help = "if the model was exported for one size, fix it: example_inputs=…, and dynamic= the dims that really are"
        file = None if self.file.path is None else str(self.file.path)
        self.problems.add(code, message, Where(file=file, op=op), error.help or code.advice)

    # --- what is known ----------------------------------------------------------------------------------------------------------

    def peek(self, item: Item) -> np.ndarray | None:
        """The elements, numbers or dims, where they follow from constants and sizes; inputs are not frozen for it."""
        if item.known is not None:
            return item.known
        assert item.made is not None
        size = 1
        for d in item.shape:
            if isinstance(d, SymExpr):
                return None
            size *= d
        if size > SMALL:
            return None
        try:
            return self.evaluate(item.made.value, freeze=False)
        except Unknown:
            return None

    def value(self, item: Item) -> np.ndarray:
        """The elements as numbers; raises :class:`Unknown`."""
        if item.known is not None:
            if item.known.dtype == object:
                free = next(d for d in item.known.reshape(-1) if isinstance(d, SymExpr))
                raise Unknown(f"the symbolic dim {free}")
            return item.known
        assert item.made is not None
        return self.evaluate(item.made.value, freeze=True)

    def evaluate(self, wanted: Value, freeze: bool) -> np.ndarray:
        """A value of the graph by the reference semantics."""
        waiting = [wanted]
        while waiting:
            value = waiting[-1]
            if value in self.values:
                waiting.pop()
                continue
            producer = value.producer
            if producer is None:
                self.values[value] = self.example(value, freeze)
                continue
            missing = [v for v in producer.inputs if v not in self.values]
            if missing:
                waiting.extend(missing)
                continue
            self._computed(producer)
        return self.values[wanted]

    def example(self, argument: Value, freeze: bool) -> np.ndarray:
        name = self.inputs[argument]
        given = self.examples_of.get(argument)
        if argument in self.frozen:
            return self.frozen[argument]
        if given is None or not freeze:
            raise Unknown(f"the input '{name}'")
        array = held(given)
        sizes = zip(argument.type.shape, array.shape, strict=False)
        fits = array.ndim == argument.type.rank and all(isinstance(d, SymExpr) or d == n for d, n in sizes)
        if array.dtype != argument.type.dtype.numpy or not fits:
            raise Unknown(f"the input '{name}', whose example is {array.dtype}{list(array.shape)} and no {argument.type}")
        for d in argument.type.shape:
            if isinstance(d, SymExpr):
                self.freeze_dim(d)
        self.frozen[argument] = array
        return array

    def at_most(self, name: str, high: int, why: str) -> bool:
        """Declares that a symbol is at most so large: the model has no meaning for larger ones. Whether there are such."""
        fact = self.module.facts.symbols[name]
        if high < fact.low or name not in self.trace.given():
            return False
        self.module.facts.symbols[name] = replace(fact, high=high)
        self.module.metadata[f"onnx.most.{name}"] = f"{high}, for {why}"
        return True

    def freeze_dim(self, size: SymExpr) -> int:
        """The value of a size in the examples; the symbols in it keep that value from now on, which every call checks. Raises :class:`Unknown`."""
        arrays = [(value, array) for value, array in self.examples_of.items() if array.ndim == value.type.rank]
        try:
            env = bind_dims([Shaped(value.name, value.type.shape, array.shape) for value, array in arrays], self.module.facts) if arrays else {}
        except CompilerError as error:
            raise Refused("; ".join(d.message for d in error.diagnostics), "the shapes of the examples contradict the model", unknown=True) from None
        free = sorted(symbols_of(size) - env.keys())
        if free:
            raise Unknown(f"the dim {free[0]}")
        for name in symbols_of(size):
            self.module.facts.symbols[name] = SymbolFact(env[name], env[name])
            self.module.metadata[f"onnx.frozen.dim.{name}"] = str(env[name])
        return evaluate_dim(size, env)

    def _computed(self, producer: Operation) -> None:
        op = producer.op
        if isinstance(op, ops.WeightOp):
            self.values[producer.result] = self.module.weights[op.name].data
            return
        types = [r.type for r in producer.results]
        if not all(t.is_static for t in types):
            raise Unknown(f"a tensor of the symbolic shape {types[0]}")
        self.budget.folds(sum(n for t in types if isinstance(n := t.elements, int)), op.flops(producer.operand_types, types))
        try:
            found = evaluate_operation(op, [None if v is None else self.values[v] for v in producer.operands], types, {}, producer.operand_types)
        except KeyError as error:
            raise Unknown(f"the symbolic dim {error}") from None
        except IndexError as error:
            raise Refused(str(error), broken=True) from None
        self.values.update(zip(producer.results, found, strict=True))

    # --- results ----------------------------------------------------------------------------------------------------------------

    def results(self, graph: Any, scope: Scope) -> Iterator[tuple[str, Tensor]]:
        for info in graph.output:
            try:
                value = scope.find(info.name)
            except Refused as error:
                self.problem(error, f"output '{info.name}'")
                continue
            if isinstance(value, Failed) or not self.problems.empty:
                continue
            if isinstance(value, Row):
                for i, item in enumerate(value.items):
                    yield f"{info.name}_{i}", item.tensor
            elif isinstance(value, Item):
                code = info.type.tensor_type.elem_type if info.type.WhichOneof("value") == "tensor_type" else 0
                if code and code != value.element.code:
                    declared = ELEMENTS[code].name if code in ELEMENTS else code
                    message = f"it is declared as {declared}, and computed as {value.element}"
                    self.problem(Refused(message, broken=True), f"output '{info.name}'")
                    continue
                yield info.name, value.tensor
        if not graph.output:
            self.problem(Refused("the graph has no outputs", broken=True), "the model")

    def finish(self, results: Sequence[tuple[str, Tensor]]) -> None:
        self.trace.location = None
        values = [t.value for _, t in results]
        if not values:
            raise CompilerError.of(Code.ONNX_UNSUPPORTED, "the model has no result but empty sequences")
        values = self.checked(values)
        taken = {a.name for a in self.block.args}
        out: list[Value] = []
        for (name, _), value in zip(results, values, strict=True):
            chosen = unique_name(port_name(name), taken)
            if value.producer is None or value.name or value in out or isinstance(value.producer.op, ops.WeightOp):
                value = self.trace.emit(ops.Reshape(value.type.shape), value)
            value.name = chosen
            out.append(value)
        self.trace.builder.create(Return(), *out)
        self.module.add_function(Function("main", self.block, 0))

    def checked(self, values: list[Value]) -> list[Value]:
        """The first result depends on frozen inputs having the values that they are frozen to."""
        for argument, array in self.frozen.items():
            name = self.inputs[argument]
            self.module.metadata[f"onnx.frozen.{name}"] = f"{argument.type}: {np.array2string(array, threshold=16)}"
            x = Tensor(self.trace, argument)
            wrong = x != as_tensor(array)
            if x.dtype.is_float and np.isnan(array).any():
                wrong = wrong & ~(x.isnan() & as_tensor(np.isnan(array)))
            count = wrong.any().to("i64")
            message = f"the input '{name}' has another value than the model was compiled for ({_short(array)})"
            first = Tensor(self.trace, values[0])
            lifted = first.reshape(1) if first.ndim == 0 else first
            values = [lifted._emit(ops.Check(message), count).reshape(*first.shape).value, *values[1:]]
        return values


def _needs(what: str, name: str) -> Refused:
    return Refused(f"{what} has to be known", f"give it: example_inputs={{{name!r}: …}}", unknown=True)


def _short(array: np.ndarray) -> str:
    text = " ".join(np.array2string(array, threshold=8, edgeitems=2).split())
    return text if len(text) < 120 else text[:117] + "…"


def _found(scope: Scope, name: str) -> Any:
    try:
        return scope.find(name)
    except Refused:
        return None


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _title(node: Any) -> str:
    op = f"{node.domain}.{node.op_type}" if _domain(node.domain) else str(node.op_type)
    return f"{op[:80]} '{node.name[:200]}'" if node.name else op[:80]


def port_name(name: str) -> str:
    """How an input or output is called in the module."""
    found = _NAME.sub("_", name)[:200]
    return f"_{found}" if not found or found[0].isdigit() else found
