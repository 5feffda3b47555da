"""Products and tables read weights of 16 bits, and compute in f32: half the bytes to keep and to read, which is what few rows cost.

Before::

    %w = weight {name = "inner.weight"} : f32[1536, 384]
    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    %t = weight {name = "word.weight"} : f32[30522, 384]
    %e = embedding(%t, %ids) : f32[batch, seq, 384]

After::

    %w = weight {name = "inner.weight.bf16"} : bf16[1536, 384]
    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    %t = weight {name = "word.weight.bf16"} : bf16[30522, 384]
    %r = embedding(%t, %ids) : bf16[batch, seq, 384]
    %e = cast(%r) {dtype = f32} : f32[batch, seq, 384]

Without ``dtype`` that is done to weights that were 16 bits wide in the checkpoint and were only cast to f32: no bit of any result changes. With
``dtype`` all others are rounded to it, once, ties to even, when their bytes are first asked for; nothing else is rounded, so the error is that
of the weights alone: at most ``2**-9`` of each with bf16, ``2**-12`` with f16 where it is a normal number of f16.

A product of activations in 16 bits gets them in f32 as well, ``cast(linear(cast(%x), %w, cast(%bias)))``: the sum, the bias and the one rounding at
the end are what they were, and the register tiles read %x as it is instead of converting each element once per tile. The casts go into the regions
before and after.

Parameters of norms and biases stay in f32: they are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.mapped import let_go
from trustformers_ir.ir.types import ROW_MAJOR, TensorType
from trustformers_ir.passes.linears import Product, decision, products
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.merge_linears import JOINED, joined
from trustformers_ir.passes.options import not_patterns, not_positive
from trustformers_ir.passes.weights import blocks, converted, derived, mapped_files, weight_of

LARGEST_F16 = 65504.0
STEP_F16 = 2.0**-24  # between its smallest numbers, those below 2**-14


@dataclass(frozen=True)
class NarrowWeights(Pass):
    """``dtype``: bf16 or f16, to which weights of f32 are rounded, but for those of products that a pattern of ``keep`` (``*`` and ``?``) names; None
    rounds nothing. ``max_error``: an f16 weight that would move further, root mean square relative to itself, stays; bf16 has the range of f32."""

    dtype: DType | None = None
    keep: tuple[str, ...] = ()
    max_error: float = 0.01

    name = "narrow_weights"
    summary = "read weights of 16 bits where products compute in f32"
    requires = frozenset({"flat"})

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in HALVES:
            raise ValueError(f"dtype is {self.dtype}, not bf16 or f16")
        for problem in not_patterns("keep", self.keep) + not_positive("max_error", self.max_error):
            raise ValueError(problem)

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every product and every table of embeddings; with ``dtype`` a row of the log's table tells what was decided about each product."""
        sources = mapped_files(module)
        for product in list(products(module)):
            if product.operation.result.type.dtype in HALVES:
                self._widen(module, product, log)
                continue
            made, reason = self.attempt(module, product)
            let_go(sources)
            if made is not None:
                product.operation.replace_with([made.result])
                log.count("products by 16-bit weights")
            if self.dtype is not None:
                if made is None:
                    log.miss(f"{product.name} in {self.dtype}", reason)
                log.row(**self.decision(product, made, reason))
        self.tables(module, log)

    def tables(self, module: Module, log: PassLog) -> None:
        """Rewrites every lookup in a table of f32."""
        for function in module.functions.values():
            for operation in function.body:
                if isinstance(operation.op, ops.Embedding) and operation.result.type.dtype is DType.f32:
                    self._table(module, operation, log)

    def attempt(self, module: Module, product: Product) -> tuple[Operation | None, str]:
        """The product by a weight in 16 bits, inserted before it; or None and the reason why not."""
        o, weight = product.operation, product.weight
        if weight is None:
            return None, "its weight is not known at build time"
        for what, dtype in (("its activation", product.activation.type.dtype), ("its weight", weight.type.dtype)):
            if dtype is not DType.f32:
                return None, f"{what} is {dtype}, and only f32 is rounded"
        if product.activation.type.rank < 2:
            return None, "its activation is a vector"
        if product.named_by(self.keep):
            return None, "keep names it"
        narrow, reason = self._narrow(module, weight)
        if narrow is None:
            return None, reason
        if not rewriting.allowed():
            return None, "TFIR_STOP_AFTER has been reached"
        builder = Builder.before(module, o)
        if product.transposed:
            narrow = _turned(module, narrow)
        return builder.create(ops.Linear(), product.activation, builder(ops.WeightOp(narrow.name)), product.bias), ""

    def decision(self, product: Product, made: Operation | None, reason: str) -> dict[str, object]:
        """A row of the log's table. Without a dtype, weights are taken as they are stored."""
        return decision(product, "stored" if self.dtype is None else self.dtype.name, made, reason)

    def _narrow(self, module: Module, weight: Weight) -> tuple[Weight | None, str]:
        """The weight in 16 bits; None and the reason where it should not have them."""
        if (stored := as_stored(module, weight)) is not None:
            return stored, ""
        if self.dtype is None:
            return None, "it is f32 in the checkpoint"
        dtype = self.dtype
        if dtype is DType.f16:
            largest, error = _as_f16(weight.data)
            if not largest <= LARGEST_F16:
                return None, f"its weight holds {largest:.3g}, and f16 ends at {LARGEST_F16:g}"
            if error > self.max_error:
                return None, f"its weight would move by up to {error:.2%}, more than max_error = {self.max_error:.2%}"
        return derived(module, f"{weight.name}.{dtype}", weight.type.with_dtype(dtype), _rounded(weight, dtype), (ops.Cast(dtype), weight)), ""

    def _table(self, module: Module, operation: Operation, log: PassLog) -> None:
        weight = weight_of(module, operation.inputs[0])
        if weight is None or weight.type.layout != ROW_MAJOR:
            return
        if any(fnmatchcase(weight.name.removesuffix(".weight"), pattern) for pattern in self.keep):
            return
        narrow, _ = self._narrow(module, weight)
        if narrow is None or not rewriting.allowed():
            return
        builder = Builder.before(module, operation)
        rows = builder(operation.op, builder(ops.WeightOp(narrow.name)), operation.inputs[1])
        operation.replace_with([builder(ops.Cast(DType.f32), rows)])
        log.count("tables in 16 bits")

    def _widen(self, module: Module, product: Product, log: PassLog) -> None:
        o, weight = product.operation, product.weight
        x, bias, dtype = product.activation, product.bias, o.result.type.dtype
        if weight is None or x.type.rank < 2 or not rewriting.allowed():
            return
        builder = Builder.before(module, o)
        if product.transposed:
            weight = _turned(module, weight)
        wide = None if bias is None else _widened(module, builder, bias)
        y = builder(ops.Linear(), builder(ops.Cast(DType.f32), x), builder(ops.WeightOp(weight.name)), wide)
        o.replace_with([builder(ops.Cast(dtype), y)])
        log.count("products of 16-bit activations in f32")


