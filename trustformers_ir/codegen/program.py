"""A lowered function: kernels called in order on named buffers. What ``lower`` hands to ``plan`` and to the entry emitter."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from trustformers_ir.codegen.kernel_ir.kernel import Kernel
from trustformers_ir.ir.abi import Port, Site
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.types import TensorType


class Storage(enum.Enum):
    """Who owns the bytes of a buffer."""

    INPUT = "input"
    OUTPUT = "output"
    WEIGHT = "weight"
    ARENA = "arena"


@dataclass(frozen=True)
class BufferRef:
    """A buffer of the program. ``key`` is the input's or output's index, the weight's name or the arena buffer's number."""

    storage: Storage
    key: int | str
    type: TensorType


@dataclass(frozen=True)
class KernelCall:
    """Run ``kernel`` on ``arguments`` (one per ``kernel.params``). ``writes[i]`` says whether argument i is written (it may be read too)."""

    kernel: Kernel
    arguments: tuple[BufferRef, ...]
    writes: tuple[bool, ...]
    label: str
    location: str = ""
    flops: Dim = 0  # of the graph operations that the kernel stands for
    parallel: bool = True  # False: one worker does all of it, so no other worker touches its buffers


@dataclass(frozen=True)
class Program:
    """One entry point: its ports, arena buffers and kernel calls in execution order."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena: tuple[BufferRef, ...]
    calls: tuple[KernelCall, ...]
    sites: tuple[Site, ...]
