"""``tfc verify``: do these files compute the same function?

Every file is fed the same made-up inputs. An artifact is executed; a source (a checkpoint, a ``.tfir`` file) is evaluated with the
reference semantics, unless ``--compiled`` asks for it to be compiled first; a Core ML package in numpy. With ``--quantize`` there is one file, and
the question is how far it lies from itself when it is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

import trustformers_ir as tfir
from trustformers_ir.codegen.export.coreml.evaluate import evaluate_package, read_program
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import CheckFailed, Code, Collector, CompilerError, Diagnostic, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names, result_names
from trustformers_ir.ir.probes import draw_dims, draw_inputs, tolerance_of
from trustformers_ir.ir.progress import note
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Calibrate, Json
from trustformers_ir.tools.quantized import error_of, show

PACKAGE = ".mlpackage"


@dataclass(frozen=True)
class Subject:
    """One of the files: its graph and how to compute it."""

    path: str
    module: Module
    compute: Callable[[dict[str, np.ndarray]], Any]


@dataclass(frozen=True)
class Difference:
    """How far one output of one file lies from the first file's, over all probes."""

    path: str
    output: str
    absolute: float
    relative: float
    tolerance: float
    probe: int

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance


def verify(
    files: Annotated[list[str], typer.Argument(metavar="A B…", help="Models and artifacts; all are compared with the first.", show_default=False)],
    probe: Annotated[int, typer.Option(min=1, metavar="N", help="How many inputs to try.")] = 3,
    tolerance: Annotated[float | None, typer.Option(min=0.0, help="Allowed difference, relative to the output's largest magnitude.")] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the inputs.")] = 0,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile sources too, instead of interpreting them.")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="R", help="Compare one model with itself quantized by this recipe.")] = None,
    calibrate: Calibrate = None,
    data: Annotated[list[str] | None, typer.Option(metavar="FILE", help="With --quantize: a .npz, or a text per line, to compare on.")] = None,
    json: Json = False,
) -> None:
    """Check that files compute the same function."""
    if quantize is not None:
        if len(files) != 1 or compiled:
            raise console.usage("--quantize compares one model with itself, compiled", "tfc verify MODEL --quantize int8")
        with console.progress("verifying"):
            report = error_of(files[0], quantize, calibrate, data, probe, seed)
        show(report, files[0], tolerance, json)
        return
    if calibrate or data:
        raise console.usage("--calibrate and --data go with --quantize", "tfc verify MODEL --quantize int8 --data texts.txt")
    if len(files) < 2:
        raise console.usage("verify compares at least two files", "tfc verify A B")
    with console.progress("verifying"):
        subjects: list[Subject] = []
        for path in files:
            subjects.append(_package(path, subjects) if path.endswith(PACKAGE) else _subject(path, compiled))
        _same_signature(subjects)
        differences = _compare(subjects, probe, tolerance, seed)
    if json:
        described = [vars(d) | {"holds": d.holds} for d in differences]
        console.print_json({"holds": all(d.holds for d in differences), "probes": probe, "seed": seed, "differences": described})
    else:
        rows = [(d.path, d.output, f"{d.absolute:.3g}", f"{d.relative:.3g}", f"{d.tolerance:.3g}", _verdict(d)) for d in differences]
        console.print_table(rows, ("file", "output", "max abs", "relative", "allowed", ""))
    failed = [d for d in differences if not d.holds]
    if failed:
        help = f"the worst probe is number {failed[0].probe} of --seed {seed}; --tolerance sets what is allowed"
        messages = [f"output '{d.output}' of '{d.path}' is {d.relative:.3g} away from that of '{files[0]}'" for d in failed]
        raise CheckFailed(*(Diagnostic(Code.CHECK_FAILED, m, Where(file=d.path), help) for m, d in zip(messages, failed, strict=True)))


def _verdict(difference: Difference) -> str:
    return "same" if difference.holds else "DIFFERS"


def _subject(path: str, compiled: bool) -> Subject:
    note(f"reading {path}")
    if path.endswith(".tfc") or compiled:
        executable = tfir.load(path) if path.endswith(".tfc") else tfir.compile(path)
        return Subject(path, executable.module, lambda arrays: executable(**arrays))
    module = tfir.api.to_module(path)
    return Subject(path, module, lambda arrays: tfir.evaluate(module, *(arrays[name] for name in argument_names(module.main))))


