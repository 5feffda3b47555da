"""One stream of a GPU and what calls on it share: the arena, the status words, buffers for arrays of the CPU, and what is recorded of earlier calls.

Calls on one stream follow each other, so they may use the same memory; calls on different streams have a lane each. Whoever uses a lane holds its
``lock``. A lane of a stream of torch takes its memory from torch's allocator, one of our own from the driver.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trustformers_ir.ir import env
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime.gpu.driver import Driver, Function
from trustformers_ir.runtime.gpu.steps import Bases, Recording, Steps

MAX_RECORDINGS = 16  # shapes of which a lane keeps the launches
OWN_LANES = 4  # streams of our own: so many calls with arrays of the CPU run at once
TORCH_LANES = 32  # streams of torch that are remembered
STATUS_BYTES = 16


class Allocator(Protocol):
    """Who lends memory of the GPU."""

    def take(self, size: int) -> Block: ...


class Block:
    """Memory of the GPU; ``owner`` gives it back, or keeps it while it lives."""

    def __init__(self, address: int, size: int, owner: Any, free: Callable[[int], None] | None = None) -> None:
        self.address, self.size = address, size
        self._owner, self._free = owner, free

    def release(self) -> None:
        """Nobody uses it any more, and no work that does is left on the GPU."""
        if self._free is not None:
            self._free(self.address)
        self._owner = self._free = None


class DriverMemory:
    """Memory that the driver lends."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def take(self, size: int) -> Block:
        return Block(self.driver.allocate(max(size, 1)), size, None, self.driver.free)


