"""A node as the functions that read ops see it: inputs, attributes, and the values that have to be known while the model is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trustformers_ir.frontend.onnx.elements import ELEMENTS, Element
from trustformers_ir.frontend.onnx.schemas import attribute_kinds
from trustformers_ir.frontend.onnx.values import Item, Missing, Refused, Row, Unknown, dims_of
from trustformers_ir.ir.dims import Dim, Facts
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Op
from trustformers_ir.ir.tensor import Tensor, as_tensor

if TYPE_CHECKING:
    from trustformers_ir.frontend.onnx.convert import Reader, Scope


class Absent:
    """The default of an attribute that has none."""


_KINDS = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 11: "sparse_tensor"}


@dataclass
class Node:
    """One node: ``n.t(0)`` is the tensor of its first input, ``n.attr("axis", 0)`` an attribute."""

    reader: Reader
    scope: Scope
    proto: Any
    version: int  # of the operator set of its domain
    inputs: Sequence[Item | Row | Missing | None]

    @property
    def op(self) -> str:
        return str(self.proto.op_type)

    @property
    def facts(self) -> Facts:
        return self.reader.module.facts

    # --- attributes -------------------------------------------------------------------------------------------------------------

    def attr(self, name: str, default: Any = Absent) -> Any:
        """An attribute: a number, text, list, tensor or graph. Without a default it has to be there."""
        found = self.scope.attribute(self.proto, name)
        if found is None:
            if default is Absent:
                raise Refused(f"the attribute '{name}' is missing", broken=True)
            return default
        kind = _KINDS.get(found.type)
        if kind is None:
            raise Refused(f"the attribute '{name}' is of no kind that is read ({found.type})", broken=True)
        due = attribute_kinds("" if self.proto.domain == "ai.onnx" else self.proto.domain, self.op, self.version).get(name, found.type)
        if due != found.type:
            raise Refused(f"the attribute '{name}' is of the kind '{kind}', and '{_KINDS.get(due, due)}' is due", broken=True)
        value = getattr(found, kind)
        if kind == "s":
            return value.decode("utf-8", "replace")
        if kind == "strings":
            return [s.decode("utf-8", "replace") for s in value]
        if kind in ("floats", "ints"):
            return list(value)
        return value

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """A list of whole numbers, or the default."""
        found = self.attr(name, None)
        if found is None:
            return None if default is None else list(default)
        if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
            raise Refused(f"the attribute '{name}' is no list of whole numbers", broken=True)
        return found

    def element_attr(self, name: str, default: int | None = None) -> Element:
        code = self.attr(name, Absent if default is None else default)
        if code not in ELEMENTS:
            raise Refused(f"'{name}' is the element type {code}" + (", strings" if code == 8 else ", which there is not"))
        return ELEMENTS[code]

    # --- inputs -----------------------------------------------------------------------------------------------------------------

    def has(self, i: int) -> bool:
        """Whether an optional input is given."""
        return i < len(self.inputs) and self.inputs[i] is not None and not isinstance(self.inputs[i], Missing)

    def item(self, i: int) -> Item:
        found = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(found, Item):
            raise Refused(f"input {i} is {'missing' if found is None else found}", broken=True)
        return found

    def row(self, i: int) -> Row:
        found = self.inputs[i] if i < len(self.inputs) else None
        if not isinstance(found, Row):
            raise Refused(f"input {i} is {'missing' if found is None else found}, no sequence", broken=True)
        return found

    def t(self, i: int) -> Tensor:
        return self.item(i).tensor

    def opt(self, i: int) -> Tensor | None:
        return self.t(i) if self.has(i) else None

    def element(self, i: int = 0) -> Element:
        return self.item(i).element

    def tensors(self) -> list[Tensor]:
        return [self.t(i) for i in range(len(self.inputs))]

    def axis(self, rank: int, default: Any = Absent, name: str = "axis", extra: int = 0) -> int:
        """An axis, counted from 0."""
        return self.place(self.attr(name, default), rank + extra)

    def place(self, axis: Any, rank: int) -> int:
        axis = int(axis)
        if not -rank <= axis < max(rank, 1):
            raise Refused(f"axis {axis} of a tensor of rank {rank}", broken=True)
        return axis % rank if rank else 0

    # --- what has to be known ---------------------------------------------------------------------------------------------------

    def peek(self, i: int) -> np.ndarray | None:
        """The elements of an input (numbers or dims) if they follow from constants and sizes alone."""
        return self.reader.peek(self.item(i)) if self.has(i) else None

    def const(self, i: int) -> np.ndarray:
        """The elements of an input as numbers; an input of the model behind it is frozen to its example. :class:`Refused` when nothing says them."""
        item = self.item(i)
        try:
            return self.reader.value(item)
        except Unknown as error:
            raise self._needed(i, error.what) from None

    def _needed(self, i: int, what: str) -> Refused:
        name = self.proto.input[i] if i < len(self.proto.input) else ""
        message = f"the value of its input {i} ('{name}') decides over shapes or structure and depends on {what}"
        return Refused(message, "give that input's value: example_inputs={name: array}, or --input name=file.npy; it is then fixed", unknown=True)

    def wholes(self, i: int) -> list[int]:
        """The elements of an input vector as whole numbers."""
        self._of_integers(i)
        return [int(d) for d in self.const(i).reshape(-1)]

    def dims(self, i: int) -> list[Dim]:
        """The elements of an input vector as sizes, symbolic ones included."""
        self._of_integers(i)
        item = self.item(i)
        known = self.reader.peek(item)
        found = None if known is None else dims_of(Item(item.element, known))
        return [*self.wholes(i)] if found is None else found

    def _of_integers(self, i: int) -> None:
        self.require(self.element(i).dtype.is_integer, f"input {i} is {self.item(i)}, and whole numbers are due")

    def whole(self, size: Dim, what: str) -> int:
        """A size that has to be a constant. A symbolic one takes its value from the examples, and its dims are frozen to that."""
        if isinstance(size, int):
            return size
        try:
            return self.reader.freeze_dim(size)
        except Unknown as error:
            message = f"{what} has to be known, and is {size}: it depends on {error.what}"
            raise Refused(message, "give arrays as example_inputs, by which that dim is fixed", unknown=True) from None

    def scalar(self, i: int, default: Any = Absent) -> Any:
        """The only element of an input, as a Python number. Without a default it has to be there."""
        if not self.has(i):
            self.require(default is not Absent, f"input {i} is missing")
            return default
        value = self.const(i).reshape(-1)
        if value.size != 1:
            raise Refused(f"input {i} has {value.size} elements, not one", broken=True)
        return value[0].item()

    # --- results ----------------------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> int:
        """How many outputs the node names."""
        return len(self.proto.output)

    def output_used(self, i: int) -> bool:
        return i < len(self.proto.output) and bool(self.proto.output[i])

    def many(self, op: Op, *operands: Tensor | None) -> list[Tensor]:
        """An operation with several results."""
        trace = self.reader.trace
        return [Tensor(trace, v) for v in trace.emit_all(op, *(None if t is None else t.value for t in operands)).results]

    def graph(self, proto: Any, given: Sequence[Any]) -> list[Any]:
        """The outputs of a graph among the attributes, whose inputs are ``given``; it sees the names around it."""
        return self.reader.subgraph(proto, given, self.scope)

    def require(self, condition: Any, message: str) -> None:
        """The specification asks for it."""
        if not condition:
            raise Refused(message, broken=True)

    def sizes(self, x: Tensor, rank: int) -> tuple[Dim, ...]:
        """The sizes of a tensor that has to have so many axes."""
        self.require(x.ndim == rank, f"{x.type} where a tensor of rank {rank} is due")
        return x.shape

    def same(self, a: Dim, b: Dim) -> bool:
        return self.facts.is_equal(a, b)


Rule = Callable[[Node], Any]


@dataclass(frozen=True)
class Reading:
    """How an op is read; a rule that gives None leaves it to the body that the specification gives. ``keeps``: results have the element type of the
    first input."""

    rule: Rule
    keeps: bool = False


RULES: dict[tuple[str, str], Reading] = {}
ML, TRAINING = "ai.onnx.ml", "ai.onnx.preview.training"


def onnx_op(*names: str, keeps: bool = False, domain: str = "") -> Callable[[Rule], Rule]:
    """Registers the function that reads these ops."""

    def register(rule: Rule) -> Rule:
        for name in names:
            assert (domain, name) not in RULES, f"{name} is read twice"
            RULES[domain, name] = Reading(rule, keeps)
        return rule

    return register


def emit(x: Tensor, op: Op, *others: Tensor | None) -> Tensor:
    return x._emit(op, *others)


def number(value: Any, like: Tensor) -> Tensor:
    """A number as a scalar of the dtype of ``like``."""
    return as_tensor(np.asarray(value).astype(like.dtype.numpy).reshape(1)).reshape()


def widened(x: Tensor) -> Tensor:
    """f16 and bf16 as f32: sums of several steps round once."""
    return x.to(DType.f32) if x.dtype in (DType.f16, DType.bf16) else x

