"""Products with known weights read weights in blocks of 4 or 8 bits; activations and sums stay as they are.

Before::

    %w = weight {name = "inner.weight"} : bf16[1536, 384]
    %y = linear(%x, %w, %bias) : bf16[batch, seq, 1536]

After, in ``q4_0``::

    %c = weight {name = "inner.weight.q4_0.codes"} : u8[1536, 192]
    %s = weight {name = "inner.weight.q4_0.scale"} : f16[1536, 12]
    %y = linear_blocks(%x, %c, %s, none, none, none, %bias) {format = q4_0, group = 32} : bf16[batch, seq, 1536]

The formats are those of ``ir/block_formats.py``. A weight is quantized when the bytes of its first plane are asked for; the other planes wait for who
asks for them, so each weight is read and quantized once. Before that a sample of its rows is, to see how far it would move.

The matrices of experts (``expert_matmul``) become planes with one more axis, and the product an ``expert_blocks``. What chooses the experts stays
as it is: it is small, and an expert that is not the one is as far off as can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir import ops, rewriting
from trustformers_ir.ir.block_formats import ACTIVATIONS, FORMATS, Format, dequantize, quantize
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Operation
from trustformers_ir.passes.block_planes import BlockPlanes
from trustformers_ir.passes.linears import Product, decides, decision, moves_too_far, rewrite_products
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.options import not_patterns, not_positive
from trustformers_ir.passes.weights import blocks, moved, rows_of, sample_of


@dataclass(frozen=True)
class QuantizeBlocks(Pass):
    """``format`` is one that has a quantizer; ``group`` is the number of elements of a group, 0 where the format says that. ``keep`` has patterns of
    names of products (``*`` and ``?``) that stay as they are; without ``heads``, products that give a result of the model through nothing but
    elementwise operations and views stay as well. ``max_error``: a weight that would move further, root mean square relative to itself, stays."""

    format: Format = Format.Q4_0
    group: int = 0
    keep: tuple[str, ...] = ()
    heads: bool = False
    max_error: float = 0.2

    name = "quantize_blocks"
    summary = "read weights in blocks of 4 or 8 bits where products know them"
    requires = frozenset({"flat"})

    def __post_init__(self) -> None:
        row = FORMATS[self.format]
        problems = not_patterns("keep", self.keep) + not_positive("max_error", self.max_error)
        if not isinstance(self.heads, bool):
            problems.append(f"heads is {self.heads!r}, not True or False")
        if row.quantize is None:
            problems.append(f"nothing is quantized to {self.format.value} yet")
        if row.group and self.group:
            problems.append(f"group is {self.group}, and {self.format.value} has groups of {row.group}")
        elif not row.group and (not isinstance(self.group, int) or self.group < 2 or self.group % 2):
            problems.append(f"group is {self.group!r}, not an even number of at least 2")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def kind(self) -> str:
        """The name of the recipe, under which rows of the table say whether a product is quantized."""
        return "int4" if self.format is Format.INT4_ZERO else self.format.value

    def run(self, module: Module, log: PassLog) -> None:
        """Rewrites every product that may be; a row of the log's table tells what was decided about each."""
        rewrite_products(module, log, self.kind, lambda product: self.attempt(module, product), experts=True)

    def attempt(self, module: Module, product: Product) -> tuple[Operation | None, str]:
        """The product by a weight in blocks, inserted before it; or None and the reason why not."""
        refused = self.reason(product)
        if refused is not None:
            return None, refused
        assert product.weight is not None
        matrix = BlockMatrix(product, self.format, self.group)
        far = moves_too_far(matrix.error(), self.max_error, "its weight has values that are not finite, or too large for scales in f16")
        if far is not None:
            return None, far
        if not rewriting.allowed():
            return None, "TFIR_STOP_AFTER has been reached"
        builder = Builder.before(module, product.operation)
        operands = matrix.planes.operands(module, builder)
        if isinstance(product.operation.op, ops.ExpertMatMul):
            experts = product.operation.inputs[2]
            return builder.create(ops.ExpertBlocks(self.format, matrix.group), product.activation, *operands, experts), ""
        return builder.create(ops.LinearBlocks(self.format, matrix.group), product.activation, *operands, product.bias), ""

    def reason(self, product: Product) -> str | None:
        """Why a product stays as it is, as far as that can be said without looking at the weight."""
        if product.named_by(self.keep):
            return "keep names it"
        if product.weight is None:
            return "its weight is not known at build time"
        for what, dtype in (("its activation", product.activation.type.dtype), ("its weight", product.weight.type.dtype)):
            if dtype not in ACTIVATIONS:
                return f"{what} is {dtype}, and only f32, f16 and bf16 are taken"
        unit = FORMATS[self.format].unit(self.group)
        n, k = product.sizes
        if not n or not k or k % unit:
            return f"its {k} terms are no multiple of {unit}"
        return decides(product, self.heads)

    def decision(self, product: Product, made: Operation | None, reason: str) -> dict[str, object]:
        """A row of the log's table."""
        return decision(product, self.kind, made, reason)


class BlockMatrix:
    """The weight of a product as planes, made when they are asked for."""

    def __init__(self, product: Product, format: Format, group: int) -> None:
        assert product.weight is not None
        row = FORMATS[format]
        self.format, self.group = format, row.group or group
        self.shape = (*product.matrices, *product.sizes)
        label = format.value if row.group else f"{format.value}g{self.group}"
        name = f"{product.weight.name}.{'transposed.' if product.transposed else ''}{label}"
        self._rows = rows_of(product.weight, product.transposed)
        self.planes = BlockPlanes(name, format, self.shape, self.group, self._quantized, (label, product.transposed, product.weight))

    def error(self) -> float:
        """How far evenly spaced rows move, root mean square relative to them; NaN or infinite for a weight that is not finite."""
        rows = self._rows()
        for part in blocks(*rows.shape):
            if not np.isfinite(rows[part]).all():
                return float("nan")
        sample = sample_of(rows)
        return moved(sample, dequantize(self.format, quantize(self.format, sample, self.group), self.group))

    def _quantized(self) -> dict[str, np.ndarray]:
        """All planes, block of rows by block of rows: what lies between stays in the cache."""
        rows, row = self._rows(), FORMATS[self.format]
        shapes = row.shapes(rows.shape[0], rows.shape[1], self.group)
        out = {name: np.empty(shapes[name], plane.dtype.numpy) for name, plane in row.planes.items()}
        for part in blocks(*rows.shape):
            for name, plane in quantize(self.format, np.ascontiguousarray(rows[part], np.float32), self.group).items():
                out[name][part] = plane
        return {name: plane.reshape(*self.shape[:-1], -1) for name, plane in out.items()}
