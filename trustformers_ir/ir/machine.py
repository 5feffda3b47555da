"""What this machine gives the process: CPUs, caches and memory."""

from __future__ import annotations

import functools
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

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


def peak_memory() -> int:
    """The highest resident memory of this process so far, in bytes; 0 where the system does not say. (``ru_maxrss`` would count the parent, too, from
    before ``exec``.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", next(_text(Path("/proc/self/status")), ""))
    return int(found[1]) << 10 if found else 0


@functools.cache
def last_cache() -> int:
    """Bytes of the largest cache of a CPU; 0 where the system does not say."""
    sizes = [text for n in range(8) for text in _text(_CACHES / f"index{n}" / "size")]
    return max((int(t[:-1]) << {"K": 10, "M": 20}[t[-1]] for t in sizes if t[:-1].isdigit() and t[-1] in "KM"), default=0)


def architecture() -> str:
    """The architecture of the CPU, as triples name it."""
    name = platform.machine().lower()
    return _ARCHITECTURES.get(name, name)


def cpu_model() -> str:
    """What the CPU calls itself, with family and model number where the system says them: in virtual machines many kinds have one name."""
    first = next(_text(Path("/proc/cpuinfo")), "").partition("\n\n")[0]
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    numbers = [f"{key.rpartition(' ')[2]} {said[key]}" for key in ("cpu family", "model") if key in said]
    name = said.get("model name") or platform.processor() or architecture()
    return f"{name} ({', '.join(numbers)})" if numbers else name


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
