"""From the plan of an entry to launches: expressions become numbers for the shapes of a call, numbers become arguments for the addresses of it.

:class:`Steps` is the first half, made once for each combination of shapes; it also proves, with numbers, that no kernel is handed less memory than
it was planned for. :class:`Recording` is the second, for one stream: its arguments stay and only what moved is written anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trustformers_ir.ir.abi import Entry, StoredWeight
from trustformers_ir.ir.device import ARENA, INPUT, NARROW_LIMIT, OUTPUT, WEIGHT, DeviceBuffer, DeviceFunction, DeviceKernel, DeviceLaunch
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dims import Dim, evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.runtime.gpu.driver import Driver, Function, Graph, Work

STATUS, NUMBER = "status", "number"  # further kinds of arguments
LAUNCH_SECONDS = 30e-6  # that a launch and its event take at most from Python
MOST_AHEAD = 64
MAX_PROGRAMS = (1 << 31) - 1  # of a grid of one dimension (CUDA C++ Programming Guide, table of technical specifications)


@dataclass(frozen=True)
class Argument:
    """One argument of a launch: ``value`` bytes from the start of input or output ``number``, of the arena or of the weights; the status words;
    or ``value`` itself."""

    kind: str
    number: int
    value: int


@dataclass(frozen=True)
class Step:
    """A launch in numbers; ``launch`` counts those of the entry."""

    launch: int
    kernel: int
    wide: bool
    programs: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Steps:
    """An entry at some values of the dims. ``checks``: some kernel reports indices out of range."""

    steps: tuple[Step, ...]
    arena_bytes: int
    checks: bool


@dataclass(frozen=True)
class Sizes:
    """The bytes that inputs and outputs of a call have."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def steps_of(
    function: DeviceFunction, kernels: Sequence[DeviceKernel], weights: Sequence[StoredWeight], entry: Entry, env: Mapping[str, int], sizes: Sizes
) -> Steps:
    """The launches of an entry. ``ARTIFACT_CODE`` where the plan does not fit the sizes, ``TOO_LARGE`` for a grid that no GPU has."""
    return _Evaluator(function, kernels, weights, entry, env, sizes).run()


