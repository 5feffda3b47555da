"""The machine that this process runs on, as code for it has to know it. Under Linux on x86-64 the CPU itself is asked, elsewhere LLVM, which costs
memory and time."""

from __future__ import annotations

import contextlib
import functools
import platform
import sys
from collections.abc import Iterable

from trustformers_ir.ir.machine import architecture
from trustformers_ir.runtime.cpu_features import FEATURE_BITS
from trustformers_ir.runtime.cpuid import Cpu


def this_machine() -> dict[str, object]:
    """What code for this machine depends on: plain data that is equal for equal machines."""
    model, found = _asked()
    return {"system": f"{architecture()}-{platform.system().lower()}", "cpu": model, "features": sorted(found)}


def lacking(names: Iterable[str]) -> list[str]:
    """Those of the features, by LLVM's names, that the CPU lacks or the system does not let programs use; sorted."""
    missing = set(names) - _asked()[1]
    if missing - FEATURE_BITS.keys():  # a version of LLVM has names that were not known when the table was made
        missing -= _features_by_llvm()
    return sorted(missing)


@functools.cache
def _asked() -> tuple[str, frozenset[str]]:
    """The CPU's name, and its features as far as they are known here."""
    if architecture() == "x86_64" and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a system that lets nobody make code: nothing will be linked either, and that is said there
            cpu = Cpu()
            found = frozenset(name for name, bit in FEATURE_BITS.items() if cpu.has(bit))
            maker, model = cpu.model()
            cpu.close()
            return f"{maker} {model:#x}", found
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name(), _features_by_llvm()


def _features_by_llvm() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
