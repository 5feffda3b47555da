"""Matrix products on one core next to what the machine can do at best: ``python -m trustformers_ir.tools.bench.gemm``.

Each product is a whole call of a compiled function, its weight packed at build time. f32 is ``linear`` with a bias; int8 is ``linear_int8`` with
scales and zero points per row, and ``quantize + int8`` the same from f32, codes of the rows included. Rounds of all of them are
interleaved with measurements of the limits (``limits.py``). Printed are 10⁹ operations per second, the median and the best, and the median
share of the limit of the same round: a shared machine is slower in some seconds than in others, and the limit is so with it.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.types import TensorType
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.limits import fma_peak, vnni_peak

SHAPES = ((2048, 2048, 2048), (128, 768, 768), (128, 3072, 768), (128, 768, 3072), (32, 768, 768), (8, 768, 768), (1, 768, 768))  # m, n, k
ROUNDS = 9
SECONDS = 0.05  # of one round


def module(kind: str, m: int, n: int, k: int) -> tuple[Module, list[np.ndarray]]:
    """A function of one product, and arguments for it."""
    rng = np.random.default_rng(0)
    out = Module(kind)
    block = Block()
    out.add_function(Function("main", block))
    build = Builder(out, block)

    def weight(name: str, array: np.ndarray) -> Any:
        out.add_weight(Weight(name, TensorType(array.shape, DType.from_numpy(array.dtype)), array))
        return build(ops.WeightOp(name))

    def argument(name: str, array: np.ndarray) -> Any:
        arguments.append(array)
        return block.add_arg(TensorType(array.shape, DType.from_numpy(array.dtype)), name)

    arguments: list[np.ndarray] = []
    bias = rng.standard_normal(n).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    if kind == "f32":
        matrix = rng.standard_normal((n, k)).astype(np.float32)
        build.create(ops.Return(), build(ops.Linear(), argument("x", x), weight("w", matrix), weight("b", bias)))
        return out, arguments
    if kind == "int8":
        codes = [
            argument("q", rng.integers(0, 256, (m, k), np.uint8)),
            argument("scale", np.full((m, 1), 0.02, np.float32)),
            argument("zero", rng.integers(0, 256, (m, 1), np.int32)),
        ]
    else:
        codes = list(build.create(ops.QuantizeDynamic(), argument("x", x)).results)
    matrix = rng.integers(-128, 128, (n, k), np.int8)
    parts = (matrix, np.full(n, 0.01, np.float32), matrix.sum(1, dtype=np.int32), bias)
    build.create(ops.Return(), build(ops.LinearInt8(), *codes, *(weight(name, a) for name, a in zip("wcsb", parts, strict=True))))
    return out, arguments


def seconds(calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> list[list[float]]:
    """Times of one call of each, of every round; rounds of all are interleaved."""
    counts = []
    for call in calls:
        call()
        started = time.perf_counter()
        call()
        counts.append(max(1, int(SECONDS / (time.perf_counter() - started))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, mine in zip(calls, counts, times, strict=True):
            started = time.perf_counter()
            for _ in range(count):
                call()
            mine.append((time.perf_counter() - started) / count)
    return times


def shares(times: list[float], limits: list[float], operations: float) -> float:
    """The median share of the limit, round by round; 0 where there is none."""
    return statistics.median(operations / t / 1e9 / limit if limit else 0.0 for t, limit in zip(times, limits, strict=True))


def main(target: str = "cpu") -> None:
    """Measure and print."""
    kinds = ("f32", "int8", "quantize + int8")
    rows = []
    limits: dict[str, list[float]] = {"f32": [], "int8": []}
    for m, n, k in SHAPES:
        made = [module(kind, m, n, k) for kind in kinds]
        calls: list[Callable[[], Any]] = [functools.partial(tfir.compile(mod, threads=1, target=target), *arrays) for mod, arrays in made]
        here: dict[str, list[float]] = {"f32": [], "int8": []}
        rounds = []
        for _ in range(ROUNDS):
            rounds.append([t for (t,) in seconds(calls, 1)])
            here["f32"].append(fma_peak(1, 3))
            here["int8"].append(vnni_peak(1, 3))
        for position, kind in enumerate(kinds):
            times, bound = [r[position] for r in rounds], "f32" if kind == "f32" else "int8"
            median, best = (2e-9 * m * n * k / f(times) for f in (statistics.median, min))
            share = shares(times, here[bound], 2.0 * m * n * k)
            rows.append((f"{m}x{n}x{k}", kind, f"{median:.1f}", f"{best:.1f}", f"{share:.0%}" if share else "-"))
        for bound, found in here.items():
            limits[bound] += found
    console.print_table(rows, ("m x n x k", "kind", "median GOP/s", "best", "of the limit"))
    fma, vnni = (f"{statistics.median(limits[bound]):.0f} (best {max(limits[bound]):.0f})" for bound in ("f32", "int8"))
    console.say(f"limits on one core: FMA {fma} GFLOP/s, VNNI {vnni} GOP/s")


if __name__ == "__main__":
    main(*sys.argv[1:])
