"""``tfc bench``: how long one call takes, against peers and against the machine's limit. Without a model: the table of all bars.

``tools/bench/contest.py`` says how contestants take turns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trustformers_ir.codegen.triton.target import is_gpu
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.tools import console
from trustformers_ir.tools.bench import limits, table
from trustformers_ir.tools.bench.bars import HEAD, WIDEST, Figure, Line
from trustformers_ir.tools.bench.device import measure
from trustformers_ir.tools.bench.latency import Entrant, Result, Settings, race
from trustformers_ir.tools.bench.models import draw_sets, executable
from trustformers_ir.tools.bench.rivals.job import Job
from trustformers_ir.tools.bench.rivals.table import F32, INT8, OURS, RIVALS
from trustformers_ir.tools.commands.options import Dtype, Json, Quantize, Target, Threads, check_options_of_artifact

LATER = ("llama.cpp",)
GROUPS = {"f32": F32, "int8": INT8, "all": tuple(RIVALS)}

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="What to time, as `tfc compile` takes it. Without it: the table of all bars.", show_default=False),
]


def bench(
    model: Model = None,
    batch: Annotated[int, typer.Option(min=1, metavar="B", help="The dim called batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, metavar="S", help="The dim called seq.")] = 128,
    threads: Threads = None,
    repeat: Annotated[int | None, typer.Option(min=1, metavar="N", help="Time N calls of each.", show_default="for --seconds")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, metavar="S", help="Time calls of each for so long.")] = 3.0,
    against: Annotated[
        str | None, typer.Option(metavar="A,B", help=f"Compare with {', '.join((*RIVALS, *LATER))}; or {', '.join(GROUPS)} of them.")
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="R", help="Exit with 1 unless ours is R times as fast as every rival. Of the table: as every bar times R."),
    ] = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B", help="Rows of the table, without MODEL; `list` names them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few rows of the table, without slow compilers.")] = False,
    target: Target = "cpu",
    quantize: Quantize = None,
    dtype: Dtype = None,
    json: Json = False,
) -> None:
    """Time MODEL."""
    rivals = _rivals(against)
    if model is None:
        asked = (("--quantize", quantize), ("--dtype", dtype), ("--target", target != "cpu"), ("--repeat", repeat))
        given = [name for name, is_given in asked if is_given]
        if given:
            raise console.usage(f"{', '.join(given)} belongs to a MODEL, and none is named", "name one, or leave the option out")
        _table(rows, quick, rivals, Settings(threads or 2, seconds), gate, json)
        return
    if rows or quick:
        raise console.usage("--rows and --quick are for the table of all bars, which is shown without MODEL", "leave out one of them")
    if rivals and not Path(model).is_dir():
        raise console.usage(f"rivals run checkpoint folders, and '{model}' is none", "leave out --against")
    if model.endswith(".tfc"):
        check_options_of_artifact(model, quantize, dtype)
    if is_gpu(target):
        if rivals or gate is not None:
            raise console.not_built("comparing with rivals on a GPU", "the scripts in tools/bench/gpu do")
        _on_gpu(model, target, {"batch": batch, "seq": seq}, quantize, dtype, seconds, repeat or 0, json)
        return
    with console.progress("benchmark"):
        started = time.perf_counter()
        reference = executable(model, threads, target, dtype)
        compiled = time.perf_counter() - started
        measured = limits.measure(reference.threads)
        job = Job(model, (), (), reference.threads, Path(), quantize, dtype, target)
        result = race(reference, job, {"batch": batch, "seq": seq}, rivals, Settings(reference.threads, seconds, repeat or 0), measured)
    if result.ours.failure:
        raise console.usage(f"'{model}' could not be timed: {result.ours.failure}", "`tfc run` shows more")
    _show(model, target, compiled, result, measured, json)
    if gate is not None:
        slow = [e for e in result.entrants.values() if e.name != OURS and not e.ratio >= gate]
        for e in slow:
            console.say(f"gate: {e.name} {'did not run' if e.failure else f'takes {e.ratio:.2f} times our time'}, the bar is {gate:g}")
        if slow:
            raise typer.Exit(1)


def _on_gpu(
    model: str, target: str, dims: Mapping[str, int], quantize: str | None, dtype: str | None, seconds: float, calls: int, json: bool
) -> None:
    """Times calls on a GPU; says so where there is none."""
    with console.progress("benchmark"):
        started = time.perf_counter()
        exe = executable(model, None, target, dtype, quantize)
        if not isinstance(exe, GpuExecutable):
            raise console.usage(f"'{model}' has no code for a GPU", "tfc compile MODEL -o m.tfc --target cuda:sm_90")
        exe.prepare()
        compiled = time.perf_counter() - started
        dims, (inputs,) = draw_sets(exe, dims, 1)
        times = measure(exe, inputs, seconds, calls)
    row = {"model": model, "target": exe.manifest.target.name, "device": times.device, "compile_s": compiled, "dims": dict(dims)}
    row |= {"calls": len(times.seconds), "median_ms": times.median * 1e3, "best_ms": min(times.seconds) * 1e3, "resident": times.resident}
    if json:
        console.print_json(row)
    else:
        console.print_fields({name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()})


def _rivals(against: str | None) -> list[str]:
    """The names in ``--against``, groups spelled out."""
    names: list[str] = []
    for name in filter(None, (part.strip() for part in (against or "").split(","))):
        if name in LATER:
            raise console.not_built(f"comparing with {name}")
        if name not in RIVALS and name not in GROUPS:
            raise console.usage(f"nothing is known of '{name}'", f"--against takes {', '.join((*RIVALS, *GROUPS))}")
        names += [n for n in GROUPS.get(name, (name,)) if n not in names]
    return names


def _show(model: str, target: str, compiled: float, result: Result, measured: limits.Limits, json: bool) -> None:
    entrants = list(result.entrants.values())
    if json:
        told = {
            "model": model,
            "target": target,
            "compile_s": compiled,
            "dims": dict(result.dims),
            "threads": measured.threads,
            "calls": result.ours.calls,
            "gflop": result.flops / 1e9,
            "limits": asdict(measured),
            "limit_ms": result.limit * 1e3,
        }
        console.print_json(told | {"results": [_data(e) for e in entrants]})
        return
    shown = ", ".join(f"{name} {value}" for name, value in result.dims.items())
    print(f"{model}: {shown}; {measured.threads} threads; {result.flops / 1e9:.3g} GFLOP; {_limits(measured)}; compiled in {compiled:.2f} s")
    head = ("", "median ms", "best ms", "after a pause", "time ratio", "of limit", "max abs difference", "rms", "ready after s", "peak MB")
    console.print_table([_cells(e) for e in entrants if not e.failure], head)
    for e in entrants:
        if e.failure:
            print(f"{e.name}: {e.failure}")


def _limits(measured: limits.Limits) -> str:
    return f"limits: FMA {measured.fma:.0f} GFLOP/s, VNNI {measured.vnni:.0f} GOP/s, memory {measured.memory:.0f} GB/s"


def _data(e: Entrant) -> dict[str, object]:
    return {
        "name": e.name,
        "median_ms": e.median * 1e3,
        "best_ms": e.best * 1e3,
        "after_pause_ms": e.after_pause * 1e3,
        "calls": e.calls,
        "ratio": e.ratio,
        "of_peak": e.of_limit,
        "max_abs_difference": e.error,
        "rms_difference": e.rms,
        "build_s": e.build,
        "peak_bytes": e.memory,
        "failure": e.failure or None,
    }


def _cells(e: Entrant) -> tuple[str, ...]:
    times = tuple(f"{t * 1e3:.2f}" for t in (e.median, e.best, e.after_pause))
    return (e.name, *times, f"{e.ratio:.2f}", f"{e.of_limit:.0%}", f"{e.error:.1e}", f"{e.rms:.1e}", f"{e.build:.1f}", f"{e.memory / 1e6:.0f}")


def _printed(rows: Sequence[table.Row], context: table.Context) -> list[Line]:
    """The lines of the rows, each printed when it is measured."""
    widths = console.widths_of([HEAD, WIDEST, *(Line(row.name, row.work, bar, Figure()).cells for row in rows for bar in row.bars)])
    console.print_row(HEAD, widths)
    lines: list[Line] = []
    for row in rows:
        for line in table.measure(row, context):
            console.print_row(line.cells, widths)
            lines.append(line)
    return lines


def _table(chosen: str | None, quick: bool, rivals: Sequence[str], settings: Settings, gate: float | None, json: bool) -> None:
    if chosen == "list":
        console.print_table([(row.name, row.work, "quick" if row.quick else "") for row in table.ROWS])
        return
    names = [name.strip() for name in chosen.split(",")] if chosen else [row.name for row in table.ROWS if row.quick or not quick]
    unknown = [name for name in names if name not in {row.name for row in table.ROWS}]
    if unknown:
        raise console.usage(f"the table has no row '{unknown[0]}'", "`tfc bench --rows list` names them")
    rows = [row for row in table.ROWS if row.name in names]
    lines: list[Line] = []
    with console.progress("benchmark"):
        chosen_rivals = rivals or [n for n, r in RIVALS.items() if not (quick and r.slow)]
        context = table.Context(settings, limits.measure(settings.threads), tuple(chosen_rivals))
        if json:
            for row in rows:
                lines += table.measure(row, context)
            console.print_json({"threads": settings.threads, "limits": asdict(context.limits), "rows": [line.data for line in lines]})
        else:
            print(f"{settings.threads} threads; {_limits(context.limits)}")
            lines += _printed(rows, context)
    for line in lines if not json else ():
        if line.figure.note:
            print(f"{line.work}, {line.bar.against}: {line.figure.note}")
    short = [line for line in lines if gate is not None and not table.passes(line, gate)]
    for line in short:
        figure = line.bar.show(line.figure.value) or "no figure"
        console.say(f"gate: {line.work}: {line.verdict.value}, {figure}, the bar is {line.bar.text} {line.bar.against}")
    if short:
        raise typer.Exit(1)


