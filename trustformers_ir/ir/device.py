"""What the compiler tells the runtime about code for GPUs: kernels in machine code, and the plan of each function, as plain data.

A plan is a list of launches in the order in which they run, one stream after all. Everything that depends on the dims is an expression of them,
so one plan serves all shapes: the grid, the place of each buffer in the arena, and the bytes that each buffer needs, against which the runtime
checks what it hands to the kernels.

A kernel gets, in this order: a pointer to each of its buffers; one to each piece of ``memory``, of which each program of the grid uses its own
part; the dims in ``symbols``, as i32, or i64 where ``DeviceCode.index_bits`` is 64; where it ``checks`` indices, a pointer to the two words
``status``, i64[2]: 1 + the number of the :class:`~trustformers_ir.ir.abi.Site` whose index was out of range, and that index; and as many
null pointers as ``DeviceCode.reserved`` says, of which the first points to the ``work`` bytes of all programs where it wants any.
Pointers are multiples of 16.

Arithmetic of addresses is done in 32 bits where that is enough, which costs fewer registers. A kernel whose buffers may have 2**31 elements or
more, as far as the facts about the dims tell, has code for 64 bits besides (``wide``), and the runtime chooses by the sizes of the call.
"""

from __future__ import annotations

from dataclasses import dataclass

from trustformers_ir.ir.dims import Dim

DEVICE_VERSION = 2
POINTER_ALIGNMENT = 16  # of every pointer that a kernel gets
NARROW_LIMIT = (1 << 31) - (1 << 16)  # elements from which the wide code runs: blocks reach beyond the end before they are masked
INPUT, OUTPUT, WEIGHT, ARENA = "input", "output", "weight", "arena"

#: Targets whose code GPUs run, by the triple in ``TargetInfo``
CUDA_TRIPLE = "nvptx64-nvidia-cuda"
ROCM_TRIPLE = "amdgcn-amd-amdhsa"
INTERPRETER_TRIPLE = "triton-interpreter"
TRIPLES = (CUDA_TRIPLE, ROCM_TRIPLE, INTERPRETER_TRIPLE)


@dataclass(frozen=True)
class DeviceCode:
    """The machine code of a kernel: ``length`` bytes at ``offset`` of the code. ``warps`` of a program, ``shared`` bytes of memory that it wants;
    of a thread ``registers``, and how many values were ``spilled``. ``work``: bytes for each program behind the first reserved pointer, aligned to
    ``work_alignment``."""

    offset: int
    length: int
    index_bits: int
    warps: int
    shared: int
    registers: int
    spilled: int
    reserved: int = 0
    work: int = 0
    work_alignment: int = 1


@dataclass(frozen=True)
class Memory:
    """Memory that a kernel uses besides its buffers: ``elements`` of a dtype for each program."""

    dtype: str
    elements: Dim


@dataclass(frozen=True)
class DeviceKernel:
    """One kernel: what it takes, and its code, whose function is called ``symbol``; in the text it is ``name``. ``wide`` is there unless 32 bits are
    always enough; both are missing where only the text is kept, for the interpreter."""

    name: str
    symbol: str
    buffers: tuple[str, ...]  # the dtype of each
    memory: tuple[Memory, ...]
    symbols: tuple[str, ...]
    checks: int
    narrow: DeviceCode | None
    wide: DeviceCode | None


@dataclass(frozen=True)
class DeviceBuffer:
    """``bytes`` of an input, output or weight by its number (in the entry, in the manifest), or from ``offset`` of the arena."""

    storage: str
    number: int
    offset: Dim
    bytes: Dim


@dataclass(frozen=True)
class Condition:
    """Holds where ``above < size``, and ``size <= most`` unless that is None."""

    size: Dim
    above: int
    most: int | None


@dataclass(frozen=True)
class DeviceLaunch:
    """One kernel on ``programs`` programs, where all ``conditions`` hold. ``memory``: where each piece lies in the arena; ``work``: where the
    work bytes lie there."""

    kernel: int
    programs: Dim
    buffers: tuple[DeviceBuffer, ...]
    memory: tuple[Dim, ...]
    work: Dim
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class DeviceFunction:
    """The plan of an entry. ``arena_bytes`` covers everything that its launches keep in the arena."""

    name: str
    arena_bytes: Dim
    launches: tuple[DeviceLaunch, ...]


@dataclass(frozen=True)
class DeviceModule:
    """All that a GPU needs of a module but its weights. ``text`` is the file of Triton functions that the code was made from."""

    kernels: tuple[DeviceKernel, ...]
    functions: tuple[DeviceFunction, ...]
    text: str
