"""Insert operations with inferred types at one place of a block."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.ir.core import Block, Location, Module, Operation, Value
from trustformers_ir.ir.schema import Op, infer_types


class Builder:
    """Creates operations in ``block``, before ``anchor`` or at the end.

    ``loc`` is given to every operation that is created without one of its own.
    """

    def __init__(self, module: Module, block: Block, anchor: Operation | None = None, loc: Location | None = None) -> None:
        self.module = module
        self.block = block
        self.anchor = anchor
        self.loc = loc

    @classmethod
    def before(cls, module: Module, operation: Operation) -> Builder:
        """A builder that inserts before ``operation`` and hands its location on."""
        assert operation.block is not None
        return cls(module, operation.block, operation, operation.loc)

    def create(self, op: Op, *operands: Value | None, loc: Location | None = None, body: Block | None = None, name: str = "") -> Operation:
        """Infer the result types, create the operation and insert it. Raises ``ConstraintError`` when the op does not accept the operands."""
        types = infer_types(op, [None if v is None else v.type for v in operands], self.module.infer_context)
        return self._insert(Operation(op, operands, types, loc or self.loc, body), name)

    def region(self, op: Op, operands: Sequence[Value], body: Block, loc: Location | None = None) -> Operation:
        """Create an operation with a body; its results are what the body's terminator hands out."""
        return self._insert(Operation(op, operands, [v.type for v in body.outputs], loc or self.loc, body), "")

    def __call__(self, op: Op, *operands: Value | None, loc: Location | None = None, name: str = "") -> Value:
        """``create(…)`` for ops with one result."""
        return self.create(op, *operands, loc=loc, name=name).result

    def _insert(self, operation: Operation, name: str) -> Operation:
        if self.anchor is None:
            self.block.append(operation)
        else:
            self.block.insert_before(self.anchor, operation)
        if name and operation.results:
            operation.results[0].name = name
        return operation
