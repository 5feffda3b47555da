"""All files on all probes against the truth, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import result_names
from trustformers_ir.ir.ops.quantized import QuantizeDynamic, QuantizeStatic
from trustformers_ir.ir.probes import Probe, make_probes
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.types import TensorType
from trustformers_ir.tools.agreement.blame import Culprit, blame, strays
from trustformers_ir.tools.agreement.metrics import INFINITE, Distance, distance
from trustformers_ir.tools.agreement.readers import Run, Subject, signature, true_outputs
from trustformers_ir.tools.agreement.tolerance import UNITS, Codes, tolerances
from trustformers_ir.tools.agreement.values import result_ids

SHOWN = 5  # culprits of a file
LEAST_SHARE = 1e-3  # below which an operation is none


@dataclass(frozen=True)
class Difference:
    """How far an output of a file lies from the truth on the probe where that is most by what is allowed."""

    path: str
    by: str
    output: str
    ulp: float
    absolute: float
    relative: float
    kl: float | None
    tolerance: float
    probe: str

    @property
    def holds(self) -> bool:
        return self.relative <= self.tolerance

    @property
    def excess(self) -> float:
        return self.relative / self.tolerance if self.tolerance else INFINITE if self.relative else 0.0


@dataclass(frozen=True)
class Verdict:
    """A file as one program executes it. ``failure``: what that program said when it could not. ``untold``: why no culprit is named, where one was
    looked for. ``quantize``: the recipe of a file that is compared with the source quantized by it, and ``moved`` how far that lies from the source
    itself, by the largest magnitude of an output; ``strays``: operations that are wrong on the file's own operands, looked for where activations are
    quantized."""

    path: str
    kind: str
    by: str
    version: str
    differences: tuple[Difference, ...]
    failure: CompilerError | None = None
    culprits: tuple[Culprit, ...] = ()
    untold: str = ""
    quantize: str = ""
    moved: float | None = None
    strays: tuple[Culprit, ...] = ()

    @property
    def holds(self) -> bool:
        return self.failure is None and not self.strays and all(d.holds for d in self.differences)


@dataclass(frozen=True)
class Agreement:
    """Everything that was found; ``as_dict`` is what ``agreement.json`` holds."""

    source: str
    seed: int
    probes: tuple[Probe, ...] = field(repr=False)
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        return all(v.holds for v in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        files = [
            {"path": v.path, "kind": v.kind, "by": v.by, "version": v.version, "holds": v.holds, "failure": _said(v.failure), "untold": v.untold,
             "culprits": [asdict(c) for c in v.culprits], "quantize": v.quantize or None, "moved": v.moved,
             "strays": [asdict(c) for c in v.strays]}
            for v in self.verdicts
        ]  # fmt: skip
        rows = [asdict(d) | {"holds": d.holds} for v in self.verdicts for d in v.differences]
        probes = [{"name": p.name, "dims": dict(p.dims)} for p in self.probes]
        return {"source": self.source, "holds": self.holds, "seed": self.seed, "probes": probes, "files": files, "differences": rows}


def agreement(
    path: str, source: Module, subjects: Sequence[Subject], seeded: int, seed: int, tolerance: float | None, attribute: bool = True
) -> Agreement:
    """Each subject in each of its ways next to a float64 run of the source, quantized as the subject says that it is. ``tolerance``: instead of what
    dtype and depth give."""
    same_signature(path, source, subjects)
    probes = make_probes(source, seeded, seed)
    runs = [(s, r) for s in subjects for r in s.runs]
    worst: dict[int, dict[int, Difference]] = {n: {} for n in range(len(runs))}
    smallest: dict[int, Probe] = {}
    failures: dict[int, CompilerError] = {}
    moved: dict[int, float] = {}
    for number, probe in enumerate(probes):
        note("probing", number, len(probes))
        true = true_outputs(source, probe.arrays)
        quantized = {id(s.quantized): true_outputs(s.quantized, probe.arrays) for s in subjects if s.quantized is not None}
        for n, (subject, run) in enumerate(runs):
            if subject.quantized is not None:
                moved[n] = max(moved.get(n, 0.0), _moved(source, true, quantized[id(subject.quantized)]))
            if n in failures:
                continue
            try:
                found = _compare(source, subject, run, probe, quantized.get(id(subject.quantized), true), tolerance)
            except CompilerError as error:
                if any(d.code is not Code.CHECK_FAILED for d in error.diagnostics):
                    raise
                failures[n], smallest[n] = error, probe
                continue
            for i, difference in enumerate(found):
                if i not in worst[n] or difference.excess > worst[n][i].excess:
                    worst[n][i] = difference
            if not all(d.holds for d in found) and (n not in smallest or probe.elements < smallest[n].elements):
                smallest[n] = probe
    verdicts = []
    for n, (subject, run) in enumerate(runs):
        graph = source if subject.quantized is None else subject.quantized
        culprits, untold = (_blame(graph, run, smallest[n], tolerance, n in failures) if attribute and n in smallest else ((), ""))
        rows = tuple(worst[n].values())
        wrong = () if tolerance is not None or n in failures else _strays(subject, run, probes[0])
        about = (subject.quantize, moved.get(n), wrong)
        verdicts.append(Verdict(subject.path, subject.kind, run.by, run.version, rows, failures.get(n), culprits, untold, *about))
    return Agreement(path, seed, tuple(probes), tuple(verdicts))


def same_signature(path: str, source: Module, subjects: Sequence[Subject]) -> None:
    """Names and dtypes of the inputs, number and shapes of outputs."""
    problems = Collector()
    wanted = signature(source)
    for subject in subjects:
        if dict(subject.inputs) != wanted:
            message = f"the inputs of '{subject.path}' ({_listed(subject.inputs)}) are not those of '{path}' ({_listed(wanted)})"
            problems.add(Code.INPUT_NAME, message, Where(file=subject.path), "only models with the same inputs can be compared")
        count = len(source.main.outputs)
        if subject.outputs != count:
            message = f"'{subject.path}' has {subject.outputs} outputs, '{path}' has {count}"
            problems.add(Code.INPUT_COUNT, message, Where(file=subject.path), "only models with the same outputs can be compared")
        elif subject.module is not None:
            for name, mine, theirs in zip(result_names(source.main), source.main.outputs, subject.module.main.outputs, strict=True):
                if not _fit(mine.type, theirs.type):
                    message = f"the output '{name}' of '{path}' is {mine.type}, and '{subject.path}' has {theirs.type} there"
                    problems.add(Code.INPUT_SHAPE, message, Where(file=subject.path), "one of the two may have a head that the other has not")
    problems.check()


def _fit(a: TensorType, b: TensorType) -> bool:
    """Whether two outputs can have the same shape."""
    return a.rank == b.rank and all(m == n or not (isinstance(m, int) and isinstance(n, int)) for m, n in zip(a.shape, b.shape, strict=True))


def _listed(inputs: Mapping[str, DType]) -> str:
    return ", ".join(f"{name}: {dtype}" for name, dtype in inputs.items()) or "none"


def _compare(source: Module, subject: Subject, run: Run, probe: Probe, true: list[np.ndarray], tolerance: float | None) -> list[Difference]:
    found = run.compute(probe.arrays)
    names = result_names(source.main)
    allowed = _allowed(source, subject, run, probe) if tolerance is None else [tolerance] * len(names)
    types = [v.type.dtype for v in source.main.outputs]
    wanted = true if run.view is None else run.view(probe.arrays, true)
    shown = [row for row in zip(names, types, allowed, strict=True) if run.shows in (None, row[0])]
    return [
        _difference(subject, run, probe, name, distance(want, have, dtype if run.view is None else DType.f32, "logits" in name), most)
        for want, have, (name, dtype, most) in zip(wanted, found, shown, strict=True)
    ]


def _moved(source: Module, true: list[np.ndarray], quantized: list[np.ndarray]) -> float:
    """How far quantization alone carries the outputs."""
    types = [v.type.dtype for v in source.main.outputs]
    return max((distance(a, b, dtype).relative for a, b, dtype in zip(true, quantized, types, strict=True)), default=0.0)


def _difference(subject: Subject, run: Run, probe: Probe, name: str, away: Distance, allowed: float) -> Difference:
    return Difference(subject.path, run.by, name, away.ulp, away.absolute, away.relative, away.kl, allowed, probe.name)


def _allowed(source: Module, subject: Subject, run: Run, probe: Probe) -> list[float]:
    """What the source allows, or the file's own graph where that rounds more: its dtypes and blocks are what it is asked for."""
    least = max(run.least, 0.0 if subject.module is None else _weights_unit(subject.module))
    least = least if least > _weights_unit(source) else 0.0
    if subject.quantized is not None:
        return tolerances(subject.quantized, probe.dims, least, codes=Codes.SAME_BUT_TIES)
    found = tolerances(source, probe.dims, least)
    if subject.module is None:
        return found
    own = tolerances(subject.module, {name: probe.dims[name] for name in subject.module.facts.symbols if name in probe.dims}, run.least)
    return [max(a, b) for a, b in zip(found, own, strict=True)]


