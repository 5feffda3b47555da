"""The table of the project's bars: what is run for each row, and what is asked of it. ``tfc bench`` without a model prints it.

A row is measured by the function of its kind; it gives one line per bar. What cannot be measured (not built yet, not possible here) is a line
too, with the reason.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.progress import note
from trustformers_ir.tools.bench import compile_time, gemm, identity, memory
from trustformers_ir.tools.bench.bars import Bar, Figure, Line
from trustformers_ir.tools.bench.latency import Entrant, Result, Settings, race
from trustformers_ir.tools.bench.limits import Limits, fma_peak, vnni_peak
from trustformers_ir.tools.bench.models import checkpoint, executable
from trustformers_ir.tools.bench.rivals.job import Job
from trustformers_ir.tools.bench.rivals.table import F32, FREE, INT8

DEPLOYED = ("onnxruntime", "onnxruntime-opt", "openvino", "openvino-throughput")
PRODUCTS: Mapping[str, Callable[[int], float]] = {"f32": fma_peak, "int8": vnni_peak}  # kinds of `gemm.module`, and what bounds them
ORT_INT8 = ("onnxruntime-int8", "onnxruntime-opt-int8")


@dataclass(frozen=True)
class Context:
    """What all rows of one table share. ``rivals`` are the ones that were chosen; a row takes those that do its kind of work."""

    settings: Settings
    limits: Limits
    rivals: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """``measure`` gives the figures of ``bars`` in their order."""

    name: str
    work: str
    bars: tuple[Bar, ...]
    measure: Callable[[Context], Sequence[Figure]]
    quick: bool = False


def measure(row: Row, context: Context) -> list[Line]:
    """The lines of a row. What a measurement cannot do yet is told in the lines."""
    note(row.name)
    try:
        figures = row.measure(context)
    except CompilerError as error:
        figures = [Figure(note=error.diagnostics[0].message)] * len(row.bars)
    return [Line(row.name, row.work, b, f) for b, f in zip(row.bars, figures, strict=True)]


def passes(line: Line, factor: float) -> bool:
    """Whether the figure reaches ``factor`` times the bar (for bars from above: the bar divided by it)."""
    bar, figure = line.bar, line.figure.value
    return figure * factor <= bar.value if bar.at_most else figure >= bar.value * factor


# -- kinds of rows ---------------------------------------------------------------------------------------------------


def _f32(model: str, dims: Mapping[str, int], groups: Sequence[Sequence[str]], context: Context) -> list[Figure]:
    """Their time over ours, against the fastest of each group."""
    result = _race(model, dims, None, [name for name in context.rivals if name in F32], context)
    return [_speed(result, group) for group in groups]


def _int8(model: str, dims: Mapping[str, int], context: Context) -> list[Figure]:
    """The same for int8, and our error against f32 over the smallest of theirs."""
    result = _race(model, dims, "int8", [name for name in context.rivals if name in INT8], context)
    careful = min((e for n in INT8 if (e := result.entrants.get(n)) and not e.failure), key=lambda e: e.rms, default=None)
    everyone = "; ".join(f"{e.name} {e.failure or _error(e)}" for n in INT8 if (e := result.entrants.get(n)))
    ratio = result.ours.rms / careful.rms if careful else math.nan  # NaN where ours did not run
    error = Figure(ratio, _error(result.ours), f"{_error(careful)} {careful.name}" if careful else "", note=result.ours.failure or everyone)
    return [_speed(result, ORT_INT8), _speed(result, INT8), error]


def _race(model: str, dims: Mapping[str, int], quantize: str | None, rivals: Sequence[str], context: Context) -> Result:
    folder = str(checkpoint(model))
    reference = executable(folder, context.settings.threads)
    job = Job(folder, (), (), context.settings.threads, Path(), quantize)
    return race(reference, job, dims, rivals, context.settings, context.limits)


def _speed(result: Result, group: Sequence[str]) -> Figure:
    entrants = [e for n in group if (e := result.entrants.get(n))]
    everyone = "; ".join(f"{e.name} {e.failure or _time(e)}" for e in entrants) or "no rival was chosen"
    best = result.fastest(group)
    shown = f"{_time(best)} {best.name}" if best else ""
    if result.ours.failure:
        return Figure(peer=shown, note=f"{result.ours.failure}; {everyone}")
    return Figure(best.ratio if best else math.nan, _time(result.ours), shown, result.ours.of_limit, everyone)


def _time(e: Entrant) -> str:
    """The median and the best."""
    return "" if e.failure else f"{e.median * 1e3:.2f} ms ({e.best * 1e3:.2f})"


def _error(e: Entrant) -> str:
    return "" if e.failure else f"rms {e.rms:.1e}, max {e.error:.1e}"


def _product(m: int, n: int, k: int, context: Context) -> list[Figure]:
    """The share of one core's limit that a product of that size reaches, f32 and int8; the limit is measured before and after."""
    calls: dict[str, Callable[[], object]] = {}
    failures: dict[str, str] = {}
    for kind in PRODUCTS:
        module, arrays = gemm.module(kind, m, n, k)
        try:
            calls[kind] = functools.partial(tfir.compile(module, threads=1), *arrays)
        except CompilerError as error:
            failures[kind] = error.diagnostics[0].message
    before = [peak(1) for peak in PRODUCTS.values()]
    times = dict(zip(calls, gemm.seconds(list(calls.values())), strict=True))
    figures = []
    for (kind, peak), first in zip(PRODUCTS.items(), before, strict=True):
        limit = max(first, peak(1))
        if kind in failures or not limit:
            figures.append(Figure(note=failures.get(kind, "this machine has no VNNI")))
            continue
        rate, best = (2e-9 * m * n * k / f(times[kind]) for f in (statistics.median, min))
        figures.append(Figure(rate / limit, f"{rate:.0f} GOP/s ({best:.0f})", f"{limit:.0f} GOP/s", rate / limit))
    return figures


