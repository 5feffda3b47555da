"""Matrices in blocks of a few bits as weights of a module, one for each plane of its format."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Value, Weight
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes.weights import derived


class BlockPlanes:
    """The planes of matrices ``shape = […, n, k]``, called ``name.codes`` and so on. ``make`` gives all of them when the first is asked for; the
    others are kept until they are. ``origin``: what they are made of, and how, in values that can be compared."""

    def __init__(
        self,
        name: str,
        format: Format,
        shape: tuple[int, ...],
        group: int,
        make: Callable[[], dict[str, np.ndarray]],
        origin: tuple[object, ...],
    ) -> None:
        self.name, self.row, self.shape = name, FORMATS[format], shape
        self.group = self.row.group or group
        self._make, self._origin = make, origin
        self._waiting: dict[str, np.ndarray] = {}

    def weights(self, module: Module) -> dict[str, Weight]:
        """The weights by the names of their planes."""
        return {
            plane: derived(
                module,
                f"{self.name}.{plane}",
                TensorType((*self.shape[:-1], columns), self.row.planes[plane].dtype),
                functools.partial(self._plane, plane),
                (*self._origin, plane),
            )
            for plane, (_, columns) in self.row.shapes(0, self.shape[-1], self.group).items()
        }

    def operands(self, module: Module, builder: Builder) -> list[Value | None]:
        """The planes as operands of an op, in its order; None for those that the format does not have."""
        found = {plane: builder(ops.WeightOp(w.name)) for plane, w in self.weights(module).items()}
        return [found.get(plane) for plane in PLANES]

    def _plane(self, name: str) -> np.ndarray:
        if name not in self._waiting:
            self._waiting = self._make()
        return self._waiting.pop(name)
