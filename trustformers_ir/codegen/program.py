"""A lowered function: kernels called in order on named buffers. What ``lower`` hands to ``plan`` and to the entry emitter."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from trustformers_ir.codegen.kernel_ir.kernel import Kernel, Store, walk, walk_statements
from trustformers_ir.codegen.kernel_ir.nodes import Buffer, Expr, Load
from trustformers_ir.ir.abi import Port, Site
from trustformers_ir.ir.device import Condition
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.schedule_table import Chosen
from trustformers_ir.ir.types import TensorType


class Storage(enum.Enum):
    """Who owns the bytes of a buffer."""

    INPUT = "input"
    OUTPUT = "output"
    WEIGHT = "weight"
    ARENA = "arena"
    DIM = "dim"  # the value of a symbol that the program computes


@dataclass(frozen=True)
class BufferRef:
    """A buffer of the program. ``key`` is the input's or output's index, the weight's name or the arena buffer's number."""

    storage: Storage
    key: int | str
    type: TensorType


@dataclass(frozen=True, eq=False)
class Temporary:
    """A buffer between the kernels of one region: it belongs to no value of the graph. Each region that is lowered to them gets one of its own."""

    name: str
    type: TensorType
    symbol: str = ""  # the place of that symbol among the dims, no memory of the arena


@dataclass(frozen=True)
class Launch:
    """How a GPU compiles and runs a kernel: warps of a program, and stages of its loops' pipelines. What a nest was made for travels with it."""

    warps: int = 4
    stages: int = 2


LAUNCH = Launch()


@dataclass(frozen=True)
class KernelCall:
    """Run ``kernel`` on ``arguments`` (one per ``kernel.params``). ``writes[i]`` says whether argument i is written (it may be read too).
    ``launch`` and ``when`` are of GPUs, where kernels that compute the same in different tiles follow each other: ``when`` holds for one of them."""

    kernel: Kernel
    arguments: tuple[BufferRef, ...]
    writes: tuple[bool, ...]
    label: str
    location: str = ""
    flops: Dim = 0  # of the graph operations that the kernel stands for
    parallel: bool = True  # False: one worker does all of it, so no other worker touches its buffers
    schedule: Chosen | None = None  # of kernels that leave a choice
    launch: Launch = LAUNCH
    when: Condition | None = None  # None: always

    @property
    def bytes(self) -> Dim:
        """What the call reads and writes, each argument once. Of a table that is read at data-dependent places only, as much as is written; of a
        state that it writes, nothing: as much as it reads for it."""
        written = sum((r.type.bytes for r, w in zip(self.arguments, self.writes, strict=True) if w and r.storage is not Storage.INPUT), start=0)
        picked = _picked_from(self.kernel)
        read: Dim = 0
        for b, r, w in zip(self.kernel.params, self.arguments, self.writes, strict=True):
            if not (w and r.storage is Storage.INPUT):
                read = read + (written if b in picked else r.type.bytes)
        return read


def _picked_from(kernel: Kernel) -> frozenset[Buffer]:
    """Parameters of which every load has a data-dependent index."""
    visited: set[Expr] = set()
    loads: dict[Buffer, bool] = {}
    roots = [root for s in walk_statements(kernel.body) if isinstance(s, Store) for root in (*s.index, s.value)]
    if any(root.checked for root in roots):
        for root in roots:
            for n in walk(root, visited):
                if isinstance(n, Load):
                    loads[n.buffer] = loads.get(n.buffer, True) and any(i.checked for i in n.index)
    return frozenset(b for b, only in loads.items() if only)


@dataclass(frozen=True)
class Program:
    """One entry point: its ports, arena buffers and kernel calls in execution order. ``states``: the last inputs, which are written in place."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena: tuple[BufferRef, ...]
    calls: tuple[KernelCall, ...]
    sites: tuple[Site, ...]
    states: int = 0
    computed: Mapping[str, Dim] = field(default_factory=dict)  # symbols that it computes, with what they are at most
