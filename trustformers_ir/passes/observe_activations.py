"""The activations of products become results of the function, so that a run shows them: what calibration looks at.

Before::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    return %out

After::

    %y = linear(%x, %w, %bias) : f32[batch, seq, 1536]
    return %out, %x

The table of the log has a row for each product that ``quantize_int8`` with the same options would look at: its name, and the number of its
activation among the results. Products of one activation share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.core import Function, Module, Value
from trustformers_ir.passes.linears import products
from trustformers_ir.passes.manager import Pass, PassLog
from trustformers_ir.passes.quantize_int8 import Sensitive


@dataclass(frozen=True)
class ObserveActivations(Sensitive, Pass):
    """The options are those of ``quantize_int8``."""

    name = "observe_activations"
    summary = "make results of the activations that quantize_int8 needs to know"
    requires = frozenset({"flat"})

    def run(self, module: Module, log: PassLog) -> None:
        """Adds results to the main function."""
        found: dict[Value, int] = {}
        first = len(module.main.outputs)
        for product in products(module):
            if self.reason(product) is None and product.operation.block is module.main.body:
                number = found.setdefault(product.activation, first + len(found))
                log.row(name=product.name, result=number)
        add_results(module.main, list(found))
        log.count("activations observed", len(found))


def add_results(function: Function, values: list[Value]) -> None:
    """More results, after those that are there."""
    function.body.terminator.set_operands([*function.outputs, *values])
