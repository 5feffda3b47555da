"""The graph: modules, functions, blocks, operations and values in SSA form with def-use chains that are always right.

Operands change only through :meth:`Operation.set_operand` and :meth:`Value.replace_all_uses_with`; operations enter and leave a block only
through :meth:`Block.append`, :meth:`Block.insert_before` and :meth:`Operation.erase`. A block may be mutated while it is iterated.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from trustformers_ir.ir.block_formats import Blocks
from trustformers_ir.ir.calling import Calling
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dims import Facts
from trustformers_ir.ir.mapped import MappedFile, backing
from trustformers_ir.ir.schema import InferContext, Op
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Location:
    """Where an operation comes from: a line of the user's model code, or of a ``.tfir`` file. Line and column count from 1."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" in {self.function}" if self.function else "")


@dataclass(eq=False)
class Value:
    """One SSA value: a block argument or one result of an operation."""

    type: TensorType
    name: str = ""  # a hint for printing; unique names are made by the printer
    producer: Operation | None = None
    index: int = 0
    block: Block | None = None  # the owning block of a block argument
    _uses: dict[tuple[int, int], tuple[Operation, int]] = field(default_factory=dict, repr=False)

    @property
    def uses(self) -> list[tuple[Operation, int]]:
        """``(operation, operand index)`` pairs, in the order in which the uses were made."""
        return list(self._uses.values())

    @property
    def users(self) -> list[Operation]:
        """Distinct operations that use the value."""
        return list({id(o): o for o, _ in self._uses.values()}.values())

    @property
    def has_one_use(self) -> bool:
        return len(self._uses) == 1

    def replace_all_uses_with(self, other: Value) -> None:
        """Make every user read ``other`` instead."""
        if other is not self:
            for operation, index in self.uses:
                operation.set_operand(index, other)

    def op_as(self, kind: builtins.type[Op]) -> Operation | None:
        """The producing operation when its op is a ``kind``."""
        return self.producer if self.producer is not None and isinstance(self.producer.op, kind) else None


class Operation:
    """A node: an op with its attributes, operand values (None for an absent optional one), results, a location and perhaps a body."""

    __slots__ = ("_next", "_operands", "_prev", "block", "body", "loc", "op", "results")

    def __init__(
        self,
        op: Op,
        operands: Sequence[Value | None],
        result_types: Sequence[TensorType],
        loc: Location | None = None,
        body: Block | None = None,
    ) -> None:
        self.op = op
        self._operands: list[Value | None] = list(operands)
        self.results: tuple[Value, ...] = tuple(Value(t, producer=self, index=i) for i, t in enumerate(result_types))
        self.loc = loc
        self.body = body
        if body is not None:
            body.parent = self
        self.block: Block | None = None
        self._prev: Operation | None = None
        self._next: Operation | None = None
        for i, v in enumerate(self._operands):
            if v is not None:
                v._uses[(id(self), i)] = (self, i)

    @property
    def operands(self) -> tuple[Value | None, ...]:
        return tuple(self._operands)

    @property
    def inputs(self) -> list[Value]:
        """The operands that are present."""
        return [v for v in self._operands if v is not None]

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    @property
    def operand_types(self) -> list[TensorType | None]:
        return [None if v is None else v.type for v in self._operands]

    @property
    def is_dead(self) -> bool:
        return not self.op.terminator and not self.op.defines_dim and not any(r._uses for r in self.results)

    def set_operand(self, index: int, value: Value | None) -> None:
        old = self._operands[index]
        if old is value:
            return
        if old is not None:
            del old._uses[(id(self), index)]
        self._operands[index] = value
        if value is not None:
            value._uses[(id(self), index)] = (self, index)

    def set_operands(self, values: Sequence[Value | None]) -> None:
        """Replace the whole operand list (its length may change)."""
        self.drop_operands()
        self._operands = [None] * len(values)
        for i, v in enumerate(values):
            self.set_operand(i, v)

    def drop_operands(self) -> None:
        for i in range(len(self._operands)):
            self.set_operand(i, None)

    def erase(self) -> None:
        """Take the operation out of its block. Its results must be unused."""
        if any(r._uses for r in self.results):
            raise ValueError(f"'{self.op.mnemonic}' is erased while its result is used")
        self.drop_operands()
        if self.block is not None:
            self.block._unlink(self)

    def replace_with(self, values: Sequence[Value]) -> None:
        """Redirect all uses of the results to ``values`` and erase the operation."""
        for old, new in zip(self.results, values, strict=True):
            if not new.name:
                new.name = old.name
            old.replace_all_uses_with(new)
        self.erase()

    def move_before(self, anchor: Operation) -> None:
        """Move to just before ``anchor``, perhaps in another block."""
        if anchor is self:
            return
        assert self.block is not None and anchor.block is not None
        self.block._unlink(self)
        anchor.block.insert_before(anchor, self)

    @property
    def next(self) -> Operation | None:
        return self._next

    @property
    def previous(self) -> Operation | None:
        return self._prev

    def __repr__(self) -> str:
        results = ", ".join(str(r.type) for r in self.results)
        return f"<{self.op.mnemonic} -> {results}>"