def as_stored(module: Module, weight: Weight) -> Weight | None:
    """The weight of f16 or bf16 whose values these are, where they are one's, or those of several of one dtype that were joined."""
    match weight.origin:
        case (ops.Cast(DType.f32), Weight() as source) if source.type.dtype in HALVES:
            return source
        case (str() as how, *parts) if how == JOINED:
            found = [s for p in parts if isinstance(p, Weight) and (s := as_stored(module, p)) is not None]
            return joined(module, found) if len(found) == len(parts) and len({s.type.dtype for s in found}) == 1 else None
    return None


def _widened(module: Module, builder: Builder, bias: Value) -> Value:
    known = weight_of(module, bias)
    if known is None:
        return builder(ops.Cast(DType.f32), bias)
    type = known.type.with_dtype(DType.f32)
    wide = derived(module, f"{known.name}.f32", type, lambda: converted(known.data, DType.f32), (ops.Cast(DType.f32), known))
    return builder(ops.WeightOp(wide.name))


def _turned(module: Module, weight: Weight) -> Weight:
    """``[k, n]`` as ``[n, k]``."""
    k, n = weight.type.shape
    type = TensorType((n, k), weight.type.dtype)
    return derived(module, f"{weight.name}.transposed", type, lambda: np.ascontiguousarray(weight.data.T), (ops.Transpose((1, 0)), weight))


def _rounded(weight: Weight, dtype: DType) -> Callable[[], np.ndarray]:
    return lambda: converted(weight.data, dtype)


def _as_f16(array: np.ndarray) -> tuple[float, float]:
    """The largest magnitude, NaN where one is NaN, and a bound on the root mean square of what rounding to f16 moves, relative to that of the values:
    ``2**-12`` of each, and half a step of those that are too small for that."""
    largest, squares = 0.0, 0.0
    for part in blocks(*array.shape):
        block = np.ascontiguousarray(array[part]).reshape(-1)
        largest = float(np.maximum(largest, np.maximum(block.max(initial=0), -block.min(initial=0))))  # NaN stays NaN
        squares += float(np.einsum("i,i->", block, block, dtype=np.float64))
    norm = np.sqrt(squares / max(array.size, 1))
    return largest, float(2.0**-12 + STEP_F16 / 2 / norm) if norm else 0.0
