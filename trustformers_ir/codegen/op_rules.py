"""A table of one rule for each op, which decorated functions fill."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trustformers_ir.ir.schema import Op

R = TypeVar("R", bound=Callable[..., object])


class OpRules(dict[type[Op], R]):
    """What is done for each op::

        RULES: OpRules[Rule] = OpRules()
        rule = RULES.register

        @rule(ops.Exp, ops.Log)
        def _plain(...): ...
    """

    def register(self, *kinds: type[Op]) -> Callable[[R], R]:
        """Register the decorated function as the rule of these ops."""

        def add(function: R) -> R:
            for kind in kinds:
                assert kind not in self, f"{kind.__name__} has two rules"
                self[kind] = function
            return function

        return add
