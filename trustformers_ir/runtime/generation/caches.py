"""The states of the texts of a batch, ``[batch, heads, capacity, features]`` each: where they lie is a matter of who executes the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trustformers_ir.ir.abi import Port
from trustformers_ir.runtime import memory


class Caches(Protocol):
    """A state of each port, as a call takes them; those of a GPU lie there."""

    @property
    def version(self) -> int:
        """How often what a call takes came to lie elsewhere."""

    def grow(self, batch: int, capacity: int) -> None:
        """Room for so many tokens of so many texts; what was there stays, the rest is zero. ``OUT_OF_MEMORY``"""

    def extend(self, rows: slice, lengths: np.ndarray, count: int) -> None:
        """Called before ``count`` tokens of these texts are read behind ``lengths`` others. ``OUT_OF_MEMORY``"""

    def of(self, rows: slice) -> list[Any]:
        """What a call takes for some of the texts, in the same memory."""

    def repeated(self, times: int) -> Caches:
        """Others, with those of each text so many times."""

    def reorder(self, rows: np.ndarray, used: int) -> None:
        """Those of text b become what those of text ``rows[b]`` were, as far as they are ``used`` tokens long."""


class HostCaches:
    """States in the memory of the CPU."""

    def __init__(self, ports: Sequence[Port], arrays: Sequence[np.ndarray] = ()) -> None:
        self.ports = ports
        self.arrays = list(arrays)
        self.version = 0

    def grow(self, batch: int, capacity: int) -> None:
        shapes = shapes_of(self.ports, batch, capacity)
        memory.check_size(sum(memory.bytes_of(s, p.type.dtype) for s, p in zip(shapes, self.ports, strict=True)), "the cache")
        grown = [np.zeros(shape, port.type.dtype.numpy) for shape, port in zip(shapes, self.ports, strict=True)]
        for new, old in zip(grown, self.arrays, strict=False):
            new[:, :, : old.shape[2]] = old
        self.arrays = grown
        self.version += 1

    def extend(self, rows: slice, lengths: np.ndarray, count: int) -> None:
        pass

    def of(self, rows: slice) -> list[np.ndarray]:
        return [a[rows] for a in self.arrays]

    def repeated(self, times: int) -> HostCaches:
        return HostCaches(self.ports, [np.repeat(a, times, axis=0) for a in self.arrays])

    def reorder(self, rows: np.ndarray, used: int) -> None:
        for a in self.arrays:
            a[:, :, :used] = a[rows, :, :used]


def shapes_of(ports: Sequence[Port], batch: int, capacity: int) -> list[tuple[int, ...]]:
    """The shape of each state."""
    return [p.type.concrete({"batch": batch, "capacity": capacity}) for p in ports]
