"""Weights of which other weights are made: what the passes that fold, join and pack them share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trustformers_ir.ir.core import Module, Value, Weight
from trustformers_ir.ir.mapped import MappedFile
from trustformers_ir.ir.ops import WeightOp
from trustformers_ir.ir.types import TensorType


def weight_of(module: Module, value: Value) -> Weight | None:
    """The weight that ``value`` is; None when it is computed or an argument."""
    operation = value.producer
    return module.weights[operation.op.name] if operation is not None and isinstance(operation.op, WeightOp) else None


def derived(module: Module, name: str, type: TensorType, make: Callable[[], np.ndarray], origin: tuple[object, ...]) -> Weight:
    """The weight of that type and ``origin``: the weights that it is made of and what is done to them, in values that can be compared. The one
    that is there, or a new one, whose bytes ``make`` gives when they are first asked for. It is called ``name`` where nothing else is: checkpoints
    choose their names as they like."""
    chosen, n = name, 1
    while (found := module.weights.get(chosen)) is not None:
        if found.origin == origin and found.type == type:
            return found
        n += 1
        chosen = f"{name}.{n}"
    return module.add_weight(Weight(chosen, type, make, origin=origin))


def mapped_files(module: Module) -> list[MappedFile]:
    """The files that weights of the module are views of."""
    return list({id(file): file for w in module.weights.values() if (file := w.file) is not None}.values())
