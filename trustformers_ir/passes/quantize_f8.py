"""Products with known weights are computed on 8-bit floats (E4M3), each row of an activation and of a weight with a scale of its own.

Before::

    %w = weight {name = "inner.weight"} : bf16[1536, 384]
    %y = linear(%x, %w, %bias) : bf16[batch, seq, 1536]

After::

    %q, %s = quantize_f8(%x) : f8e4m3[batch, seq, 384], f32[batch, seq, 1]
    %c = weight {name = "inner.weight.f8"} : f8e4m3[1536, 384]
    %t = weight {name = "inner.weight.f8.scale"} : f32[1536]
    %r = linear_f8(%q, %s, %c, %t, %b) : f32[batch, seq, 1536]
    %y = cast(%r) {dtype = bf16} : bf16[batch, seq, 1536]

That is what frameworks call W8A8 in FP8, per token and per channel (Micikevicius et al., "FP8 Formats for Deep Learning", 2022). GPUs whose matrix
instructions take such floats multiply them as they are, others widen them to f16, which holds them; CPUs compute in f32 (``widen_f8``). Both factors
of a product keep 4 digits, so each term moves by at most ``2**-4`` of itself from either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.ops.quantized_f8 import codes_of, scale_of
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.linears import Product, decision, moves_too_far, rewrite_products
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.quantize_int8 import Sensitive
from trustformers_ir.passes.weights import blocks, derived, moved, rows_of, sample_of


@dataclass(frozen=True)
class QuantizeF8(Sensitive, Pass):
    """The options say which products stay as they are."""

    name = "quantize_f8"
    summary = "compute products with known weights in 8-bit floats"
    requires = frozenset({"flat"})
    taken = HALVES | {DType.f32}
    most_terms = None

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("; ".join(problems))

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every product that is not sensitive; a row of the log's table tells what was decided about each."""
        activations: dict[Value, tuple[Value, Value]] = {}
        rewrite_products(module, log, "fp8", lambda product: self.attempt(module, product, activations))
        log.count("activations quantized", len(activations))

    def attempt(self, module: Module, product: Product, activations: dict[Value, tuple[Value, Value]]) -> tuple[Operation | None, str]:
        """The product in 8-bit floats, inserted before it; or None and the reason why not. ``activations`` are those that are quantized already."""
        refused = self.reason(product)
        if refused is not None:
            return None, refused
        matrix = F8Matrix(product)
        if (far := moves_too_far(matrix.error, self.max_error)) is not None:
            return None, far
        if not rewriting.allowed():
            return None, "TFIR_STOP_AFTER has been reached"
        builder = Builder.before(module, product.operation)
        x, bias = product.activation, product.bias
        if x not in activations:
            q, scale = builder.create(ops.QuantizeF8(), x).results
            activations[x] = q, scale
        if bias is not None and bias.type.dtype is not DType.f32:
            bias = builder(ops.Cast(DType.f32), bias)
        made = builder.create(ops.LinearF8(), *activations[x], *(builder(ops.WeightOp(w.name)) for w in matrix.weights(module)), bias)
        dtype = product.operation.result.type.dtype
        return made if dtype is DType.f32 else builder.create(ops.Cast(dtype), made.result), ""

    def decision(self, product: Product, made: Operation | None, reason: str) -> dict[str, object]:
        """A row of the log's table."""
        return decision(product, "fp8", made, reason)


class F8Matrix:
    """The 8-bit form of the weight of a product: scales now, codes when they are asked for. ``error`` is how far evenly spaced rows move, root mean
    square relative to them; infinite for a weight that is not finite."""

    def __init__(self, product: Product) -> None:
        assert product.weight is not None
        self.name = product.weight.name + (".transposed.f8" if product.transposed else ".f8")
        self.origin = ("f8", product.transposed, product.weight)
        self.sizes = product.sizes
        self._rows = rows_of(product.weight, product.transposed)
        rows = self._rows()
        self.scale = np.concatenate([_scales(np.ascontiguousarray(rows[part], np.float32)) for part in blocks(*rows.shape)])
        sample = sample_of(rows)
        scale = _scales(sample)[:, None]
        self.error = moved(sample, codes_of(sample, scale).astype(np.float64) * scale) if np.isfinite(self.scale).all() else math.inf

    def weights(self, module: Module) -> tuple[Weight, Weight]:
        """Codes ``f8e4m3[n, k]`` and scales ``f32[n]``."""
        n, k = self.sizes
        return (
            derived(module, self.name, TensorType((n, k), DType.f8e4m3), self.codes, self.origin),
            derived(module, f"{self.name}.scale", TensorType((n,), DType.f32), lambda: self.scale, (*self.origin, "scale")),
        )

    def codes(self) -> np.ndarray:
        rows = self._rows()
        out = np.empty(rows.shape, DType.f8e4m3.numpy)
        for part in blocks(*rows.shape):
            out[part] = codes_of(np.ascontiguousarray(rows[part], np.float32), self.scale[part, None])
        return out


def _scales(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = scale_of(np.maximum(rows.max(1, initial=0), -rows.min(1, initial=0)))
    return found
