"""What a call costs besides its work, and what loading costs: ``python -m trustformers_ir.tools.bench.call_overhead``.

A function of almost no work is compiled and called in a loop. The best of several rounds counts, since other processes only add to it.
``numpy.add`` shows what a call into native code costs at all.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.runtime import artifact, executable
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools import console

ROUNDS = 9
CALLS = 2000
SHAPES = 300
COPIES, SIDE = 25, 1024  # weights of 4 MiB


def microseconds(call: Callable[[], Any], calls: int = CALLS) -> float:
    """The time of one call, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - started) / calls)
    return best * 1e6


def adder(threads: int) -> Executable:
    """``x + y`` of any number of rows, called once."""
    module = tfir.trace(lambda x, y: x + y, tfir.f32["rows", 16], tfir.f32["rows", 16])
    exe = tfir.compile(module, threads=threads)
    assert isinstance(exe, Executable)
    exe(np.ones((4, 16), np.float32), np.ones((4, 16), np.float32))
    return exe


def calling() -> list[tuple[str, float]]:
    """Names and microseconds of the ways to call."""
    x = np.ones((4, 16), np.float32)
    exe = adder(2)
    rows = [
        ("numpy.add", microseconds(functools.partial(np.add, x, x))),
        ("call", microseconds(functools.partial(exe, x, x))),
        ("call, inputs by name", microseconds(functools.partial(exe, x=x, y=x))),
    ]
    try:
        import torch

        t = torch.from_numpy(x)
        rows.append(("call, torch tensors", microseconds(functools.partial(exe, t, t))))
    except ImportError:
        pass
    arrays = [np.ones((n, 16), np.float32) for n in range(5, 5 + SHAPES)]
    started = time.perf_counter()
    for a in arrays:
        exe(a, a)
    rows.append(("call, shape not seen before", (time.perf_counter() - started) / SHAPES * 1e6))
    alone, executable.ALONE_BELOW = executable.ALONE_BELOW, 0
    try:
        rows.append(("call, shared by 2 workers all the same", microseconds(functools.partial(adder(2), x, x))))
    finally:
        executable.ALONE_BELOW = alone
    return rows


def loading() -> list[tuple[str, float]]:
    """Names and microseconds of saving and loading 100 MiB of weights."""
    weights = {f"w{n}": np.full((SIDE, SIDE), n, np.float32) for n in range(COPIES)}

    def total(x: Any) -> Any:
        for name in weights:
            x = x + Parameter(name, (SIDE, SIDE))
        return x

    exe = tfir.compile(tfir.trace(total, tfir.f32[SIDE, SIDE], weights=weights))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tfc"
        saved = microseconds(lambda: exe.save(path), 1)
        size = f"{path.stat().st_size >> 20} MiB"
        return [
            (f"save, {size}", saved),
            (f"load, {size}", microseconds(lambda: artifact.load(path), 1)),
            ("load, weights not checked", microseconds(lambda: artifact.load(path, check_weights=False), 1)),
            ("inspect", microseconds(lambda: artifact.inspect(path), 1)),
        ]


def main() -> None:
    console.print_table([[name, f"{time:.1f}"] for name, time in [*calling(), *loading()]], ("what", "µs"))


if __name__ == "__main__":
    main()
