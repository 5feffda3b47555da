"""``tfc bench``: how long one call takes, against peers and against the machine's limit.

All contestants run in turn, round after round, with a pause before each call so that the threads of the one before have gone to sleep.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
import typer

import trustformers_ir as tfir
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.progress import note
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.limits import fma_peak
from trustformers_ir.tools.bench.rivals import RIVALS, rival
from trustformers_ir.tools.commands.options import Dtype, Json, Model, Quantize, Target, Threads, check_options_of_artifact
from trustformers_ir.tools.probes import draw_dims, draw_inputs

OURS = "trustformers_ir"
LATER = ("llama.cpp",)
PAUSE = 0.01  # seconds: worker threads of all peers spin for less than that


def bench(
    model: Model,
    batch: Annotated[int, typer.Option(min=1, metavar="B", help="The dim called batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, metavar="S", help="The dim called seq.")] = 128,
    threads: Threads = None,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="How many calls to time.")] = 30,
    against: Annotated[str | None, typer.Option(metavar="A,B", help=f"Compare with {', '.join((*RIVALS, *LATER))}.")] = None,
    target: Target = "cpu",
    quantize: Quantize = None,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Time MODEL."""
    rivals = [name.strip() for name in against.split(",")] if against else []
    for name in rivals:
        if name in LATER:
            raise console.not_built(f"comparing with {name}")
        if name not in RIVALS:
            raise console.usage(f"nothing is known of '{name}'", f"--against takes {', '.join(RIVALS)}")
    with console.progress("benchmark"):
        started = time.perf_counter()
        if model.endswith(".tfc"):
            check_options_of_artifact(model, target, quantize, dtype)
            executable = tfir.load(model, threads=threads)
        else:
            executable = tfir.compile(model, target=target, dtype=dtype, quantize=quantize, threads=threads)
        compiled = time.perf_counter() - started
        random = np.random.default_rng(0)
        dims = draw_dims(executable.module, random, {"batch": batch, "seq": seq})
        arrays = draw_inputs(executable.module, dims, random)
        contestants: dict[str, Callable[[], np.ndarray]] = {OURS: lambda: _first(executable(**arrays))}
        for name in rivals:
            note(f"preparing {name}")
            contestants[name] = functools.partial(rival(name, model, arrays, executable.threads), arrays)
        difference = _differences(contestants)
        times = _interleaved(contestants, repeat)
        peak = fma_peak(executable.threads)
    flops = sum(evaluate(k.flops, dims) for k in executable.manifest.entries[0].kernels)
    rows = []
    for name, measured in times.items():
        median = statistics.median(measured)
        rows.append(
            {
                "name": name,
                "median_ms": median * 1e3,
                "best_ms": min(measured) * 1e3,
                "ratio": median / statistics.median(times[OURS]),
                "of_peak": flops / median / 1e9 / peak,
                "max_abs_difference": difference[name],
            }
        )
    result = {"compile_s": compiled, "dims": dims, "threads": executable.threads, "calls": repeat, "gflop": flops / 1e9, "peak_gflops": peak}
    if json:
        console.print_json({"model": model, "target": target} | result | {"results": rows})
        return
    shown = ", ".join(f"{name} {value}" for name, value in dims.items())
    print(f"{model}: {shown}; {executable.threads} threads; {flops / 1e9:.3g} GFLOP; FMA peak {peak:.0f} GFLOP/s; compiled in {compiled:.2f} s")
    head = ("", "median ms", "best ms", "time ratio", "of FMA peak", "max abs difference")
    cells = [
        (r["name"], f"{r['median_ms']:.2f}", f"{r['best_ms']:.2f}", f"{r['ratio']:.2f}", f"{r['of_peak']:.0%}", f"{r['max_abs_difference']:.1e}")
        for r in rows
    ]
    console.print_table(cells, head)


def _first(results: object) -> np.ndarray:
    return np.asarray(results[0] if isinstance(results, tuple) else results)


def _differences(contestants: Mapping[str, Callable[[], np.ndarray]]) -> dict[str, float]:
    """The largest difference of each first output from ours."""
    ours = contestants[OURS]().astype(np.float64)
    return {name: float(np.abs(call().astype(np.float64) - ours).max(initial=0.0)) for name, call in contestants.items()}


def _interleaved(contestants: Mapping[str, Callable[[], np.ndarray]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each call; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeat + 3):
        note("timing", turn, repeat + 3)
        for name, call in contestants.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: measured[3:] for name, measured in times.items()}
