"""Products with known weights are computed in 8-bit integers: int8 weights per output, unsigned 8-bit activations.

Before::

    %w = weight {name = "inner.weight"} : f32[1536, 384]
    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]

After::

    %q, %s, %z = quantize_dynamic(%x) : u8[batch, seq, 384], f32[batch, seq, 1], i32[batch, seq, 1]
    %w = weight {name = "inner.weight.int8"} : i8[1536, 384]
    %a = weight {name = "inner.weight.int8.scale"} : f32[1536]
    %b = weight {name = "inner.weight.int8.sum"} : i32[1536]
    %y = linear_int8(%q, %s, %z, %w, %a, %b, %bias) : f32[batch, seq, 1536]

or, where ``ranges`` tells between which values %x lies (``passes/calibration.py``)::

    %s, %z = constant() 0.0235 : f32[], constant() 121 : i32[]
    %q = quantize_static(%x, %s, %z) : u8[batch, seq, 384]

With ``smoothings`` (``passes/smoothing.py``) %x is multiplied by a vector first, ``1 / factors``, and the columns of the weight by ``factors`` before
they become integers.

An activation is quantized once for all its readers. Row n of a weight becomes ``round(w / scale)`` with ``scale = max |w| / 127``, ties to even,
in -127 … 127 (symmetric and per output: Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 3). The integers are made
when the bytes are first asked for, weight by weight; before that each weight is read once, for its scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation, Value, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.ops.quantized import MOST_TERMS
from trustformers_ir.ir.rewriting import constant_of
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.calibration import Ranges
from trustformers_ir.passes.linears import Product, decides, decision, moves_too_far, rewrite_products
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.options import IN_PYTHON, not_patterns, not_positive
from trustformers_ir.passes.smoothing import Smoothing
from trustformers_ir.passes.weights import blocks, derived, rows_of, step_of, steps_of

SMOOTHING = ".smoothing"  # behind the name of a product: the vector that its activation is multiplied by


@dataclass(frozen=True)
class Sensitive:
    """Which products stay in f32: the options that the pass and the recipe share.

    ``keep`` has patterns of names (``*`` and ``?``; a merged product is kept with any of its parts). Without ``heads``, products that give a
    result of the model through nothing but elementwise operations and views stay: poolers, classifiers, logits. ``min_size``: those with fewer
    outputs or terms gain less than quantizing their activation costs. ``max_error``: those whose weight would move further, relatively.
    """

    keep: tuple[str, ...] = ()
    heads: bool = False
    min_size: int = 32
    max_error: float = 0.05

    #: dtypes of activations and weights that are quantized, and the most terms of a sum, where it has bounds
    taken: ClassVar[frozenset[DType]] = frozenset({DType.f32})
    most_terms: ClassVar[int | None] = MOST_TERMS

    @property
    def sensitive(self) -> dict[str, Any]:
        """The shared options by name."""
        return {f.name: getattr(self, f.name) for f in fields(Sensitive)}

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = not_patterns("keep", self.keep)
        if not isinstance(self.heads, bool):
            found.append(f"heads is {self.heads!r}, not True or False")
        if not isinstance(self.min_size, int) or isinstance(self.min_size, bool) or self.min_size < 1:
            found.append(f"min_size is {self.min_size!r}, not a whole number of at least 1")
        return found + not_positive("max_error", self.max_error)

    def reason(self, product: Product) -> str | None:
        """Why a product stays in f32, as far as that can be said without looking at the weight."""
        if product.named_by(self.keep):
            return "keep names it"
        if product.weight is None:
            return "its weight is not known at build time"
        for what, dtype in (("its activation", product.activation.type.dtype), ("its weight", product.weight.type.dtype)):
            if dtype not in self.taken:
                return f"{what} is {dtype}, and only {', '.join(sorted(map(str, self.taken)))} is quantized"
        n, k = product.sizes
        if min(n, k) < self.min_size:
            return f"{n} outputs of {k} terms: one is below min_size = {self.min_size}"
        if self.most_terms is not None and k > self.most_terms:
            return f"a sum of {k} terms may leave an i32"
        return decides(product, self.heads)


@dataclass(frozen=True)
class QuantizeInt8(Sensitive, Pass):
    """With ``ranges`` (by name of the product) activations have constants for scale and zero point; without, those of each row. ``smoothings``, by
    name as well, are those of products whose activations are divided."""

    ranges: Ranges | None = field(default=None, metadata=IN_PYTHON)
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict, metadata=IN_PYTHON)

    name = "quantize_int8"
    summary = "compute products with known weights in 8-bit integers"
    requires = frozenset({"flat"})

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("; ".join(problems))

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every product that is not sensitive; a row of the log's table tells what was decided about each."""
        activations: dict[Value, tuple[Value, Value, Value]] = {}
        rewrite_products(module, log, "int8", lambda product: self.attempt(module, product, activations))
        log.count("activations quantized", len(activations))

    def attempt(
        self, module: Module, product: Product, activations: dict[Value, tuple[Value, Value, Value]]
    ) -> tuple[Operation | None, str]:
        """The product in integers, inserted before it; or None and the reason why not. ``activations`` are those that are quantized already."""
        refused = self.reason(product)
        if refused is not None:
            return None, refused
        assert product.weight is not None
        if self.ranges is not None and product.name not in self.ranges:
            return None, "calibration has not seen its activation"
        smoothing = self.smoothings.get(product.name)
        matrix = Int8Matrix(product, None if smoothing is None else smoothing.factors)
        if (far := moves_too_far(matrix.error, self.max_error)) is not None:
            return None, far
        if not rewriting.allowed():
            return None, "TFIR_STOP_AFTER has been reached"
        builder = Builder.before(module, product.operation)
        x = product.activation
        if x not in activations:
            activations[x] = self._quantized(module, builder, product)
        weights = [builder(ops.WeightOp(w.name)) for w in matrix.weights(module)]
        return builder.create(ops.LinearInt8(), *activations[x], *weights, product.bias), ""

    def decision(self, product: Product, made: Operation | None, reason: str) -> dict[str, object]:
        """A row of the log's table."""
        return decision(product, "int8", made, reason)

    def _quantized(self, module: Module, builder: Builder, product: Product) -> tuple[Value, Value, Value]:
        x = product.activation
        smoothing = self.smoothings.get(product.name)
        if smoothing is not None:
            inverse = np.float32(1) / smoothing.factors
            type = TensorType(inverse.shape, DType.f32)
            vector = derived(module, f"{product.name}{SMOOTHING}", type, _always(inverse), ("smoothing", inverse.tobytes()))
            x = builder(ops.Mul(), x, builder(ops.WeightOp(vector.name)))
        if self.ranges is None:
            q, scale, zero = builder.create(ops.QuantizeDynamic(), x).results
            return q, scale, zero
        known = self.ranges[product.name]
        constants = constant_of(builder, known.scale, TensorType((), DType.f32)), constant_of(builder, known.zero, TensorType((), DType.i32))
        return builder(ops.QuantizeStatic(), x, *constants), *constants


