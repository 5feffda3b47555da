"""Common subexpressions: what is computed twice from the same values is computed once.

Before::

    %1 = add(%x, %y)
    %2 = add(%y, %x)
    %3 = mul(%1, %2)

After::

    %1 = add(%x, %y)
    %3 = mul(%1, %1)

Two operations are the same when their ops have the same attributes *bit for bit* (``pad`` with 0.0 is not ``pad`` with -0.0), their operands
are the same values (in either order where that is exact) and their result types are the same; bodies are compared operation by operation.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from trustformers_ir.ir import rewriting
from trustformers_ir.ir.core import Block, Module, Operation, Value
from trustformers_ir.ir.ops import Add, And, Eq, Mul, Ne, Or, Xor
from trustformers_ir.ir.schema import Op
from trustformers_ir.passes.manager import Pass, PassLog

#: Ops whose operands may be exchanged exactly; minimum and maximum are not among them: a tie of 0.0 and -0.0 goes by position.
SYMMETRIC = (Add, Mul, And, Or, Xor, Eq, Ne)


@dataclass(frozen=True)
class Cse(Pass):
    """Merges equal operations, in functions and in bodies."""

    name = "cse"
    summary = "compute equal operations once"

    def run(self, module: Module, log: PassLog) -> None:
        for function in module.functions.values():
            _merge(function.body, log)


def _merge(block: Block, log: PassLog) -> None:
    seen: dict[Hashable, Operation] = {}
    for operation in block:
        if operation.body is not None:
            _merge(operation.body, log)
        if operation.op.terminator:
            continue
        key = operation_key(operation, {})
        first = seen.setdefault(key, operation)
        if first is not operation and rewriting.allowed():
            log.count(operation.op.mnemonic)
            operation.replace_with(first.results)


def operation_key(operation: Operation, numbers: dict[Value, int]) -> Hashable:
    """What an operation computes, as a value. ``numbers`` stand for the values of a body, whose identity does not matter."""
    operands: list[Hashable] = [None if v is None else numbers.get(v, id(v)) for v in operation.operands]
    if isinstance(operation.op, SYMMETRIC):
        operands.sort(key=hash)
    types = tuple(r.type for r in operation.results)
    body = None if operation.body is None else _body_key(operation.body)
    return (op_key(operation.op), tuple(operands), types, body)


def _body_key(block: Block) -> Hashable:
    numbers = {v: -1 - i for i, v in enumerate(block.args)}  # below zero, where no id is
    keys: list[Hashable] = [tuple(v.type for v in block.args)]
    for operation in block:
        keys.append(operation_key(operation, numbers))
        numbers.update({r: -1 - len(numbers) - i for i, r in enumerate(operation.results)})
    return tuple(keys)


def op_key(op: Op) -> Hashable:
    """The op with its attributes, floats by their bits: 0.0 equals -0.0 as a number and is another attribute; NaN equals NaN here."""
    return (type(op), *(_bits(getattr(op, f.name)) for f in dataclasses.fields(op)))


def _bits(value: Any) -> Hashable:
    if isinstance(value, float):
        return struct.pack("d", value)
    return tuple(map(_bits, value)) if isinstance(value, tuple) else value
