"""``tfc compile``: a model to an artifact, or to the text of one of the stages on the way."""

from __future__ import annotations

import enum
import functools
import os
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import trustformers_ir as tfir
from trustformers_ir.codegen.triton.target import is_gpu
from trustformers_ir.ir.atomic import check_writable, write_text
from trustformers_ir.ir.schedule_table import TABLE
from trustformers_ir.runtime.library import find_compiler
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.inspect import predictions
from trustformers_ir.tools.commands.options import Bom, Cache, Calibrate, Dtype, Json, Lock, Model, Quantize, Schedules, Target, Threads, files
from trustformers_ir.tools.locking.keeper import Keeper
from trustformers_ir.tools.locking.request import COMPILE, Request, compiled, save, saved
from trustformers_ir.tools.quantized import summary


class Stage(enum.Enum):
    """What ``--emit`` can show."""

    GRAPH = "graph"
    KERNELS = "kernels"
    LLVM = "llvm"
    ASM = "asm"
    TRITON = "triton"
    PTX = "ptx"
    AMDGCN = "amdgcn"
    METAL = "metal"
    WGSL = "wgsl"


CPU = (Stage.GRAPH, Stage.KERNELS, Stage.LLVM, Stage.ASM)
GPU = (Stage.GRAPH, Stage.KERNELS, Stage.TRITON, Stage.PTX, Stage.AMDGCN)


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
    cache: Cache = None,
    dynamic: Annotated[str | None, typer.Option(metavar="A,B", help="Dims that stay symbolic, for example batch,seq.")] = None,
    input: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE.npy", help="The value of an input that decides over shapes (ONNX).")
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="P", help="How to split the model over devices.")] = None,
    emit: Annotated[Stage | None, typer.Option(help="Write the text of a stage instead of an artifact, to OUT or to stdout.")] = None,
    embed_weights: Annotated[bool, typer.Option("--embed-weights", help="Put the weights into OUT.so, not into a file beside it.")] = False,
    lock: Lock = None,
    bom: Bom = None,
    json: Json = False,
) -> None:
    """Compile MODEL into an artifact that runs without the compiler."""
    if output is None and emit is None:
        raise console.usage("an output is needed", "tfc compile MODEL -o OUT.tfc, or --emit graph to see the graph")
    if json and emit is not None and output is None:
        raise console.usage("--json and the text of --emit cannot both go to stdout", "give the text an output: -o FILE")
    gpu = emit is not None and is_gpu(target)
    if emit is None and is_gpu(target) and output is not None and output.endswith((".so", ".o")):
        raise console.usage("shared libraries and object files are of code for CPUs alone", "-o OUT.tfc")
    _check_stage(emit, target, gpu)
    if output is not None:
        check_writable(output)
        if emit is None and not output.endswith((".tfc", ".so", ".o")):
            raise console.usage(f"'{output}' is no .tfc file", "-o OUT.tfc, OUT.so or OUT.o; `tfc export` writes other formats")
    if emit is not None and (lock is not None or bom is not None):
        raise console.usage("--lock and --bom are of artifacts, not of the texts of --emit", "leave out --emit")
    if embed_weights and (output is None or not output.endswith(".so")):
        raise console.usage("--embed-weights is for shared libraries", "-o OUT.so")
    if output is not None and emit is None and output.endswith(".so"):
        find_compiler()  # before the work whose result needs it
    started = time.perf_counter()
    dims = tuple(filter(None, (d.strip() for d in dynamic.split(",")))) if dynamic is not None else None
    if gpu:
        assert emit is not None
        with console.progress("compiling"):
            text = tfir.api.emit_gpu(model, target, emit.value, dtype, quantize, files(calibrate), dims, schedules)
        _write(text, output)
        return
    asked = Request.of(
        COMPILE, model, [output] if output is not None else [], target=target, quantize=quantize, calibrate=calibrate, dtype=dtype,
        schedules=schedules, cache=cache, dynamic=None if dims is None else list(dims), input=input, embed_weights=embed_weights,
    )  # fmt: skip
    keeper = Keeper.of(asked, lock, bom)
    with console.progress("compiling"):
        executable = compiled(keeper.request, threads, partition)
        if emit is not None:
            _write(str(executable.module) if emit is Stage.GRAPH else tfir.api.emit(executable, emit.value), output)
            if output is None:
                return
        else:
            assert output is not None
            save(keeper.request, executable, output)
            keeper.keep(functools.partial(saved, keeper.request, executable, output))
    assert output is not None
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


def _check_stage(emit: Stage | None, target: str, gpu: bool) -> None:
    """``USAGE`` for a stage that the target does not have, ``NOT_BUILT`` for one that none has yet."""
    if emit is None or emit in (GPU if gpu else CPU):
        return
    known = ", ".join(s.value for s in (GPU if gpu else CPU))
    if emit not in CPU + GPU:
        raise console.not_built(f"--emit {emit.value}", f"the stages are {known}")
    raise console.usage(f"'{target}' has no stage {emit.value}", f"its stages are {known}; --target cuda:sm_90 and its like have triton")


def _write(text: str, output: str | None) -> None:
    if output is None:
        print(text)
    else:
        write_text(output, text if text.endswith("\n") else text + "\n")


def _tuned(report: Mapping[str, Any]) -> list[str]:
    """Says so when schedules come from a table: it may be one that nobody named."""
    told = report.get("schedules", {})
    rows = list(told.get("kernels", {}).values())
    count = sum(row["from"] == TABLE for row in rows)
    return [f"schedules: {count} of {len(rows)} from {told['table'] or 'a table'}"] if count else []
