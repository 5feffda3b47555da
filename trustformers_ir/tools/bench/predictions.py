"""How far predictions of time are off: ``python -m trustformers_ir.tools.bench.predictions [MODEL [RECIPE]]``.

Every size is predicted with rates that are measured just before (``runtime/prediction.py``), and timed: whole calls in turns, then one profiled call,
which tells what the kernels of each kind took.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.runtime.prediction import Rates, kind, predict
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.limits import measure
from trustformers_ir.tools.bench.models import draw_sets
from trustformers_ir.tools.bench.pauses import MODEL

THREADS = 2
SIZES = ((1, 8), (1, 32), (1, 128), (1, 512), (8, 128))  # batch and seq
ROUNDS, SECONDS = 5, 0.3  # turns of every size, and how long each lasts


def timed(exe: Runnable, inputs: Sequence[np.ndarray], seconds: float) -> list[float]:
    """Milliseconds of calls one after the other, for so long and at least twice; one call before is not counted."""
    exe(*inputs)
    out: list[float] = []
    stop = time.perf_counter() + seconds
    while len(out) < 2 or time.perf_counter() < stop:
        started = time.perf_counter()
        exe(*inputs)
        out.append((time.perf_counter() - started) * 1e3)
    return out


def by_kind(exe: Runnable, inputs: Sequence[np.ndarray], dims: Mapping[str, int], rates: Rates) -> dict[str, tuple[float, float]]:
    """Milliseconds that the kernels of each kind were predicted to take, and took in the fastest of a few profiled calls."""
    roofs = predict(exe.manifest.entries[0], dims, rates)
    profile = min((exe.profile(*inputs) for _ in range(8)), key=lambda p: p.seconds)
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for roof, row in zip(roofs, profile.rows, strict=True):
        total = sums[kind(roof.kernel).name.lower()]
        total[0] += roof.seconds * 1e3
        total[1] += row.seconds * 1e3
    return {name: (predicted, took) for name, (predicted, took) in sums.items()}


def main(model: str = MODEL, recipe: str | None = None) -> None:
    limits = measure(THREADS)
    rates = Rates(THREADS, limits.fma, limits.vnni, limits.memory)
    exe = tfir.compile(model, threads=THREADS, quantize=recipe)
    names = {name for name, _ in exe.manifest.symbols}
    wanted = [{name: size for name, size in (("batch", batch), ("seq", seq)) if name in names} for batch, seq in SIZES]
    drawn_sets = [draw_sets(exe, dims, 1) for n, dims in enumerate(wanted) if dims not in wanted[:n]]
    sizes = [dims for dims, _ in drawn_sets]
    inputs = [list(sets[0].values()) for _, sets in drawn_sets]
    times: list[list[float]] = [[] for _ in sizes]
    for _ in range(ROUNDS):
        for n, drawn in enumerate(inputs):
            times[n] += timed(exe, drawn, SECONDS)
    rows = []
    for dims, drawn, took in zip(sizes, inputs, times, strict=True):
        predicted, median = sum(r.seconds for r in predict(exe.manifest.entries[0], dims, rates)) * 1e3, statistics.median(took)
        parts = "; ".join(f"{name} {p:.2f} for {t:.2f}" for name, (p, t) in by_kind(exe, drawn, dims, rates).items())
        size = " ".join(f"{name} {n}" for name, n in dims.items())
        rows.append([size, f"{predicted:.2f}", f"{median:.2f} (best {min(took):.2f})", f"{predicted / median:.2f}", parts])
    console.print_table(rows, ("size", "predicted, ms", "measured, ms", "ratio", "kinds: predicted for profiled, ms"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
