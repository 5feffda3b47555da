"""Ops without a kernel of their own become ops that have one.

Before::

    %y = einsum(%a, %b) {equation = "bqd,bkd->bqk"} : f32[b, q, k]

After::

    %t = transpose(%b) {perm = [0, 2, 1]} : f32[b, d, k]
    %y = matmul(%a, %t) : f32[b, q, k]

and before::

    %y = conv2d(%x, %w, %bias) {stride = [16, 16]} : f32[batch, 768, 14, 14]      (%w is f32[768, 3, 16, 16])

after::

    %0 = reshape(%x) {shape = [batch, 3, 14, 16, 14, 16]} : f32[batch, 3, 14, 16, 14, 16]
    %1 = transpose(%0) {perm = [0, 2, 4, 1, 3, 5]} : f32[batch, 14, 14, 3, 16, 16]
    %2 = reshape(%1) {shape = [batch, 196, 768]} : f32[batch, 196, 768]
    %3 = reshape(%w) {shape = [768, 768]} : f32[768, 768]
    %4 = linear(%2, %3, %bias) : f32[batch, 196, 768]
    %5 = transpose(%4) {perm = [0, 2, 1]} : f32[batch, 768, 196]
    %y = reshape(%5) {shape = [batch, 768, 14, 14]} : f32[batch, 768, 14, 14]

An einsum of two operands whose letters fall into batch, left, right and contracted ones is one matrix product between transposes and
reshapes: one rounding, as the einsum itself. Other einsums keep their definition as one sum of products.

A convolution whose windows touch without overlapping (stride = window, as in the patch embedding of ViT) reads every element once: cutting x
into windows is a transpose, and what remains is one matrix product. It sums channel by channel and row by row, in the order of the
convolution's own kernel, so native results keep their bits. Rows and columns that fill no window are cut off before.
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
    """Einsums and convolutions of touching windows to matrix products."""

    name = "decompose"
    summary = "express ops by simpler ones"
    requires = frozenset({"flat"})
    ensures = frozenset({"decomposed"})

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every operation that has a decomposition."""
        for function in module.functions.values():
            for operation in function.body:
                if isinstance(operation.op, ops.Einsum):
                    _say(log, _einsum(module, operation), "einsum to matmul", f"einsum {operation.op.equation}")
                elif isinstance(operation.op, ops.ConvOp):
                    _say(log, _convolution(module, operation), "convolution to linear", operation.op.mnemonic)


def _say(log: PassLog, reason: str | None, done: str, what: str) -> None:
    if reason is None:
        log.count(done)
    else:
        log.miss("decomposed", f"{what}: {reason}")


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


def _convolution(module: Module, operation: Operation) -> str | None:
    """Replace the operation; or the reason why not."""
    op = operation.op
    assert isinstance(op, ops.ConvOp)
    x, weight, bias = operation.operands
    assert x is not None and weight is not None
    windows, grid = weight.type.shape[2:], operation.result.type.shape[2:]
    for axis, ((stride, before, after, dilation), window) in enumerate(zip(op.geometry(), windows, strict=True), 2):
        if before or after:
            return f"axis {axis} is padded"
        if stride != window:
            return f"windows of {window} every {stride} along axis {axis} do not touch without overlapping"
        if dilation != 1 and window != 1:
            return f"windows have gaps along axis {axis}"
        if not module.facts.is_less_equal(grid[axis - 2] * window, x.type.shape[axis]):
            return f"it is not known that {grid[axis - 2]} windows of {window} fit into {x.type.shape[axis]}"
    if op.group_count != 1:
        return f"it has {op.group_count} groups"
    if not rewriting.allowed():
        return "TFIR_STOP_AFTER has been reached"
    b = Builder.before(module, operation)
    batch, channels, outputs = *x.type.shape[:2], weight.type.shape[0]
    for axis, (count, window) in enumerate(zip(grid, windows, strict=True), 2):
        if not module.facts.is_equal(x.type.shape[axis], count * window):
            x = b(ops.Slice(axis, 0, count * window), x)
    n = len(grid)
    pieces = [d for pair in zip(grid, windows, strict=True) for d in pair]
    cut = _reshaped(b, x, (batch, channels, *pieces))
    cut = _transposed(b, cut, (0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2)))
    taps = channels * product(windows)
    rows = _reshaped(b, cut, (batch, product(grid), taps))
    y = b(ops.Linear(), rows, _reshaped(b, weight, (outputs, taps)), bias)
    operation.replace_with([_reshaped(b, b(ops.Transpose((0, 2, 1)), y), operation.result.type.shape)])
    return None


def _transposed(b: Builder, value: Value, perm: tuple[int, ...]) -> Value:
    return value if perm == tuple(range(len(perm))) else b(ops.Transpose(perm), value)


def _reshaped(b: Builder, value: Value, shape: tuple[Dim, ...]) -> Value:
    return value if value.type.shape == shape else b(ops.Reshape(shape), value)
