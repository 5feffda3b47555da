"""Products in 8-bit integers beside the same products in f32, as results: what the error report looks at.

Before::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    return %out

After::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    %q, %s, %z = quantize_dynamic(%x) : …
    %i = linear_int8(%q, %s, %z, …, %bias) : f32[batch, seq, 1536]
    return %out, %y, %i

Everything after reads %y, so each product in integers sees what it would see in f32: the difference is its own error. With ``instead``
everything after reads %i, and the results are the model's and every %i: the difference from the other run is the error that has come together
so far.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.core import Module, Value
from trustformers_ir.passes.linears import products
from trustformers_ir.passes.manager import PassLog
from trustformers_ir.passes.observe_activations import add_results
from trustformers_ir.passes.quantize_int8 import QuantizeInt8, decision


@dataclass(frozen=True)
class CompareInt8(QuantizeInt8):
    """The other options are those of ``quantize_int8``; a row of the log's table says which results belong to a product."""

    instead: bool = False

    name = "compare_int8"
    summary = "make results of products in 8-bit integers, and of the same in f32"

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        activations: dict[Value, tuple[Value, Value, Value]] = {}
        results: list[Value] = []
        first = len(module.main.outputs)
        for product in list(products(module)):
            if product.operation.block is not module.main.body:
                continue
            made, reason = self.attempt(module, product, activations)
            row = decision(product, made, reason)
            if made is not None:
                if self.instead:
                    product.operation.replace_with([made.result])
                else:
                    row["f32_result"] = first + len(results)
                    results.append(product.operation.result)
                row["int8_result"] = first + len(results)
                results.append(made.result)
            log.row(**row)
        add_results(module.main, results)
        log.count("products compared", sum("int8_result" in row for row in log.rows))
