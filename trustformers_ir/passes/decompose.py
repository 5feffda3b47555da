"""Ops without a kernel of their own become ops that have one.

Before::

    %y = einsum(%a, %b) {equation = "bqd,bkd->bqk"} : f32[b, q, k]

After::

    %t = transpose(%b) {perm = [0, 2, 1]} : f32[b, d, k]
    %y = matmul(%a, %t) : f32[b, q, k]

An einsum of two operands whose letters fall into batch, left, right and contracted ones is one matrix product between transposes and
reshapes: one rounding, as the einsum itself. Other einsums keep their definition as one sum of products.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.passes.manager import Pass, PassLog


@dataclass(frozen=True)
class Decompose(Pass):
    """Einsum to matrix product."""

    name = "decompose"
    summary = "express ops by simpler ones"
    requires = frozenset({"flat"})
    ensures = frozenset({"decomposed"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every operation that has a decomposition."""
        for function in module.functions.values():
            for operation in function.body:
                if isinstance(operation.op, ops.Einsum):
                    reason = _einsum(module, operation)
                    if reason is None:
                        log.count("einsum to matmul")
                    else:
                        log.miss("decomposed", f"einsum {operation.op.equation}: {reason}")


def _einsum(module: Module, operation: Operation) -> str | None:
    """Replace the operation; or the reason why not."""
    op = operation.op
    assert isinstance(op, ops.Einsum)
    if len(op.terms) != 2:
        return f"it has {len(op.terms)} operands"
    if "..." in op.equation:
        return "it broadcasts over '...'"
    left, right = op.terms
    if len(set(left)) != len(left) or len(set(right)) != len(right):
        return "a letter repeats in one operand"
    batch = [c for c in left if c in right and c in op.output]
    summed = [c for c in left if c in right and c not in op.output]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    if any(c not in op.output for c in (*rows, *columns)):
        return "a letter of one operand alone is summed"
    if not summed:
        return "nothing is contracted"
    if not rewriting.allowed():
        return "TFIR_STOP_AFTER has been reached"
    b = Builder.before(module, operation)
    sizes: dict[str, Dim] = {}
    for term, value in zip(op.terms, operation.inputs, strict=True):
        sizes |= dict(zip(term, value.type.shape, strict=True))

    def grouped(value: Value, term: str, groups: list[list[str]]) -> Value:
        """The operand with its axes in the order of the groups, the last two groups merged into one axis each."""
        order = [c for group in groups for c in group]
        value = _transposed(b, value, tuple(term.index(c) for c in order))
        shape = (*(sizes[c] for c in groups[0]), *(product([sizes[c] for c in group]) for group in groups[1:]))
        return _reshaped(b, value, shape)

    x = grouped(operation.inputs[0], left, [batch, rows, summed])
    y = grouped(operation.inputs[1], right, [batch, summed, columns])
    out = _reshaped(b, b(ops.MatMul(), x, y), tuple(sizes[c] for c in (*batch, *rows, *columns)))
    have = [*batch, *rows, *columns]
    operation.replace_with([_transposed(b, out, tuple(have.index(c) for c in op.output))])
    return None


def _transposed(b: Builder, value: Value, perm: tuple[int, ...]) -> Value:
    return value if perm == tuple(range(len(perm))) else b(ops.Transpose(perm), value)


def _reshaped(b: Builder, value: Value, shape: tuple[Dim, ...]) -> Value:
    return value if value.type.shape == shape else b(ops.Reshape(shape), value)
