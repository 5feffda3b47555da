"""States that lie on a GPU between calls: what was read of a text, in memory that each call writes in place."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trustformers_ir.ir.abi import Port
from trustformers_ir.runtime.generation.caches import shapes_of
from trustformers_ir.runtime.gpu.driver import Driver
from trustformers_ir.runtime.gpu.lane import Block, DriverMemory
from trustformers_ir.runtime.memory import aligned, bytes_of

if TYPE_CHECKING:
    from trustformers_ir.runtime.gpu.executable import GpuExecutable


@dataclass(frozen=True)
class DeviceArray:
    """An array on the GPU, row by row without gaps; ``block`` is the memory that it lies in."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    block: Block

    @property
    def row(self) -> int:
        """Bytes of an element of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def of(self, rows: slice) -> DeviceArray:
        """Some of the elements of the first axis."""
        first, behind, _ = rows.indices(self.shape[0])
        return DeviceArray((behind - first, *self.shape[1:]), self.dtype, self.address + first * self.row, self.block)


class DeviceCaches:
    """``Caches`` (``generation/caches.py``) of an executable."""

    def __init__(self, executable: GpuExecutable, ports: Sequence[Port], arrays: Sequence[DeviceArray] = ()) -> None:
        self.executable, self.ports = executable, ports
        self.arrays = list(arrays)
        self.version = 0

    def grow(self, batch: int, capacity: int) -> None:
        with self.executable.lane() as lane:
            driver, new = lane.driver, self._taken(lane.driver, batch, capacity)
            driver.clear(new[0].block.address, new[0].block.size, lane.stream)
            for to, old in zip(new, self.arrays, strict=False):
                piece = old.shape[2] * old.shape[3] * old.dtype.itemsize  # of a head of a text
                for n in range(old.shape[0] * old.shape[1] if piece else 0):
                    driver.copy(to.address + n * (to.row // to.shape[1]), old.address + n * piece, piece, lane.stream)
            driver.wait(lane.stream)
        self.arrays = new
        self.version += 1

    def extend(self, rows: slice, lengths: np.ndarray, count: int) -> None:
        pass

    def of(self, rows: slice) -> list[DeviceArray]:
        return [a.of(rows) for a in self.arrays]

    def repeated(self, times: int) -> DeviceCaches:
        rows = np.repeat(np.arange(self.arrays[0].shape[0]), times)
        return DeviceCaches(self.executable, self.ports, self._copied(rows))

    def reorder(self, rows: np.ndarray, used: int) -> None:
        self.arrays = self._copied(rows)
        self.version += 1

    def _copied(self, rows: np.ndarray) -> list[DeviceArray]:
        """Others, in which each text is what one of these was."""
        with self.executable.lane() as lane:
            new = self._taken(lane.driver, len(rows), self.arrays[0].shape[2])
            for to, old in zip(new, self.arrays, strict=True):
                for n, row in enumerate(rows.tolist() if old.row else ()):
                    lane.driver.copy(to.address + n * old.row, old.address + row * old.row, old.row, lane.stream)
            lane.driver.wait(lane.stream)
        return new

    def _taken(self, driver: Driver, batch: int, capacity: int) -> list[DeviceArray]:
        """Fresh states, in one block that goes when the last of them does."""
        shapes = shapes_of(self.ports, batch, capacity)
        places, size = [], 0
        for shape, port in zip(shapes, self.ports, strict=True):
            places.append(size)
            size += aligned(bytes_of(shape, port.type.dtype))
        block = DriverMemory(driver).take(size)
        weakref.finalize(block, _given_back, driver, block.address).atexit = False
        return [DeviceArray(s, p.type.dtype.numpy, block.address + at, block) for s, p, at in zip(shapes, self.ports, places, strict=True)]


def _given_back(driver: Driver, address: int) -> None:
    with driver.current():
        driver.free(address)
