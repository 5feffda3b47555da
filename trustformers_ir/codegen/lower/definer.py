"""The pointwise definition of every value of a region: the expression of one element at a symbolic index.

This is the tensor-expression view (Halide, TVM te): an op is a function from an output index to a scalar expression over its operands'
elements. A fused region is lowered by inlining these definitions into each other down to loads. What each op does is a rule in
``definitions/``; which loops run around the result, and in which order, is decided later and cannot change a bit.

Narrow floats (f16, bf16) are lifted to f32 for arithmetic and rounded to their dtype after every op, exactly as if every value had been
stored, so fusing never changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import Store
from trustformers_ir.codegen.kernel_ir.nodes import (
    LANES,
    SEQ,
    VECTOR,
    Axis,
    Buffer,
    CheckedIndex,
    Const,
    Expr,
    Load,
    binary,
    cast,
    const,
    reduce,
    unary,
)
from trustformers_ir.codegen.kernel_ir.optable import SUPPORTED
from trustformers_ir.codegen.lower.indexing import Flattening, Index, broadcast_index, dim_expr, expr_dim
from trustformers_ir.codegen.op_rules import OpRules
from trustformers_ir.ir.abi import Site
from trustformers_ir.ir.core import Operation, Value
from trustformers_ir.ir.diagnostics import Code, CompilerError, Diagnostic, Where
from trustformers_ir.ir.dims import Dim, Facts, product
from trustformers_ir.ir.dtypes import EIGHTHS, HALVES, DType
from trustformers_ir.ir.types import Panels

#: Steps of 16 lanes (last dimension) or of one element (others) that an f32 sum takes before it is added to a sum in f64.
FOLD_STEPS = 256

Rule = Callable[["Definer", Operation, Index, int], Expr]
RULES: OpRules[Rule] = OpRules()
define = RULES.register


def compute_dtype(dtype: DType) -> DType:
    """The dtype in which arithmetic on ``dtype`` is done."""
    return DType.f32 if dtype in HALVES | EIGHTHS else dtype


def unsupported(operation: Operation, what: str, help: str) -> CompilerError:
    """The error for a form that has no native code yet."""
    return CompilerError(Diagnostic(Code.UNSUPPORTED_OP, what, _place(operation, operation), help))


def require_native(operation: Operation, region: Operation) -> None:
    """Raise unless there is native arithmetic for every dtype that an operation of ``region`` touches."""
    for value in (*operation.inputs, *operation.results):
        if value.type.dtype not in SUPPORTED:
            message = f"{value.type.dtype} tensors have no native code"
            help = "run the module with tfir.evaluate, or keep the real and imaginary parts apart"
            raise CompilerError(Diagnostic(Code.UNSUPPORTED_DTYPE, message, _place(operation, region), help))


def _place(operation: Operation, region: Operation) -> Where:
    """Where an operation comes from; one that hands something out stands where its region does."""
    loc = operation.loc or region.loc
    mnemonic = None if operation.op.terminator else operation.op.mnemonic
    return Where(file=loc.file if loc else None, line=loc.line if loc else None, op=mnemonic)


@dataclass(frozen=True)
class Blocks:
    """The axes of a fold: those of a short one inside, those around it, and the index of each folded dimension."""

    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    places: dict[int, Expr]

    def sum(self, body: Expr) -> Expr:
        """The sum of ``body``. Sums of f32 over blocks are added up in f64: a rounding error grows with the size of a block, not of the array."""
        part = reduce("sum", self.inner, body)
        return cast(reduce("sum", self.outer, cast(part, DType.f64)), part.dtype) if self.outer else part


class Sites:
    """Collects the checked index sites of a program and numbers them."""

    def __init__(self) -> None:
        self._numbers: dict[Site, int] = {}
        self.asked = 0  # how often a number was given out

    def add(self, operation: Operation, what: str, bound: Dim) -> int:
        """The number of a site. One that an error would describe in the same words, as that of another layer, is the same."""
        self.asked += 1
        site = Site(operation.op.mnemonic, what, str(bound), str(operation.loc) if operation.loc else "")
        return self._numbers.setdefault(site, len(self._numbers))

    @property
    def rows(self) -> list[Site]:
        """The sites in the order of their numbers."""
        return list(self._numbers)


@dataclass(frozen=True)
class Arithmetic:
    """How a machine computes what more than one way is right for. ``tree``: rows up to that length are added up by a tree, whose error hardly grows
    with their length. ``fast_exp``: where a result is rounded to 16 bits, the machine's own exponential and reciprocal, off by a few units of f32 in
    the last place, are good enough: the polynomial and a division take 35 instructions for each element of a softmax, which is more than a GPU can do
    while the element comes from memory."""

    tree: int = 0
    fast_exp: bool = False


PORTABLE = Arithmetic()


class Definer:
    """Expressions of the values of one region. ``names`` says which values are in memory; everything else is inlined.

    A value's buffer is made at the first access, in the shape in which that access sees it (runs of dims walked by one axis merged), so
    that printed kernels and address arithmetic are as flat as the loops.
    """

    def __init__(
        self, facts: Facts, names: dict[Value, str], sites: Sites, written: frozenset[Value] = frozenset(), means: Arithmetic = PORTABLE
    ) -> None:
        self.means = means
        self.facts = facts
        self.names = names
        self.sites = sites
        self.written = written
        self.buffers: dict[Value, Buffer] = {}
        self.flat = Flattening(facts)
        self.overrides: dict[Value, Callable[[Index], Expr]] = {}
        self._memo: dict[tuple[Value, Index], Expr] = {}
        self._shared: dict[Hashable, Expr] = {}
        self._sites: dict[tuple[Operation, str], int] = {}

    def at(self, value: Value, index: Sequence[Expr]) -> Expr:
        """The element of ``value`` at ``index``, in the value's dtype."""
        key = (value, tuple(index))
        hit = self._memo.get(key)
        if hit is None:
            hit = self._memo[key] = self._define(*key)
        return hit

    def _define(self, value: Value, index: Index) -> Expr:
        if value in self.overrides:
            return self.overrides[value](index)
        if value in self.names:
            return Load(*self.place(value, index))
        operation = value.producer
        assert operation is not None, "a region argument has a buffer"
        rule = RULES.get(type(operation.op))
        if rule is None:
            help = "give it a definition in codegen/lower/definitions/ (CONTRIBUTING.md), or run the module with tfir.evaluate"
            raise unsupported(operation, f"'{operation.op.mnemonic}' has no native code", help)
        out = rule(self, operation, index, value.index)
        assert out.dtype is value.type.dtype, f"{operation.op.mnemonic}: defined as {out.dtype}, typed {value.type.dtype}"
        return out

    def place(self, value: Value, index: Index) -> tuple[Buffer, Index]:
        """Where an element of a value in memory lies; packed layouts are addressed by their logical index."""
        layout, shape = value.type.layout, value.type.shape
        if isinstance(layout, Panels):
            return self._buffer(value, layout.storage(shape)), layout.place(index)
        merged, dims = self.flat.merge(index, shape)
        buffer = self._buffer(value, dims)
        wanted = tuple(dim_expr(d) for d in dims)
        if buffer.shape == wanted:
            return buffer, merged
        if len(buffer.shape) == len(shape):
            return buffer, index
        return buffer, self.flat.digits(self.flat.linear(index, shape), [expr_dim(d) for d in buffer.shape])

    def store(self, value: Value, index: Index, expr: Expr) -> Store:
        """Puts an element of a value into memory."""
        buffer, at = self.place(value, index)
        return Store(buffer, at, expr)

    def _buffer(self, value: Value, dims: Sequence[Dim]) -> Buffer:
        buffer = self.buffers.get(value)
        if buffer is None:
            shape = tuple(dim_expr(d) for d in dims)
            buffer = self.buffers[value] = Buffer(self.names[value], value.type.dtype, shape, None, readonly=value not in self.written)
        return buffer

    def once(self, key: Hashable, build: Callable[[], Expr]) -> Expr:
        """Build a fold once per key. Axes are identities, so two folds built apart would be computed twice."""
        hit = self._shared.get(key)
        if hit is None:
            hit = self._shared[key] = build()
        return hit

    def operand(self, operation: Operation, number: int, index: Index) -> Expr:
        """Operand ``number`` at the result's ``index`` under broadcasting, lifted to its compute dtype."""
        value = operation.operands[number]
        assert value is not None
        return self.lifted(value, broadcast_index(index, value.type.shape, operation.results[0].type.shape))

    def lifted(self, value: Value, index: Sequence[Expr]) -> Expr:
        """The element in the dtype in which arithmetic is done."""
        x = self.at(value, tuple(index))
        return cast(x, compute_dtype(x.dtype))

    def finish(self, operation: Operation, result: int, expr: Expr) -> Expr:
        """Round a computed expression to the dtype of the result."""
        return cast(expr, operation.results[result].type.dtype)

    def exp(self, x: Expr, dtype: DType) -> Expr:
        """``e ** x`` on the way to a result of ``dtype``."""
        if self.means.fast_exp and dtype in HALVES:
            return unary("fast_exp2", x * math.log2(math.e))
        return unary("exp", x)

    def quotient(self, a: Expr, b: Expr, dtype: DType) -> Expr:
        """``a / b``, where many are divided by the same, on the way to a result of ``dtype``."""
        return a * unary("recip", b) if self.means.fast_exp and dtype in HALVES else a / b

    def checked(self, operation: Operation, raw: Expr, bound: Dim, what: str) -> Expr:
        """A data-dependent index, checked against ``bound`` at run time."""
        if raw.dtype is DType.u64:  # the upper half must not wrap round to valid negative indices
            raw = binary("min", raw, Const(DType.i64.max, DType.u64))
        site = self._sites.get((operation, what))  # one per operation, however often the fused code asks for its elements: equal checks are one
        if site is None:
            site = self._sites[operation, what] = self.sites.add(operation, what, bound)
        return CheckedIndex(cast(raw, DType.i64), dim_expr(bound), site)

    def reduce_axes(self, shape: Sequence[Dim], axes: Sequence[int]) -> dict[int, Axis]:
        """Fresh axes for a fold over ``axes`` of an array of ``shape``: the last dimension folds in 16 lanes, the others in order."""
        last = len(shape) - 1
        return {a: Axis(f"r{a}", dim_expr(shape[a]), VECTOR if a == last else SEQ) for a in sorted(axes)}

    def blocked_axes(self, shape: Sequence[Dim], axes: Sequence[int], dtype: DType) -> Blocks:
        """Fresh axes for a sum over ``axes`` of an array of ``shape``; for f32 cut so that the fold inside takes at most ``FOLD_STEPS`` steps."""
        whole = self.reduce_axes(shape, axes)
        if dtype is not DType.f32:
            return Blocks((), tuple(whole.values()), dict(whole))
        inner: list[Axis] = []
        outer: list[Axis] = []
        places: dict[int, Expr] = {}
        room = FOLD_STEPS
        for a, axis in reversed(whole.items()):
            lanes = LANES if axis.kind is VECTOR else 1
            most = self.facts.bounds(shape[a])[1]
            if not outer and most <= max(room * lanes, self.means.tree if axis.kind is VECTOR else 0):
                inner.append(axis)
                room //= max(-(-int(most) // lanes), 1)
                places[a] = axis
            elif not outer and room * lanes > 1:
                size = room * lanes
                block = Axis(f"b{a}", (axis.extent + (size - 1)) // size, SEQ)
                part = Axis(axis.name, binary("min", const(size), axis.extent - block * size), axis.kind)
                inner.append(part)
                outer.append(block)
                places[a] = block * size + part
            else:
                outer.append(axis)
                places[a] = axis
        return Blocks(tuple(reversed(outer)), tuple(reversed(inner)), places)

    def count(self, dims: Sequence[Dim], dtype: DType) -> Expr:
        """The product of ``dims`` as a number of ``dtype``."""
        expr = dim_expr(product(tuple(dims)))
        return Const(expr.value, dtype) if isinstance(expr, Const) else cast(expr, dtype)
