"""Products by weights in blocks next to what the machine can do at best: ``python -m trustformers_ir.tools.bench.blocks [THREADS [FORMAT…]]``.

A function is several products of one activation, quantized once, by weights of their own, all of which together lie beyond the caches: one row at a
time that is what generating a token reads. Printed are GB/s of weights for one row, 10⁹ operations per second for 128, the medians and the bests, and
the median share of the limit of the same round (``limits.py``).
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
from trustformers_ir.ir.block_formats import FORMATS, Format
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.block_planes import BlockPlanes
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.limits import memory_bandwidth, vnni_peak

SIZES = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (5632, 2048), (2048, 5632))  # n, k
STREAM = 100 << 20  # bytes of all weights of a function
ROUNDS = 7
GROUP = 32  # where a format does not say


def module(format: Format, n: int, k: int, rows: int | str, products: int) -> Module:
    """A function of so many products of one activation ``[rows, k]`` by ``[n, k]``."""
    row = FORMATS[format]
    rng = np.random.default_rng(0)
    planes = {}
    for name, (_, columns) in row.shapes(n, k, GROUP).items():
        dtype = row.planes[name].dtype
        if dtype is DType.f16:
            planes[name] = (rng.random((n, columns)) * 0.02).astype(np.float16)
        else:
            planes[name] = rng.integers(0, 64 if "steps" in name else 256, (n, columns)).astype(dtype.numpy)
    out, block = Module("products"), Block()
    out.add_function(Function("main", block))
    if isinstance(rows, str):
        out.facts.declare(rows)
    x = block.add_arg(DType.f32[rows, k], "x")
    build = Builder(out, block)
    made = []
    for i in range(products):
        held = BlockPlanes(f"w{i}", format, (n, k), GROUP, lambda: dict(planes), (i,))
        made.append(build(ops.LinearBlocks(format, held.group), x, *held.operands(out, build), None))
    build.create(ops.Return(), *made)
    return out


def seconds(call: Callable[[], Any]) -> float:
    """The time of a call, of those that fit into a tenth of a second."""
    call()
    started = time.perf_counter()
    call()
    count = max(1, int(0.1 / (time.perf_counter() - started)))
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def main(threads: str = "2", *formats: str) -> None:
    """Measure and print."""
    count, table = int(threads), []
    for format in map(Format, formats or ("q4_0", "q4_1", "q8_0")):
        for n, k in SIZES:
            size = n * k * FORMATS[format].bits_per_weight(GROUP) / 8
            products = max(1, round(STREAM / size))
            few = max(1, products // 8)
            calls = []
            for rows, many in ((1, products), (128, few)):
                exe = tfir.compile(module(format, n, k, "m", many), threads=count)
                calls.append(functools.partial(exe, np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)))
            vector, matrix = [], []
            for _ in range(ROUNDS):
                vector.append((products * size / seconds(calls[0]) / 1e9, memory_bandwidth(count)))
                matrix.append((few * 256 * n * k / seconds(calls[1]) / 1e9, vnni_peak(count, 3)))
            cells = []
            for found in (vector, matrix):
                got = [g for g, _ in found]
                cells += [f"{statistics.median(got):.1f}", f"{max(got):.1f}", f"{statistics.median(g / limit for g, limit in found):.0%}"]
            table.append((format.value, f"{n}x{k}", *cells))
    console.print_table(table, ("format", "n x k", "1 row, GB/s", "best", "of memory", "128 rows, GOP/s", "best", "of VNNI"))


if __name__ == "__main__":
    main(*sys.argv[1:])
