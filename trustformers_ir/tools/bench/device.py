"""How long calls take on a GPU: with tensors that lie there where torch has them, else with arrays of the CPU, whose way there and back counts.

Peers and tables of bars are measured by the scripts in ``tools/bench/gpu``.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.runtime.gpu.executable import GpuExecutable

WARM = 3  # calls before any is timed: the first loads kernels, the second makes the graph


@dataclass(frozen=True)
class DeviceTimes:
    """Seconds of the calls; ``resident``: inputs and outputs stay on the GPU."""

    device: str
    resident: bool
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(exe: GpuExecutable, inputs: Mapping[str, np.ndarray], seconds: float, calls: int = 0) -> DeviceTimes:
    """Times ``calls`` calls, or as many as fit into ``seconds``. ``ARTIFACT_TARGET`` where there is no such GPU."""
    driver = exe.driver
    given: dict[str, Any] = dict(inputs)
    resident = driver.torch_device == "cuda" and _torch_has_gpu()
    if resident:
        import torch

        given = {name: torch.from_numpy(a).cuda() for name, a in inputs.items()}
    for _ in range(WARM if calls != 1 else 1):
        exe(**given)
    exe.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < calls if calls else (not times or time.perf_counter() - begin < seconds):
        started = time.perf_counter()
        exe(**given)
        exe.synchronize()
        times.append(time.perf_counter() - started)
    return DeviceTimes(driver.title, resident, tuple(times))


def _torch_has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())