class Int8Matrix:
    """The 8-bit form of the weight of a product: scales now, integers when they are asked for, and their sums along with them.

    ``error`` is the expected root mean square of what rounding moves, relative to that of the weight: a rounding error is spread evenly over a
    step, ``scale**2 / 12`` on average. NaN or infinite for a weight that is not finite. ``factors`` f32[k] multiply the columns of the
    integers; ``error`` is that without them, for they were chosen by the error of the product.
    """

    def __init__(self, product: Product, factors: np.ndarray | None = None) -> None:
        assert product.weight is not None
        self.name = product.weight.name + (".transposed.int8" if product.transposed else ".int8")
        self.origin = ("int8", product.transposed, product.weight, None if factors is None else factors.tobytes())
        self.sizes = product.sizes
        self._factors = factors
        self._rows = rows_of(product.weight, product.transposed)
        rows = self._rows()
        largest, squares, smooth = np.empty(len(rows), np.float32), np.empty(len(rows), np.float64), np.empty(len(rows), np.float32)
        for part in blocks(*rows.shape):
            block = np.ascontiguousarray(rows[part])
            np.maximum(block.max(1), -block.min(1), out=largest[part])
            if factors is not None:
                smooth[part] = np.abs(self._smooth(block)).max(1)
            with np.errstate(all="ignore"):
                squares[part] = np.einsum("nk,nk->n", block, block)
            if not (np.isfinite(squares[part]) & ((squares[part] > 0) | (largest[part] == 0))).all():  # beyond the range of f32
                squares[part] = np.square(block.astype(np.float64)).sum(1)
        plain = step_of(largest)
        self.scale = plain if factors is None else step_of(smooth)
        with np.errstate(all="ignore"):
            moved = rows.shape[1] / 12 * np.square(plain.astype(np.float64)).sum(where=largest > 0)
            self.error = float(np.sqrt(moved / squares.sum())) if squares.any() else 0.0
        self._sums: np.ndarray | None = None

    def weights(self, module: Module) -> tuple[Weight, Weight, Weight]:
        """Integers ``i8[n, k]``, scales ``f32[n]`` and sums of the integers of each row ``i32[n]``."""
        n, k = self.sizes
        return (
            derived(module, self.name, TensorType((n, k), DType.i8), self.integers, self.origin),
            derived(module, f"{self.name}.scale", TensorType((n,), DType.f32), _always(self.scale), (*self.origin, "scale")),
            derived(module, f"{self.name}.sum", TensorType((n,), DType.i32), self.sums, (*self.origin, "sum")),
        )

    def integers(self) -> np.ndarray:
        """``i8[n, k]``, made anew each time: whoever packs them keeps them."""
        rows = self._rows()
        out = np.empty(rows.shape, np.int8)
        for part in blocks(*rows.shape):
            out[part] = steps_of(self._smooth(rows[part]), self.scale[part])
        if self._sums is None:
            self._sums = out.sum(1, dtype=np.int32)
        return out

    def _smooth(self, block: np.ndarray) -> np.ndarray:
        return block if self._factors is None else block * self._factors

    def sums(self) -> np.ndarray:
        """``i32[n]``; kept, for they are small and cost as much as the integers."""
        if self._sums is None:
            self.integers()
        assert self._sums is not None
        return self._sums


def _always(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array
