"""Targets: which machine the code is for.

``cpu`` (or ``host``) is this machine; ``cpu:avx2`` and ``cpu:avx512`` are the levels x86-64-v3 and x86-64-v4 by their familiar names,
``cpu:avxvnni`` and ``cpu:avx512vnni`` the same with the instruction that adds up products of bytes; any CPU name that LLVM knows can follow ``cpu:``.
Names are checked against LLVM's own list first: given an unknown one, LLVM only warns and then aborts the process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

_ALIASES = {"avx2": "x86-64-v3", "avxvnni": "avxvnni", "avx512": "x86-64-v4", "avx512vnni": "avx512vnni"}
_LEVELS: dict[str, tuple[str, ...]] = {
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2"),
}
_LEVELS["x86-64-v4"] = (*_LEVELS["x86-64-v3"], "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_LEVELS["avxvnni"] = (*_LEVELS["x86-64-v3"], "avxvnni")
_LEVELS["avx512vnni"] = (*_LEVELS["x86-64-v4"], "avx512vnni")
#: What LLVM calls the CPU of a level whose name is not a CPU's.
_BASE = {"avxvnni": "x86-64-v3", "avx512vnni": "x86-64-v4"}
#: x86-64 CPUs that have at least the features of level 3; their levels.
_X86_CPUS = {
    "haswell": "x86-64-v3",
    "broadwell": "x86-64-v3",
    "skylake": "x86-64-v3",
    "alderlake": "avxvnni",
    "znver1": "x86-64-v3",
    "znver2": "x86-64-v3",
    "znver3": "x86-64-v3",
    "skylake-avx512": "x86-64-v4",
    "cascadelake": "avx512vnni",
    "icelake-server": "avx512vnni",
    "sapphirerapids": "avx512vnni",
    "znver4": "avx512vnni",
    "znver5": "avx512vnni",
}


class TargetError(ValueError):
    """The target's name is not known, or it lacks what the code generator needs."""


@dataclass(frozen=True)
class Target:
    """A machine. ``features`` are the plain names of the features that the code may use, sorted."""

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]

    @property
    def feature_string(self) -> str:
        """LLVM's spelling of the features."""
        return ",".join(f"+{f}" for f in self.features)

    @property
    def registers(self) -> int:
        """Vector registers, each counted as holding 16 f32: 32 with AVX-512, 8 pairs with AVX2."""
        return 32 if "avx512f" in self.features else 8

    @property
    def kind(self) -> str:
        """The kind of machine that schedules are tuned for: the CPU, and the vector instructions that code may use, ``znver5-avx512vnni``."""
        best = "avx512" if "avx512f" in self.features else "avx2"
        vnni = "avx512vnni" if best == "avx512" else "avxvnni"
        return f"{self.cpu}-{vnni if vnni in self.features else best}"

    def machine(self, *, jit: bool = False) -> Any:
        """An LLVM target machine (a fresh one each time: they are not thread safe)."""
        llvm = binding()
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.cpu, features=self.feature_string, opt=3, reloc="pic", jit=jit)


@functools.cache
def binding() -> Any:
    """``llvmlite.binding``, initialised."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm


def familiar() -> tuple[str, ...]:
    """The targets that go by the familiar name of their instruction set, smallest first."""
    return tuple(f"cpu:{name}" for name in _ALIASES)


@functools.cache
def host() -> Target:
    """This machine."""
    llvm = binding()
    features = tuple(sorted(name for name, on in llvm.get_host_cpu_features().items() if on))
    target = Target("cpu", llvm.get_process_triple(), llvm.get_host_cpu_name(), features)
    if target.triple.startswith("x86_64") and "fma" not in features:
        raise TargetError("this machine has no FMA instruction; code needs at least x86-64-v3")
    return target


@functools.cache
def parse(name: str) -> Target:
    """The target of that name: ``host``, ``cpu:avx2``, ``cpu:avx512``, ``cpu:avx512vnni``, ``cpu:x86-64-v3``, … or ``cpu:<a known CPU>``."""
    if name in ("host", "cpu", "cpu:host"):
        return host()
    kind, _, cpu = name.partition(":")
    cpu = _ALIASES.get(cpu, cpu)
    level = _X86_CPUS.get(cpu, cpu)
    if kind != "cpu" or level not in _LEVELS:
        known = ", ".join(sorted({*_ALIASES, *_LEVELS, *_X86_CPUS}))
        raise TargetError(f"there is no target {name!r}; known are host and cpu: with one of {known}")
    return Target(name, "x86_64-unknown-linux-gnu", _BASE.get(level, level), _LEVELS[level])