class _Evaluator:
    def __init__(
        self,
        function: DeviceFunction,
        kernels: Sequence[DeviceKernel],
        weights: Sequence[StoredWeight],
        entry: Entry,
        env: Mapping[str, int],
        sizes: Sizes,
    ) -> None:
        self.function, self.kernels, self.weights, self.entry, self.env, self.sizes = function, kernels, weights, entry, env, sizes
        self.value: Callable[[Dim], int] = functools.cache(self._value)  # layers of a model repeat their expressions
        self.arena = self.value(function.arena_bytes)

    def run(self) -> Steps:
        steps = [s for n, launch in enumerate(self.function.launches) if self.wanted(launch) for s in self.step(n, launch)]
        return Steps(tuple(steps), self.arena, any(self.kernels[s.kernel].checks for s in steps))

    def _value(self, dim: Dim) -> int:
        return dim if isinstance(dim, int) else evaluate(dim, self.env)

    def wanted(self, launch: DeviceLaunch) -> bool:
        sizes = [(self.value(c.size), c) for c in launch.conditions]
        return all(c.above < n and (c.most is None or n <= c.most) for n, c in sizes)

    def step(self, number: int, launch: DeviceLaunch) -> list[Step]:
        """The launch, unless there is nothing to do."""
        kernel, programs = self.kernels[launch.kernel], self.value(launch.programs)
        if programs == 0:
            return []
        if not 0 < programs <= MAX_PROGRAMS:
            message = f"'{self.entry.name}' needs a grid of {programs} programs; GPUs have {MAX_PROGRAMS}"
            raise CompilerError.of(Code.TOO_LARGE, message, help="give smaller inputs")
        arguments = [self.buffer(b, dtype) for b, dtype in zip(launch.buffers, kernel.buffers, strict=True)]
        counts = [self.value(b.bytes) // DType[dtype].itemsize for b, dtype in zip(launch.buffers, kernel.buffers, strict=True)]
        for place, m in zip(launch.memory, kernel.memory, strict=True):
            elements = self.value(m.elements) * programs
            arguments.append(self.inside(self.value(place), elements * DType[m.dtype].itemsize))
            counts.append(elements)
        dims = [self.env[s] for s in kernel.symbols]
        wide = max([*counts, *dims], default=0) >= NARROW_LIMIT
        code = kernel.wide if wide else kernel.narrow
        if wide and kernel.wide is None and kernel.narrow is not None:
            raise self.broken(f"kernel {kernel.name} has no code for {max(counts, default=0)} elements")
        arguments += [Argument(NUMBER, 0, n) for n in dims]
        if kernel.checks:
            arguments.append(Argument(STATUS, 0, 0))
        if code is not None and code.reserved:
            work = self.inside(self.value(launch.work), code.work * programs) if code.work else Argument(NUMBER, 0, 0)
            arguments += [work, *[Argument(NUMBER, 0, 0)] * (code.reserved - 1)]
        return [Step(number, launch.kernel, wide, programs, tuple(arguments))]

    def buffer(self, b: DeviceBuffer, dtype: str) -> Argument:
        size = self.value(b.bytes)
        if b.storage == ARENA:
            return self.inside(self.value(b.offset), size)
        have = self.weights[b.number].bytes if b.storage == WEIGHT else (self.sizes.inputs if b.storage == INPUT else self.sizes.outputs)[b.number]
        if not 0 <= size <= have:
            raise self.broken(f"a kernel takes {size} bytes of {b.storage} {b.number}, which has {have}")
        return Argument(b.storage, b.number, self.weights[b.number].offset if b.storage == WEIGHT else 0)

    def inside(self, offset: int, size: int) -> Argument:
        """A place in the arena."""
        if offset < 0 or size < 0 or offset + size > self.arena or offset % 16:
            raise self.broken(f"a kernel takes {size} bytes at byte {offset} of an arena of {self.arena}")
        return Argument(ARENA, 0, offset)

    def broken(self, why: str) -> CompilerError:
        message = f"the plan of '{self.entry.name}' does not fit these shapes: {why}"
        return CompilerError.of(Code.ARTIFACT_CODE, message, help="compile the model again")


@dataclass(frozen=True)
class Bases:
    """Where things lie in a call."""

    arena: int
    weights: int
    status: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Recording:
    """The launches of some shapes on one stream.

    The second time, they become a graph of the driver, which is launched by one call. The graph is made node by node from the plan, a chain in its
    order, and not captured from a stream: capture would forbid other threads to allocate meanwhile, and would hide which node is which. That is
    known here, so that inputs and outputs need no buffers of the graph's own with copies to and fro (logits of gigabytes would be copied): the
    nodes that read or write what has moved since the last launch, most often a few, get new arguments (``cuGraphExecKernelNodeSetParams``), which
    count from the next launch on and do not disturb one that runs. An allocator that gives out the same places again, as torch's does, leaves
    nothing to update.
    """

    def __init__(self, steps: Steps, bases: Bases, function: Callable[[int, bool], Function]) -> None:
        self.bases = bases
        self.calls = 0
        self._ahead = 1  # graphs whose time is that of putting all launches on the stream
        self._graph: Graph | None = None
        self.works = [Work(function(s.kernel, s.wide), s.programs, [_address(a, bases) for a in s.arguments]) for s in steps.steps]
        self._moving = [
            (n, [(i, a) for i, a in enumerate(s.arguments) if a.kind in (INPUT, OUTPUT)]) for n, s in enumerate(steps.steps)
        ]
        self._moving = [(n, rows) for n, rows in self._moving if rows]

    def run(self, driver: Driver, bases: Bases, stream: int, graphs: bool) -> None:
        """Does the work of a call, whose arena, weights and status are those of the first."""
        moved = self._move(bases)
        self.calls += 1
        if not graphs or self.calls == 1 or len(self.works) < 2:
            for work in self.works:
                driver.launch(work, stream)
            return
        if self._graph is None:
            self._graph = driver.graph(self.works)
        else:
            for n in moved:
                self._graph.update(n, self.works[n])
        self._graph.launch(stream)

    def timed(self, driver: Driver, bases: Bases, stream: int) -> list[float]:
        """Does the work of a call launch by launch; the seconds that each took.

        Where there is a graph it is launched before: while it runs, the launches that are timed are put on the stream behind it, so that short
        kernels are not taken for as long as it takes to launch them.
        """
        moved = self._move(bases)
        if self._graph is not None:
            for n in moved:
                self._graph.update(n, self.works[n])
            for _ in range(self._ahead):
                self._graph.launch(stream)
        seconds = driver.timed(self.works, stream)
        self._ahead = min(max(math.ceil(LAUNCH_SECONDS * len(self.works) / max(sum(seconds), 1e-9)), 1), MOST_AHEAD)
        return seconds

    def _move(self, bases: Bases) -> list[int]:
        """Writes the addresses that are not those of the last call; the launches that have new ones."""
        if bases == self.bases:
            return []
        moved = []
        for n, rows in self._moving:
            values, changed = self.works[n].values, False
            for i, a in rows:
                address = _address(a, bases)
                if values[i] != address:
                    values[i], changed = address, True
            if changed:
                moved.append(n)
        self.bases = bases
        return moved

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


def _address(a: Argument, bases: Bases) -> int:
    if a.kind == NUMBER:
        return a.value
    if a.kind == ARENA:
        return bases.arena + a.value
    if a.kind == WEIGHT:
        return bases.weights + a.value
    if a.kind == STATUS:
        return bases.status
    return (bases.inputs if a.kind == INPUT else bases.outputs)[a.number]