class TorchMemory:
    """Memory of torch's caching allocator, on the stream on which torch works when it is asked for."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def take(self, size: int) -> Block:
        torch = sys.modules["torch"]
        try:
            tensor = torch.empty(max(size, 1) + 256, dtype=torch.uint8, device=self.device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            message = f"{size} bytes on the GPU, which torch refuses: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            raise CompilerError.of(Code.OUT_OF_MEMORY, message, help="give smaller inputs") from None
        return Block(-(-tensor.data_ptr() // 256) * 256, size, tensor)


class Lane:
    """A stream, its memory and its recordings."""

    def __init__(self, driver: Driver, stream: int, memory: Allocator, own: bool) -> None:
        self.driver, self.stream, self.memory, self.own = driver, stream, memory, own
        self.lock = threading.Lock()
        self.closed = False
        self._arena: Block | None = None
        self._buffers: dict[tuple[str, int], Block] = {}
        self._recordings: OrderedDict[int, tuple[Steps, Recording]] = OrderedDict()
        self._status = memory.take(STATUS_BYTES)
        self._words = (ctypes.c_int64 * 2)()
        try:
            driver.clear(self._status.address, STATUS_BYTES, stream)
        except BaseException:
            self._status.release()
            raise

    def run(self, steps: Steps, weights: int, inputs: Sequence[int], outputs: Sequence[int], function: Callable[[int, bool], Function]) -> None:
        """Puts the work of a call on the stream."""
        recording, bases = self._recorded(steps, weights, inputs, outputs, function)
        recording.run(self.driver, bases, self.stream, env.GPU_GRAPHS.get())

    def timed(
        self, steps: Steps, weights: int, inputs: Sequence[int], outputs: Sequence[int], function: Callable[[int, bool], Function]
    ) -> list[float]:
        """Does the work of a call and waits for it; the seconds that each launch took."""
        recording, bases = self._recorded(steps, weights, inputs, outputs, function)
        return recording.timed(self.driver, bases, self.stream)

    def _recorded(
        self, steps: Steps, weights: int, inputs: Sequence[int], outputs: Sequence[int], function: Callable[[int, bool], Function]
    ) -> tuple[Recording, Bases]:
        """The recording of a call, made now unless there is one, and where things lie."""
        arena = self._grown(steps.arena_bytes)
        bases = Bases(arena, weights, self._status.address, tuple(inputs), tuple(outputs))
        found = self._recordings.get(id(steps))
        if found is None:
            while len(self._recordings) >= MAX_RECORDINGS:
                self._recordings.popitem(last=False)[1][1].close()
            found = self._recordings[id(steps)] = (steps, Recording(steps, bases, function))
        self._recordings.move_to_end(id(steps))
        return found[1], bases

    def buffer(self, kind: str, number: int, size: int) -> int:
        """A buffer for an array of the CPU: the address of at least ``size`` bytes."""
        block = self._buffers.get((kind, number))
        if block is None or block.size < size:
            if block is not None:
                self.driver.wait(self.stream)
                del self._buffers[kind, number]
                block.release()
            block = self._buffers[kind, number] = self.memory.take(size)
        return block.address

    def ask_status(self) -> None:
        """Has the status words copied; ``status`` knows them after ``wait``."""
        self.driver.copy_out(ctypes.addressof(self._words), self._status.address, STATUS_BYTES, self.stream)

    def status(self) -> tuple[int, int]:
        """The status words that were asked for. If they tell of something they are cleared."""
        found = self._words[0], self._words[1]
        if found[0]:
            self.driver.clear(self._status.address, STATUS_BYTES, self.stream)
            self._words[0] = 0
        return found

    def _grown(self, size: int) -> int:
        """The arena, of at least that size."""
        if self._arena is None or self._arena.size < size:
            if self._arena is not None:
                self._forget()
                self._arena.release()
                self._arena = None
            self._arena = self.memory.take(size)
        return self._arena.address

    def _forget(self) -> None:
        """Waits for what runs and gives up the recordings: they know where the arena was."""
        self.driver.wait(self.stream)
        for _, recording in self._recordings.values():
            recording.close()
        self._recordings.clear()

    def close(self) -> None:
        """Waits for the work of the lane and gives everything back."""
        self._forget()
        for block in (*self._buffers.values(), *([] if self._arena is None else [self._arena]), self._status):
            block.release()
        self._buffers, self._arena, self.closed = {}, None, True
        if self.own:
            self.driver.end_stream(self.stream)


class Lanes:
    """The lanes of an executable."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._free: list[Lane] = []
        self._made = 0
        self._changed = threading.Condition()
        self._of_torch: OrderedDict[int, Lane] = OrderedDict()

    def own(self) -> Lane:
        """A lane that nobody uses, locked; waits where all are in use."""
        with self._changed:
            while not self._free and self._made >= OWN_LANES:
                self._changed.wait()
            if self._free:
                lane = self._free.pop()
                lane.lock.acquire()
                return lane
            self._made += 1
        try:
            lane = self._new()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise
        lane.lock.acquire()
        return lane

    def _new(self) -> Lane:
        stream = self.driver.stream()
        try:
            return Lane(self.driver, stream, DriverMemory(self.driver), own=True)
        except BaseException:
            self.driver.end_stream(stream)
            raise

    def of_torch(self, stream: int, device: Any) -> Lane:
        """The lane of a stream of torch, locked."""
        while True:
            with self._changed:
                lane = self._of_torch.get(stream)
                if lane is None:
                    if len(self._of_torch) >= TORCH_LANES:
                        self._drop_one()
                    lane = self._of_torch[stream] = Lane(self.driver, stream, TorchMemory(device), own=False)
                self._of_torch.move_to_end(stream)
            lane.lock.acquire()
            if not lane.closed:
                return lane
            lane.lock.release()  # it was dropped before we had its lock

    def _drop_one(self) -> None:
        """Closes the lane that was used longest ago and is free now."""
        for stream, lane in self._of_torch.items():
            if lane.lock.acquire(blocking=False):
                del self._of_torch[stream]
                try:
                    lane.close()
                finally:
                    lane.lock.release()
                return

    def give_back(self, lane: Lane) -> None:
        lane.lock.release()
        if lane.own:
            with self._changed:
                self._free.append(lane)
                self._changed.notify()

    def all(self) -> list[Lane]:
        """Every lane that is not in use by a call of our own streams."""
        with self._changed:
            return [*self._free, *self._of_torch.values()]

    def close(self) -> None:
        """Closes the lanes; nobody may be using one."""
        with self._changed:
            for lane in (*self._free, *self._of_torch.values()):
                with lane.lock:
                    lane.close()
            self._made -= len(self._free)
            self._free, self._of_torch = [], OrderedDict()
