"""GPUs that code is made for: their names, and what Triton has to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trustformers_ir.ir.device import CUDA_TRIPLE, INTERPRETER_TRIPLE, ROCM_TRIPLE


class GpuTargetError(ValueError):
    """There is no such GPU; the message says which there are."""


@dataclass(frozen=True)
class GpuTarget:
    """``backend`` and ``arch`` are Triton's; ``warp`` is the number of threads that run in step, ``shared`` the bytes of shared memory that a
    program can have (CUDA C++ Programming Guide, table of technical specifications; AMD CDNA3 ISA, section on LDS), ``cores`` the multiprocessors or
    compute units of the largest chip of that kind."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int
    cores: int

    @property
    def executable(self) -> bool:
        """Whether there is machine code for it: for the interpreter there are texts alone."""
        return self.backend != "interpreter"

    @property
    def triple(self) -> str:
        """The kind of machine, as an artifact names it."""
        return {"cuda": CUDA_TRIPLE, "hip": ROCM_TRIPLE}.get(self.backend, INTERPRETER_TRIPLE)

    @property
    def chip(self) -> str:
        """What schedules are tuned for: ``sm_90``."""
        return self.name.partition(":")[2]

    @property
    def kind(self) -> str:
        """Chips of one kind have one form of matrix instructions: ``mma.sync`` with loads into shared memory that run ahead, wgmma, or MFMA."""
        if self.backend == "hip":
            return "cdna"
        return "hopper" if self.arch == 90 else "ampere"

    @property
    def eighths(self) -> str:
        """Which 8-bit floats its matrix instructions take, as Triton names them; empty where they take none."""
        if self.backend == "cuda":
            return "e4nv" if isinstance(self.arch, int) and self.arch >= 89 else ""
        return "e4b8" if self.arch == "gfx942" else ""

    @property
    def native(self) -> str:
        """The form that the driver loads."""
        return "cubin" if self.backend == "cuda" else "hsaco"

    @property
    def assembly(self) -> str:
        """The readable form of it; empty for the interpreter."""
        return {"cuda": "ptx", "hip": "amdgcn"}.get(self.backend, "")


def _cuda(major: int, minor: int, shared: int, cores: int) -> GpuTarget:
    return GpuTarget(f"cuda:sm_{major}{minor}", "cuda", major * 10 + minor, 32, shared << 10, cores)


def _rocm(arch: str, cores: int, warp: int = 64) -> GpuTarget:
    return GpuTarget(f"rocm:{arch}", "hip", arch, warp, 64 << 10, cores)


TARGETS: Mapping[str, GpuTarget] = {
    t.name: t
    for t in (
        _cuda(8, 0, 163, 108),
        _cuda(8, 6, 99, 84),
        _cuda(8, 9, 99, 142),
        _cuda(9, 0, 227, 132),
        _cuda(10, 0, 227, 148),
        _cuda(12, 0, 99, 188),
        _rocm("gfx90a", 110),
        _rocm("gfx942", 304),
    )
}


#: No GPU at all: kernels as texts, for Triton's interpreter
INTERPRETER = GpuTarget("triton:interpreter", "interpreter", "interpreter", 32, 227 << 10, 132)


def is_gpu(name: str) -> bool:
    """Whether a target's name is that of a GPU, known or not."""
    return name.partition(":")[0] in ("cuda", "rocm", "triton")


def parse_gpu(name: str) -> GpuTarget:
    """The target of a name such as ``cuda:sm_90`` or ``rocm:gfx942``."""
    found = INTERPRETER if name == INTERPRETER.name else TARGETS.get(name)
    if found is None:
        raise GpuTargetError(f"there is no target '{name}'; of GPUs there are {', '.join(TARGETS)}")
    return found