def _compile(context: Context) -> list[Figure]:
    """From a checkpoint to the first result, in processes of their own; and what each layer more costs."""
    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as scratch:
        folder, cache = checkpoint("bert-base"), Path(scratch)
        cold = [compile_time.run(folder, cache / str(n)) for n in range(3)]
        warm = [compile_time.run(folder, cache / "0") for _ in range(3)]
    middle = [sorted(runs, key=lambda r: r.seconds["total"])[1] for runs in (cold, warm)]
    told = [", ".join(f"{name} {s:.2f}" for name, s in r.seconds.items() if name != "total") for r in middle]
    return [Figure(r.seconds["total"], f"{r.seconds['total']:.2f} s", note=t) for r, t in zip(middle, told, strict=True)]


def _memory(context: Context) -> list[Figure]:
    folder = str(checkpoint("bert-base"))
    figures = []
    for peak in memory.peaks(folder, context.settings.threads):
        allowed = f"weights {peak.weights / 1e6:.0f} MB + arena {peak.arena / 1e6:.0f} MB"
        figures.append(Figure(peak.excess, f"{peak.highest / 1e6:.0f} MB", allowed))
    return figures


def _identity(context: Context) -> list[Figure]:
    model = str(checkpoint("minilm"))
    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as work:
        found, left_out = identity.hashes(model, Path(work))
    distinct = set(found.values())
    told = "; ".join(f"{target}: {reason}" for target, reason in left_out.items())
    one = Figure(len(distinct), f"{len(found)} ways: {', '.join(sorted(h[:16] for h in distinct))}", note=told)
    result = _race("minilm", {"batch": 1, "seq": 128}, None, [FREE], context)
    ours, free = result.ours, result.entrants[FREE]
    return [one, Figure(1 / free.ratio - 1, _time(ours), f"{_time(free)} {FREE}", ours.of_limit, free.failure)]


# -- the rows --------------------------------------------------------------------------------------------------------


def _encoder(name: str, work: str, model: str, dims: Mapping[str, int], bars: Mapping[tuple[str, ...], Bar], quick: bool = False) -> Row:
    return Row(name, work, tuple(bars.values()), functools.partial(_f32, model, dims, tuple(bars)), quick)


def _best(value: float, floor: float | None) -> dict[tuple[str, ...], Bar]:
    return {F32: Bar("the best", value, floor)}


ROWS: tuple[Row, ...] = (
    _encoder(
        "bert",
        "BERT-base f32, batch 1 seq 128",
        "bert-base",
        {"batch": 1, "seq": 128},
        {**_best(1.2, 1.05), DEPLOYED: Bar("ONNX Runtime and OpenVINO", 1.4, 1.25)},
        quick=True,
    ),
    _encoder("minilm", "MiniLM f32, batch 1 seq 128", "minilm", {"batch": 1, "seq": 128}, _best(1.4, 1.2), quick=True),
    _encoder("minilm-b32", "MiniLM f32, batch 32 seq 128", "minilm", {"batch": 32, "seq": 128}, _best(1.3, 1.15)),
    _encoder("vit", "ViT-B/16 f32, batch 1", "vit-base", {"batch": 1}, _best(1.2, 1.05), quick=True),
    Row(
        "bert-int8",
        "BERT-base int8, batch 1 seq 128",
        (Bar("ONNX Runtime's dynamic int8", 2.0, 1.6), Bar("the best int8", 1.2), Bar("the smallest error against f32", 1.0, at_most=True)),
        functools.partial(_int8, "bert-base", {"batch": 1, "seq": 128}),
        quick=True,
    ),
    *(
        _encoder(f"bert-s{seq}", f"BERT-base f32, batch 1 seq {seq}", "bert-base", {"batch": 1, "seq": seq}, _best(1.0, None))
        for seq in (8, 32, 77, 200, 512)
    ),
    _encoder("bert-b3", "BERT-base f32, batch 3 seq 128", "bert-base", {"batch": 3, "seq": 128}, _best(1.0, None)),
    *(
        Row(
            f"gemm-{m}x{n}x{k}",
            f"product of {m}x{k} and {k}x{n}, one core",
            (Bar("of the FMA limit, f32", 0.85, unit="%"), Bar("of the VNNI limit, int8", 0.6, unit="%")),
            functools.partial(_product, m, n, k),
            quick=m == 128,
        )
        for m, n, k in ((2048, 2048, 2048), (128, 768, 768), (128, 3072, 768))
    ),
    Row(
        "compile",
        "compile BERT-base, checkpoint to first result",
        (Bar("cold", 2.0, unit="s", at_most=True), Bar("warm cache", 0.3, unit="s", at_most=True)),
        _compile,
        quick=True,
    ),
    Row(
        "memory",
        "peak memory of BERT-base over weights and arena",
        (Bar("compile", 150e6, unit="MB", at_most=True), Bar("run", 150e6, unit="MB", at_most=True)),
        _memory,
        quick=True,
    ),
    Row(
        "identity",
        "bit identity of MiniLM over targets, threads, batches",
        (Bar("hash", 1, unit="", at_most=True), Bar("dearer than a free order", 0.05, unit="%", at_most=True)),
        _identity,
        quick=True,
    ),
)

