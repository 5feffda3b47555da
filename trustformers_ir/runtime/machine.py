"""What this machine gives the process: CPUs, memory, and the features that compiled code may need."""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where, printable

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUPS = Path("/sys/fs/cgroup")
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def cpus() -> int:
    """How many CPUs this process may use: those of its affinity mask, less when its cgroup has a smaller quota of CPU time."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    for quota, period in _cpu_quotas():
        count = min(count, math.ceil(quota / period))
    return max(count, 1)


@functools.cache
def memory() -> int:
    """Bytes of memory that this process can hope for: the machine's, or the limit of its cgroup."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        total = 1 << 40
    limits = [int(text) for text in _settings("memory.max", "memory/memory.limit_in_bytes") if text.isdigit()]
    return min([total, *(n for n in limits if n > 0)])


def check_target(target: TargetInfo, where: Where | None = None) -> None:
    """``ARTIFACT_TARGET`` unless this machine runs code of ``target``: same architecture and system, and every feature is there."""
    problem = _problem(target, where)
    if problem is not None:
        raise problem


def choose_target(targets: Sequence[TargetInfo], wanted: str | None = None, where: Where | None = None) -> int:
    """Which of the targets of a module, best first, is executed here: the first that this machine runs, or the one named ``wanted``.
    ``USAGE`` when there is none of that name; ``ARTIFACT_TARGET``, with what each of them lacks, when none can be executed."""
    if wanted is not None:
        names = [t.name for t in targets]
        if wanted not in names:
            message = f"there is no code for the target '{printable(wanted)}'"
            raise CompilerError.of(Code.USAGE, message, where, f"there is code for {', '.join(map(printable, names))}")
        check_target(targets[names.index(wanted)], where)
        return names.index(wanted)
    problems = [_problem(target, where) for target in targets]
    if None in problems:
        return problems.index(None)
    raise CompilerError(*(d for problem in problems if problem is not None for d in problem.diagnostics))


def _problem(target: TargetInfo, where: Where | None) -> CompilerError | None:
    """Why this machine cannot run code of ``target``; None when it can."""
    architecture, *rest = target.triple.split("-")
    if architecture != _architecture() or platform.system().lower() not in rest:
        message = f"the code is for {target.triple}; this machine is {_architecture()}-{platform.system().lower()}"
        return CompilerError.of(Code.ARTIFACT_TARGET, message, where, "compile the model for this machine: tfc compile --target cpu")
    missing = sorted(set(target.features) - _features())
    if not missing:
        return None
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    message = f"the code was compiled for {target.name} ({target.cpu}) and needs CPU features that this machine lacks: {shown}"
    help = "compile the model on this machine, or for a smaller target such as --target cpu:avx2"
    return CompilerError.of(Code.ARTIFACT_TARGET, message, where, help)


def this_machine() -> dict[str, object]:
    """What code for this machine depends on: plain data that is equal for equal machines and versions of LLVM."""
    import llvmlite
    import llvmlite.binding as llvm

    features = sorted(_features())
    return {"triple": llvm.get_process_triple(), "cpu": llvm.get_host_cpu_name(), "features": features, "llvmlite": llvmlite.__version__}


@functools.cache
def last_cache() -> int:
    """Bytes of the largest cache of a CPU; 0 where the system does not say."""
    sizes = [text for n in range(8) for text in _text(_CACHES / f"index{n}" / "size")]
    return max((int(t[:-1]) << {"K": 10, "M": 20}[t[-1]] for t in sizes if t[:-1].isdigit() and t[-1] in "KM"), default=0)


def _architecture() -> str:
    name = platform.machine().lower()
    return _ARCHITECTURES.get(name, name)


@functools.cache
def _features() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def _cpu_quotas() -> Iterator[tuple[int, int]]:
    """``(quota, period)`` in microseconds of every cgroup that limits CPU time."""
    pairs = [text.split() for text in _settings("cpu.max")]
    pairs.append([*_settings("", "cpu/cpu.cfs_quota_us"), *_settings("", "cpu/cpu.cfs_period_us")][:2])
    for pair in pairs:
        if len(pair) == 2 and all(n.isdigit() and int(n) > 0 for n in pair):
            yield int(pair[0]), int(pair[1])


def _settings(second: str, first: str = "") -> Iterator[str]:
    """Texts of a cgroup setting: version 2 in the process's own group and those around it, version 1 at its root."""
    if second:
        folder = _CGROUPS / _own_group().strip("/")
        for group in (folder, *folder.parents):
            yield from _text(group / second)
            if group == _CGROUPS:
                break
    if first:
        yield from _text(_CGROUPS / first)


def _own_group() -> str:
    """The path of this process's cgroup of version 2."""
    try:
        return next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return "/"


def _text(path: Path) -> Iterator[str]:
    try:
        yield path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return