def _package(path: str, before: Sequence[Subject]) -> Subject:
    """A Core ML package, which says nothing of a graph: its inputs are those of the first file. Evaluated in numpy; Apple's runtime is not here."""
    if not before:
        raise console.usage(f"'{path}' cannot be the first", "name the model before it: tfc verify MODEL m.mlpackage --tolerance 1e-2")
    read_program(path)
    module = before[0].module

    def compute(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        made = tuple(evaluate_package(path, arrays).values())
        if len(made) != len(module.main.outputs):
            message = f"'{path}' has {len(made)} outputs, and '{before[0].path}' has {len(module.main.outputs)}"
            raise CompilerError.of(Code.INPUT_COUNT, message, Where(file=path), "only models with the same outputs can be compared")
        return tuple(m if o.type.rank else m.reshape(()) for m, o in zip(made, module.main.outputs, strict=True))

    return Subject(path, module, compute)


def _same_signature(subjects: Sequence[Subject]) -> None:
    """Names and dtypes of the inputs, number of outputs."""
    first, *others = subjects
    problems = Collector()
    wanted = _signature(first.module)
    for subject in others:
        found = _signature(subject.module)
        if found != wanted:
            message = f"the inputs of '{subject.path}' ({_listed(found)}) are not those of '{first.path}' ({_listed(wanted)})"
            problems.add(Code.INPUT_NAME, message, Where(file=subject.path), "only models with the same inputs can be compared")
        counts = len(subject.module.main.outputs), len(first.module.main.outputs)
        if counts[0] != counts[1]:
            message = f"'{subject.path}' has {counts[0]} outputs, '{first.path}' has {counts[1]}"
            problems.add(Code.INPUT_COUNT, message, Where(file=subject.path), "only models with the same outputs can be compared")
    problems.check()


def _signature(module: Module) -> dict[str, DType]:
    return {name: a.type.dtype for name, a in zip(argument_names(module.main), module.main.args, strict=True)}


def _listed(signature: dict[str, DType]) -> str:
    return ", ".join(f"{name}: {dtype}" for name, dtype in signature.items()) or "none"


def _compare(subjects: Sequence[Subject], probes: int, tolerance: float | None, seed: int) -> list[Difference]:
    first, *others = subjects
    worst: dict[tuple[str, int], Difference] = {}
    names = result_names(first.module.main)
    for number in range(probes):
        note("probing", number, probes)
        random = np.random.default_rng((seed, number))
        dims = draw_dims(first.module, random, long=number == 1)
        arrays = draw_inputs(first.module, dims, random)
        expected = _tuple(first.compute(arrays))
        for other in others:
            for i, (want, have) in enumerate(zip(expected, _tuple(other.compute(arrays)), strict=True)):
                allowed = tolerance if tolerance is not None else tolerance_of(first.module.main.outputs[i].type.dtype)
                absolute, relative = _distance(want, have)
                found = Difference(other.path, names[i], absolute, relative, allowed, number)
                key = (other.path, i)
                if key not in worst or found.relative > worst[key].relative:
                    worst[key] = found
    return list(worst.values())


def _distance(want: np.ndarray, have: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest magnitude; infinite when NaNs, infinities or shapes differ.

    Integers and bools are compared exactly: any difference is infinite relatively.
    """
    if want.shape != have.shape:
        return float("inf"), float("inf")
    if not want.size:
        return 0.0, 0.0
    if want.dtype.kind in "biu" and want.dtype == have.dtype:
        differ = want != have
        away = max((abs(int(a) - int(b)) for a, b in zip(want[differ], have[differ], strict=True)), default=0)
        return (float(away), float("inf")) if away else (0.0, 0.0)
    kind = np.complex128 if np.iscomplexobj(want) else np.float64
    a, b = want.astype(kind), have.astype(kind)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf"), float("inf")
    absolute = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    largest = float(np.abs(a[finite]).max(initial=0.0))
    return absolute, absolute / largest if largest else absolute


def _tuple(results: Any) -> tuple[np.ndarray, ...]:
    values = results if isinstance(results, tuple | list) else (results,)
    try:
        return tuple(np.asarray(v) for v in values)
    except (TypeError, ValueError) as error:
        raise CompilerError.of(Code.USAGE, f"an output is no array: {error}") from error
