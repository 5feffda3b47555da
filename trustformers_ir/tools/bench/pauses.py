"""Calls after pauses, and with more threads than CPUs: ``python -m trustformers_ir.tools.bench.pauses [MODEL]``.

A call after a pause finds the other threads parked and, on a virtual machine, their CPUs halted; waking one takes longer than a small call. Every
number of threads and every length takes its turn in every round, since machines differ from minute to minute.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools import console

MODEL = "random:bert?hidden_size=384&num_hidden_layers=6&num_attention_heads=12&intermediate_size=1536"  # the shape of MiniLM-L6
LENGTHS = (8, 32, 128)
PAUSES = (0.0, 0.001, 0.01, 0.1)  # seconds
THREADS = (1, 2, 4, 8)
ROUNDS, CALLS = 4, 10


def after_pause(exe: Executable, length: int, pause: float, calls: int) -> list[float]:
    """Milliseconds of single calls on one text of so many tokens, each after a pause."""
    ids = {exe.inputs[0].name: np.ones((1, length), np.int64)}
    exe(**ids)
    out = []
    for _ in range(calls):
        time.sleep(pause)
        started = time.perf_counter()
        exe(**ids)
        out.append((time.perf_counter() - started) * 1e3)
    return out


def table(executables: dict[str, Executable], pauses: tuple[float, ...]) -> list[list[str]]:
    """A row per length and pause: median and best of each executable."""
    rows = []
    for length in LENGTHS:
        for pause in pauses:
            times: dict[str, list[float]] = {name: [] for name in executables}
            for _ in range(ROUNDS):
                for name, exe in executables.items():
                    times[name] += after_pause(exe, length, pause, CALLS)
            cells = [f"{statistics.median(t):.2f} (best {min(t):.2f})" for t in times.values()]
            rows.append([str(length), f"{pause * 1e3:g}", *cells])
    return rows


def main(model: str = MODEL) -> None:
    compiled = tfir.compile(model).compiled
    executables = {f"{n} threads": Executable(compiled, n) for n in THREADS}
    console.print_table(table(executables, PAUSES), ("tokens", "pause, ms", *executables))


if __name__ == "__main__":
    main(*sys.argv[1:2])
