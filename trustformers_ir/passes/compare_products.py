"""Products as a recipe computes them beside the same products as the model does, as results: what the error report looks at.

Before::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    return %out

After, for products in 8-bit integers::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    %q, %s, %z = quantize_dynamic(%x) : …
    %i = linear_int8(%q, %s, %z, …, %bias) : f32[batch, seq, 1536]
    return %out, %y, %i

Everything after reads %y, so each quantized product sees what it would see in f32: the difference is its own error. With ``instead``
everything after reads %i, and the results are the model's and every %i: the difference from the other run is the error that has come together
so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trustformers_ir.ir.core import Module, Operation, Value
from trustformers_ir.passes.linears import Attempt, Product, products
from trustformers_ir.passes.manager import PassLog
from trustformers_ir.passes.narrow_weights import NarrowWeights
from trustformers_ir.passes.observe_activations import add_results
from trustformers_ir.passes.quantize_blocks import QuantizeBlocks
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.quantize_int8 import QuantizeInt8

Decision = Callable[[Product, Operation | None, str], dict[str, object]]


@dataclass(frozen=True)
class CompareInt8(QuantizeInt8):
    """The other options are those of ``quantize_int8``; a row of the log's table says which results belong to a product."""

    instead: bool = False

    name = "compare_int8"
    summary = "make results of products in 8-bit integers, and of the same in f32"

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        activations: dict[Value, tuple[Value, Value, Value]] = {}
        _compare(module, log, lambda product: self.attempt(module, product, activations), self.decision, self.instead)


@dataclass(frozen=True)
class CompareF8(QuantizeF8):
    """The same for the options of ``quantize_f8``."""

    instead: bool = False

    name = "compare_f8"
    summary = "make results of products in 8-bit floats, and of the same as the model computes them"

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        activations: dict[Value, tuple[Value, Value]] = {}
        _compare(module, log, lambda product: self.attempt(module, product, activations), self.decision, self.instead)


@dataclass(frozen=True)
class CompareNarrow(NarrowWeights):
    """The same for the options of ``narrow_weights``. Tables of embeddings are not compared; with ``instead`` they are rounded."""

    instead: bool = False

    name = "compare_narrow"
    summary = "make results of products by weights of 16 bits, and of the same in f32"

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        _compare(module, log, lambda product: self.attempt(module, product), self.decision, self.instead)
        if self.instead:
            self.tables(module, log)


@dataclass(frozen=True)
class CompareBlocks(QuantizeBlocks):
    """The same for the options of ``quantize_blocks``."""

    instead: bool = False

    name = "compare_blocks"
    summary = "make results of products by weights in blocks, and of the same by the weights as they are"

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        _compare(module, log, lambda product: self.attempt(module, product), self.decision, self.instead, experts=True)


def _compare(module: Module, log: PassLog, attempt: Attempt, decision: Decision, instead: bool, experts: bool = False) -> None:
    results: list[Value] = []
    first = len(module.main.outputs)
    for product in list(products(module, experts)):
        if product.operation.block is not module.main.body:
            continue
        made, reason = attempt(product)
        row = decision(product, made, reason)
        if made is not None:
            if instead:
                product.operation.replace_with([made.result])
            else:
                row["wanted"] = first + len(results)
                results.append(product.operation.result)
            row["result"] = first + len(results)
            results.append(made.result)
        log.row(**row)
    add_results(module.main, results)
    log.count("products compared", sum("result" in row for row in log.rows))