def _strays(subject: Subject, run: Run, probe: Probe) -> tuple[Culprit, ...]:
    """Where a file rounds activations to codes, one that is off by one shifts others, and in deep models outputs drift as far as codes are coarse. So
    there each operation is looked at by itself."""
    graph = subject.quantized
    if graph is None or run.values is None or not any(isinstance(o.op, QuantizeDynamic | QuantizeStatic) for o in graph.main.body):
        return ()
    note("looking at each op")
    known = run.values(graph, probe.arrays)
    return tuple(strays(graph, probe.arrays, known, max(tolerances(graph, probe.dims, run.least, Codes.SAME))))[:SHOWN]


def _weights_unit(module: Module) -> float:
    """The largest unit roundoff of a float weight."""
    return max((UNITS[w.type.dtype] for w in module.weights.values() if w.type.dtype.is_float), default=0.0)


def _blame(source: Module, run: Run, probe: Probe, tolerance: float | None, fails: bool) -> tuple[tuple[Culprit, ...], str]:
    note("looking for the op")
    if run.values is None:
        return (), f"{run.by} shows no values between inputs and outputs"
    graph = canonical(clone_module(source))
    try:
        known = run.values(graph, probe.arrays)
    except CompilerError as error:
        return (), f"its inner values cannot be had: {_said(error)}"
    ours = result_ids(graph)
    if not known:
        return (), "the file does not say which operations its nodes stem from"
    if not all(name in ours for name in known):
        return (), "the file was made from another graph, or by another version: its operations are not those of the source"
    outputs = None if fails else run.compute(probe.arrays)
    allowed = tolerance or min(tolerances(source, probe.dims))
    found = blame(graph, probe.arrays, known, outputs, allowed)
    culprits = tuple(c for c in found if (c.error > allowed if c.share is None else c.share > LEAST_SHARE))[:SHOWN]
    return culprits, "" if culprits else "no operation differs from what its operands make of it: the error lies in what executes the graph"


def _said(error: CompilerError | None) -> str:
    return "" if error is None else "; ".join(d.message for d in error.diagnostics)
