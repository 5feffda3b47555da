"""``tfc compile``: a model to an artifact, or to the text of one of the stages on the way."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import trustformers_ir as tfir
from trustformers_ir.ir.atomic import check_writable, write_text
from trustformers_ir.ir.schedule_table import TABLE
from trustformers_ir.runtime.library import find_compiler
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.inspect import predictions
from trustformers_ir.tools.commands.options import Calibrate, Dtype, Json, Model, Quantize, Schedules, Target, Threads, files
from trustformers_ir.tools.quantized import summary


class Stage(enum.Enum):
    """What ``--emit`` can show."""

    GRAPH = "graph"
    KERNELS = "kernels"
    LLVM = "llvm"
    ASM = "asm"
    TRITON = "triton"
    PTX = "ptx"
    METAL = "metal"
    WGSL = "wgsl"


BUILT = (Stage.GRAPH, Stage.KERNELS, Stage.LLVM, Stage.ASM)


def compile(
    model: Model,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="OUT", help="What to write: *.tfc; *.so, a shared library with a C header; *.o.")
    ] = None,
    target: Target = "cpu",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    dtype: Dtype = None,
    threads: Threads = None,
    schedules: Schedules = None,
    dynamic: Annotated[str | None, typer.Option(metavar="A,B", help="Dims that stay symbolic, for example batch,seq.")] = None,
    partition: Annotated[str | None, typer.Option(metavar="P", help="How to split the model over devices.")] = None,
    emit: Annotated[Stage | None, typer.Option(help="Write the text of a stage instead of an artifact, to OUT or to stdout.")] = None,
    embed_weights: Annotated[bool, typer.Option("--embed-weights", help="Put the weights into OUT.so, not into a file beside it.")] = False,
    json: Json = False,
) -> None:
    """Compile MODEL into an artifact that runs without the compiler."""
    if output is None and emit is None:
        raise console.usage("an output is needed", "tfc compile MODEL -o OUT.tfc, or --emit graph to see the graph")
    if json and emit is not None and output is None:
        raise console.usage("--json and the text of --emit cannot both go to stdout", "give the text an output: -o FILE")
    if emit is not None and emit not in BUILT:
        raise console.not_built(f"--emit {emit.value}", f"the stages are {', '.join(s.value for s in BUILT)}")
    if output is not None:
        check_writable(output)
        if emit is None and not output.endswith((".tfc", ".so", ".o")):
            raise console.usage(f"'{output}' is no .tfc file", "-o OUT.tfc, OUT.so or OUT.o; `tfc export` writes other formats")
    if embed_weights and (output is None or not output.endswith(".so")):
        raise console.usage("--embed-weights is for shared libraries", "-o OUT.so")
    if output is not None and emit is None and output.endswith(".so"):
        find_compiler()  # before the work whose result needs it
    started = time.perf_counter()
    with console.progress("compiling"):
        dims = tuple(filter(None, (d.strip() for d in dynamic.split(",")))) if dynamic is not None else None
        executable = tfir.compile(
            model,
            target=target,
            dtype=dtype,
            quantize=quantize,
            dynamic=dims,
            threads=threads,
            partition=partition,
            calibration=files(calibrate),
            schedules=schedules,
        )
        if emit is not None:
            text = str(executable.module) if emit is Stage.GRAPH else tfir.api.emit(executable, emit.value)
            if output is None:
                print(text)
                return
            write_text(output, text if text.endswith("\n") else text + "\n")
        else:
            assert output is not None
            executable.save(output, embed_weights=embed_weights)
    seconds = time.perf_counter() - started
    built = " and ".join(executable.targets)
    for line in (*summary(executable.report()), *_tuned(executable.report())):
        console.say(line)
    console.say(f"{output}: {console.quantity(os.stat(output).st_size)} for {built}, in {seconds:.2f} s")
    if json:
        console.print_json(
            {"model": model, "output": output, "target": built, "seconds": seconds, "report": executable.report()}
            | {"predictions": predictions(executable.manifest, executable.threads)}
        )


def _tuned(report: Mapping[str, Any]) -> list[str]:
    """Says so when schedules come from a table: it may be one that nobody named."""
    told = report.get("schedules", {})
    rows = list(told.get("kernels", {}).values())
    count = sum(row["from"] == TABLE for row in rows)
    return [f"schedules: {count} of {len(rows)} from {told['table'] or 'a table'}"] if count else []
