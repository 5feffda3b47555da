"""Dead code: operations that nobody uses go away, and so do the weights that nobody reads any more.

Before::

    %1 = weight() name="unused"
    %2 = add(%x, %1)
    %3 = neg(%x)
    return(%3)

After::

    %3 = neg(%x)
    return(%3)

An operation that would have reported an index out of range goes away with its report when its result is not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.core import Block, Module
from trustformers_ir.ir.ops import WeightOp
from trustformers_ir.passes.manager import Pass, PassLog


@dataclass(frozen=True)
class Dce(Pass):
    """Erases what has no use; ``weights=false`` keeps unused weights in the module's table."""

    weights: bool = True

    name = "dce"
    summary = "remove what is not used"

    def run(self, module: Module, log: PassLog) -> None:
        for function in module.functions.values():
            _sweep(function.body, log)
        if self.weights:
            read = {operation.op.name for operation in module.walk() if isinstance(operation.op, WeightOp)}
            for name in [n for n in module.weights if n not in read]:
                del module.weights[name]
                log.count("weights in the table")


def _sweep(block: Block, log: PassLog) -> None:
    """From the end to the beginning, so that one walk finds everything."""
    for operation in reversed(block):
        if operation.is_dead:
            log.count(operation.op.mnemonic)
            operation.erase()
        elif operation.body is not None:
            _sweep(operation.body, log)