class Block:
    """An ordered list of operations with arguments, ended by a terminator."""

    def __init__(self, arg_types: Sequence[TensorType] = (), names: Sequence[str] = ()) -> None:
        self.args: list[Value] = []
        self.parent: Operation | Function | None = None
        self._first: Operation | None = None
        self._last: Operation | None = None
        for i, t in enumerate(arg_types):
            self.add_arg(t, names[i] if i < len(names) else "")

    def add_arg(self, type: TensorType, name: str = "") -> Value:
        value = Value(type, name, index=len(self.args), block=self)
        self.args.append(value)
        return value

    def __iter__(self) -> Iterator[Operation]:
        """Operations in order; operations may be inserted or erased meanwhile (an erased one is not visited later)."""
        current = self._first
        while current is not None:
            following = current._next
            yield current
            if current.block is self:
                current = current._next
            else:  # erased or moved away while visited: go on where it stood, skipping what has gone too
                while following is not None and following.block is not self:
                    following = following._next
                current = following

    def __reversed__(self) -> Iterator[Operation]:
        current = self._last
        while current is not None:
            before = current._prev
            yield current
            current = before if current.block is not self else current._prev

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def operations(self) -> list[Operation]:
        return list(self)

    @property
    def terminator(self) -> Operation:
        if self._last is None or not self._last.op.terminator:
            raise ValueError("the block has no terminator")
        return self._last

    @property
    def outputs(self) -> list[Value]:
        """The values that the terminator hands out."""
        return self.terminator.inputs

    def append(self, operation: Operation) -> Operation:
        return self._link(operation, self._last, None)

    def insert_before(self, anchor: Operation, operation: Operation) -> Operation:
        assert anchor.block is self
        return self._link(operation, anchor._prev, anchor)

    def _link(self, operation: Operation, before: Operation | None, after: Operation | None) -> Operation:
        assert operation.block is None, "the operation is already in a block"
        operation.block, operation._prev, operation._next = self, before, after
        if before is None:
            self._first = operation
        else:
            before._next = operation
        if after is None:
            self._last = operation
        else:
            after._prev = operation
        return operation

    def _unlink(self, operation: Operation) -> None:
        if operation._prev is None:
            self._first = operation._next
        else:
            operation._prev._next = operation._next
        if operation._next is None:
            self._last = operation._prev
        else:
            operation._next._prev = operation._prev
        operation.block = None  # _prev and _next stay, so that an iteration standing here finds its way on

    def walk(self) -> Iterator[Operation]:
        """All operations, bodies included, outer before inner."""
        for operation in self:
            yield operation
            if operation.body is not None:
                yield from operation.body.walk()


