"""``tfc bench``: how long one call takes."""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import numpy as np
import typer

import trustformers_ir as tfir
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Dtype, Json, Model, Quantize, Target, Threads
from trustformers_ir.tools.probes import draw_dims, draw_inputs

RIVALS = ("eager", "inductor", "onnxruntime", "openvino", "llama.cpp")


def bench(
    model: Model,
    batch: Annotated[int, typer.Option(min=1, metavar="B", help="The dim called batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, metavar="S", help="The dim called seq.")] = 128,
    threads: Threads = None,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="How many calls to time.")] = 30,
    against: Annotated[str | None, typer.Option(metavar="A,B", help=f"Compare with {', '.join(RIVALS)}.")] = None,
    target: Target = "cpu",
    quantize: Quantize = None,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Time MODEL."""
    if against is not None:
        unknown = [name for name in against.split(",") if name not in RIVALS]
        if unknown:
            raise console.usage(f"nothing is known of '{unknown[0]}'", f"--against takes {', '.join(RIVALS)}")
        raise console.not_built(f"comparing with {against}")
    with console.progress("compiling"):
        started = time.perf_counter()
        if model.endswith(".tfc"):
            executable = tfir.load(model, threads=threads)
        else:
            executable = tfir.compile(model, target=target, dtype=dtype, quantize=quantize, threads=threads)
        compiled = time.perf_counter() - started
    random = np.random.default_rng(0)
    dims = draw_dims(executable.module, random, {"batch": batch, "seq": seq})
    arrays = draw_inputs(executable.module, dims, random)
    times = []
    for _ in range(repeat + 3):
        started = time.perf_counter()
        executable(**arrays)
        times.append((time.perf_counter() - started) * 1e3)
    times = times[3:]
    result = {"compile_s": compiled, "dims": dims, "calls": repeat, "best_ms": min(times), "median_ms": statistics.median(times)}
    if json:
        console.print_json({"model": model, "target": target, "threads": threads} | result)
    else:
        shown = ", ".join(f"{name} {value}" for name, value in dims.items())
        console.print_table(
            [(model, shown, f"{min(times):.3f}", f"{statistics.median(times):.3f}")], ("model", "dims", "best ms", "median ms")
        )
