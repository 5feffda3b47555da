"""``tfc tune``: schedules that are faster than the heuristic's, for a model on this machine, its CPU or its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

import trustformers_ir as tfir
from trustformers_ir.codegen.build import find_target
from trustformers_ir.codegen.triton.build import find_gpu
from trustformers_ir.codegen.triton.target import is_gpu
from trustformers_ir.ir.atomic import check_writable
from trustformers_ir.ir.schedule_table import ScheduleTable, default_place, read_table
from trustformers_ir.runtime.gpu.devices import resolved
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.models import draw
from trustformers_ir.tools.commands.options import Calibrate, Dtype, Json, Model, Quantize, Target, Threads, files
from trustformers_ir.tuner import Finding, Tuned

HEAD = ("kernel", "rows x n x k", "calls", "ms", "heuristic", "fastest", "of its time", "tried", "")


def tune(
    model: Model,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="TABLE.json", help="Where to write the table.", show_default="beside the compile cache")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="B", help="The dim called batch.")] = 1,
    seq: Annotated[int, typer.Option(min=1, metavar="S", help="The dim called seq.")] = 128,
    budget: Annotated[float, typer.Option(min=0.01, metavar="S", help="About how many seconds to search.")] = 60.0,
    target: Target = "cpu",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    dtype: Dtype = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Find faster schedules for MODEL on this machine."""
    if output is not None:
        check_writable(output)
    before = _known(target) if output is None else None
    with console.progress("tuning"):
        dims, (inputs,) = draw(tfir.api.to_module(model), {"batch": batch, "seq": seq}, 1)
        found = tfir.tune(
            model, inputs, target=target, quantize=quantize, dtype=dtype, threads=threads, calibration=files(calibrate), budget=budget
        )
    table = found.table if before is None else before.updated(found.tried, found.table.entries)
    place = output or str(default_place(table.target))
    if output is None and table != before:
        default_place(table.target).parent.mkdir(parents=True, exist_ok=True)
    if output is not None or table != before:
        table.save(place)
    if json:
        console.print_json(_data(model, place, dims, found))
    else:
        console.print_table([_cells(f) for f in found.findings], HEAD)
        console.say(_summary(found))
        console.say(f"{place}: {len(table.entries)} entries for {table.target}")


def _known(target: str) -> ScheduleTable:
    """What was found for this target before."""
    kind = find_gpu(resolved(target)).chip if is_gpu(target) else find_target(target).kind
    place = default_place(kind)
    return read_table(place) if place.exists() else ScheduleTable(kind)


def _summary(found: Tuned) -> str:
    figures = f"{found.before * 1e3:.2f} ms before, {found.after * 1e3:.2f} ms after, median ratio {found.ratio:.3f}"
    if found.table.entries:
        return f"{len(found.table.entries)} of {len(found.findings)} schedules are clearly faster; one call: {figures}"
    if any(f.better for f in found.findings):
        return f"some kernels are faster, the whole call is not ({figures}): nothing is kept"
    return f"nothing is clearly faster than the heuristic ({found.before * 1e3:.2f} ms a call)"


def _size(value: int | None) -> str:
    return "?" if value is None else str(value)


def _cells(f: Finding) -> tuple[str, ...]:
    key = f.key
    changed = f.fastest != f.heuristic
    return (
        f.label if len(f.label) <= 40 else f"{f.label[:39]}…",
        " x ".join(map(_size, (key.rows, key.n, key.k))),
        str(f.calls),
        f"{f.seconds * 1e3:.3f}",
        str(f.heuristic),
        str(f.fastest) if changed else "the same",
        f"{f.ratio:.2f}" if changed else "",
        str(f.tried),
        "better" if f.better else "within noise" if changed else "",
    )


def _data(model: str, place: str, dims: Mapping[str, int], found: Tuned) -> dict[str, object]:
    rows = [
        {
            "kernel": f.label,
            **{name: value for name, value in asdict(f.key).items() if name != "dtype"},
            "dtype": f.key.dtype.name,
            "calls": f.calls,
            "ms": f.seconds * 1e3,
            "heuristic": asdict(f.heuristic),
            "fastest": asdict(f.fastest),
            "ratio": f.ratio,
            "won": f.won,
            "tried": f.tried,
            "better": f.better,
        }
        for f in found.findings
    ]
    about = {"model": model, "table": place, "target": found.table.target, "dims": dict(dims), "builds": found.builds}
    return about | {"before_ms": found.before * 1e3, "after_ms": found.after * 1e3, "ratio": found.ratio, "kernels": rows}