class Function:
    """A named block whose terminator is ``return``.

    ``states``: so many of its last arguments are memory that outlives a call, and so many of its last results are what is there afterwards, in
    the same order. By itself the function changes nothing; who executes it writes in place.
    """

    def __init__(self, name: str, body: Block, states: int = 0) -> None:
        self.name = name
        self.body = body
        self.states = states
        body.parent = self

    @property
    def args(self) -> list[Value]:
        return self.body.args

    @property
    def outputs(self) -> list[Value]:
        return self.body.outputs

    @property
    def next_states(self) -> dict[Value, Value]:
        """The argument that is a state -> the value that it has after the call."""
        count = self.states
        return dict(zip(self.args[len(self.args) - count :], self.outputs[len(self.outputs) - count :], strict=True))

    @property
    def input_types(self) -> list[TensorType]:
        return [a.type for a in self.args]

    @property
    def output_types(self) -> list[TensorType]:
        return [v.type for v in self.outputs]


class MissingBytes(CompilerError, LookupError):
    """The bytes of a weight are needed, and it is known by its digest only."""


class Weight:
    """A named constant tensor known by the digest of its bytes. The bytes may be a view of a mapped file, loaded when first needed.

    They never change: an array that its owner could still write to is copied. ``origin`` says what a weight that is made of others is made of, and
    how, so that there is one of each (``passes/weights.py``). ``blocks`` are the codes of which it is the numbers, where a file holds codes.
    """

    def __init__(
        self,
        name: str,
        type: TensorType,
        data: np.ndarray | Callable[[], np.ndarray] | None = None,
        digest: str | None = None,
        origin: tuple[object, ...] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.name = name
        self.origin = origin
        self.blocks = blocks
        self.type = type
        if isinstance(data, np.ndarray) and data.flags.writeable:
            data = data.copy()
            data.flags.writeable = False
        self._data = data
        self._digest = digest

    @property
    def has_data(self) -> bool:
        return self._data is not None

    @property
    def file(self) -> MappedFile | None:
        """The mapped file that the bytes are a view of; None for bytes in memory, and such that are made when they are asked for."""
        return backing(self._data) if isinstance(self._data, np.ndarray) else None

    @property
    def data(self) -> np.ndarray:
        """The array in the storage shape of the type's layout. :class:`MissingBytes` when only the digest is known."""
        if self._data is None:
            message = f"the weight '{self.name}' is known by its digest {self.digest} only; its bytes were not given"
            raise MissingBytes.of(Code.MISSING_BYTES, message, Where(tensor=self.name))
        return self._data() if callable(self._data) else self._data

    def settle(self, data: np.ndarray) -> None:
        """The same bytes at another place, in the storage shape: what they were made of is needed no longer."""
        self._data = data
        self.origin = None

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the stored bytes."""
        if self._digest is None:
            self._digest = "sha256:" + hashlib.sha256(np.ascontiguousarray(self.data).reshape(-1).view(np.uint8).data).hexdigest()
        return self._digest


@dataclass
class Module:
    """Functions over one set of dim symbols and one table of weights."""

    name: str = "module"
    facts: Facts = field(default_factory=Facts)
    weights: dict[str, Weight] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    calling: Calling | None = None  # how nests of arguments become inputs, where the model has such

    def add_function(self, function: Function) -> Function:
        if function.name in self.functions:
            raise ValueError(f"two functions are called '{function.name}'")
        self.functions[function.name] = function
        return function

    def add_weight(self, weight: Weight) -> Weight:
        if weight.name in self.weights:
            raise ValueError(f"two weights are called '{weight.name}'")
        self.weights[weight.name] = weight
        return weight

    @property
    def main(self) -> Function:
        """The function ``main``, or the only one."""
        if "main" in self.functions:
            return self.functions["main"]
        (function,) = self.functions.values()
        return function

    @property
    def infer_context(self) -> InferContext:
        return InferContext(self.facts, self.weights)

    def walk(self) -> Iterator[Operation]:
        for function in self.functions.values():
            yield from function.body.walk()

    def __str__(self) -> str:
        return _PRINTER[0](self)


def set_module_printer(printer: Callable[[Module], str]) -> None:
    """Installed by ``trustformers_ir.ir.text`` so that ``str(module)`` is its text without an import cycle."""
    _PRINTER[0] = printer


_PRINTER: list[Callable[[Module], str]] = [lambda module: f"<module {module.name}>"]
