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


def derived(module: Module, name: str, type: TensorType, make: Callable[[], np.ndarray]) -> Weight:
    """The weight ``name``, whose bytes ``make`` gives when they are first asked for. There is one of each name."""
    if name not in module.weights:
        module.add_weight(Weight(name, type, make))
    return module.weights[name]


def mapped_files(module: Module) -> list[MappedFile]:
    """The files that weights of the module are views of."""
    return list({id(file): file for w in module.weights.values() if (file := w.file) is not None}.values())
