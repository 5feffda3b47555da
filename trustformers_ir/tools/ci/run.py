"""A pipeline from end to end: each model is read, made into files, which are read again, compared, measured and held to gates.

What goes wrong with one file, or one model, is noted and keeps no other from being made and reported.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from trustformers_ir.ir.atomic import write_text
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import CompilerError, DiagnosticError, Where
from trustformers_ir.ir.machine import cpu_model
from trustformers_ir.ir.progress import note
from trustformers_ir.runtime.workers import thread_count
from trustformers_ir.tools import console
from trustformers_ir.tools.agreement.compare import Agreement, Verdict, agreement, same_signature
from trustformers_ir.tools.agreement.readers import Subject, open_subject
from trustformers_ir.tools.bench.models import draw
from trustformers_ir.tools.ci.amounts import time_text
from trustformers_ir.tools.ci.baseline import Baseline, Conditions, Figures, read_baseline
from trustformers_ir.tools.ci.build import Source, make, open_model, sizes
from trustformers_ir.tools.ci.gates import judge
from trustformers_ir.tools.ci.measure import Measured, measure
from trustformers_ir.tools.ci.outcome import Check, FileOutcome, ModelOutcome, Outcome, State
from trustformers_ir.tools.ci.pipeline import GATES, GROW, FilePlan, ModelPlan, Pipeline
from trustformers_ir.tools.cli import explain

TRIES = 3  # processes that measure a file whose latency would be red: a busy machine is no slower model


Told = tuple[Verdict, ...] | DiagnosticError  # what was found of a file, or why nothing was


@dataclass(frozen=True)
class Settings:
    """How a pipeline is run. ``update``: the figures of this run are to become the baseline. ``strict``: what cannot be compared does not hold."""

    update: bool = False
    strict: bool = False


def run(pipeline: Pipeline, settings: Settings, say: Callable[[str], None]) -> Outcome:
    """Makes and checks everything; ``say`` is told of each file. Raises ``CompilerError`` for a baseline that cannot be read."""
    baseline = None if pipeline.baseline is None else read_baseline(pipeline.baseline)
    threads = thread_count(pipeline.threads)
    began, started = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.perf_counter()
    os.makedirs(pipeline.output, exist_ok=True)
    job = _Job(pipeline, settings, baseline, threads, say)
    models = tuple(job.model(m) for m in pipeline.models)
    state = job.state_of_baseline()
    cpu = cpu_model()
    return Outcome(pipeline, models, cpu, threads, state, began, time.perf_counter() - started)


def update(outcome: Outcome, kept: Sequence[str]) -> Outcome:
    """Writes the figures of a run in which everything holds as the baseline; says what became of it. ``kept``: models that were left out of the run,
    whose figures stay."""
    path = outcome.pipeline.baseline
    assert path is not None
    if outcome.state is not State.HOLDS:
        return replace(outcome, baseline=f"{path} stays as it is: only a run in which everything holds becomes the baseline")
    found = {(m.plan.name, f.plan.name): f.figures for m, f in outcome.files if f.figures is not None}
    old = read_baseline(path)
    stay = {key: f for key, f in old.figures.items() if key[0] in kept}
    old.write(stay | found)
    return replace(outcome, baseline=f"{path} holds the figures of this run now")


@dataclass(frozen=True)
class _Job:
    pipeline: Pipeline
    settings: Settings
    baseline: Baseline | None
    threads: int
    say: Callable[[str], None]

    def state_of_baseline(self) -> str:
        if self.baseline is None:
            return "the pipeline names none"
        return f"{self.baseline.path}, {len(self.baseline.figures)} files" if self.baseline.found else f"there is no {self.baseline.path} yet"

    def model(self, plan: ModelPlan) -> ModelOutcome:
        started = time.perf_counter()
        note(f"reading {plan.name}")
        try:
            source = open_model(plan)
            dims = sizes(source.graph, plan, self.pipeline.path)
        except Exception as error:
            failure = self._placed(error, plan.line)
            self.say(f"{plan.name}: it could not be read")
            unmade = tuple(FileOutcome(f, self.pipeline.place(f), error=failure) for f in plan.files)
            return ModelOutcome(plan, unmade, error=failure, seconds=time.perf_counter() - started)
        made = [self._make(source, f) for f in plan.files]
        found, verdicts = self._verify(plan, source.graph, made)
        path = ""
        if found:
            path = f"{plan.name}.agreement.json"
            write_text(Path(self.pipeline.output) / path, console.as_json(_merged(found)))
        files = []
        for outcome, told in zip(made, verdicts, strict=True):
            files.append(self._judged(plan, source.graph, dims, outcome, told))
            self.say(_line(files[-1]))
        return ModelOutcome(plan, tuple(files), dims, path, None, time.perf_counter() - started)

    def _placed(self, error: Exception, line: int) -> DiagnosticError:
        """The problem; where it lies in no file, in this line of the pipeline."""
        failure = explain(error)
        here = Where(file=self.pipeline.path, line=line)
        rows = [d if d.where.file or d.where.line or d.where.request else replace(d, where=replace(d.where, file=here.file, line=here.line))
                for d in failure.diagnostics]  # fmt: skip
        return type(failure)(*rows)

    def _make(self, source: Source, file: FilePlan) -> FileOutcome:
        path = self.pipeline.place(file)
        note(f"making {file.name}")
        try:
            return FileOutcome(file, path, make(source, file, path))
        except Exception as error:
            return FileOutcome(file, path, error=self._placed(error, file.line))

    # -- does it compute the same? ------------------------------------------------------------------------------------------

    def _verify(self, plan: ModelPlan, graph: Module, made: Sequence[FileOutcome]) -> tuple[list[Agreement], list[Told]]:
        """Every file that was made, read again and compared; files for which the same is allowed in one run."""
        told: list[Told] = [() for _ in made]
        groups: dict[float | None, list[tuple[int, Subject]]] = {}
        for n, outcome in enumerate(made):
            if outcome.error is None:
                try:
                    subject = open_subject(outcome.path, graph, False, outcome.plan.by)
                    same_signature(plan.source, graph, [subject])
                except Exception as error:
                    told[n] = self._placed(error, outcome.plan.line)
                else:
                    bound = outcome.plan.gates.get(("accuracy", GATES["accuracy"][0]))
                    groups.setdefault(None if bound is None else bound.value, []).append((n, subject))
        found = []
        for tolerance, members in groups.items():
            found += self._compare(plan, graph, made, members, tolerance, told)
        return found, told

    def _compare(
        self,
        plan: ModelPlan,
        graph: Module,
        made: Sequence[FileOutcome],
        members: Sequence[tuple[int, Subject]],
        tolerance: float | None,
        told: list[Told],
    ) -> list[Agreement]:
        """One run of several files; each by itself where that fails, so that only the one at fault has no verdict."""
        try:
            found = agreement(plan.source, graph, [s for _, s in members], plan.probes, plan.seed, tolerance)
        except Exception as error:
            if len(members) > 1:
                return [a for m in members for a in self._compare(plan, graph, made, [m], tolerance, told)]
            ((n, _),) = members
            told[n] = self._placed(error, made[n].plan.line)
            return []
        for n, subject in members:
            told[n] = tuple(v for v in found.verdicts if v.path == subject.path)
        return [found]

    # -- what does it cost? -------------------------------------------------------------------------------------------------

    def _judged(self, plan: ModelPlan, graph: Module, dims: Mapping[str, int], outcome: FileOutcome, told: Told) -> FileOutcome:
        if outcome.made is None:
            return outcome
        started, size, file = time.perf_counter(), outcome.made.bytes, outcome.plan
        error, verdicts = (told, ()) if isinstance(told, DiagnosticError) else (None, told)
        stored = None if self.baseline is None else self.baseline.figures.get((plan.name, file.name))
        if self.settings.update:  # nothing is compared with what is to be replaced
            file = replace(file, gates={k: b for k, b in file.gates.items() if k[1] != GROW})

        def judged(measured: Measured | None) -> tuple[Figures, list[Check]]:
            figures = _figures(size, verdicts, measured, Conditions.here(self.threads, dims))
            checks = judge(self.pipeline.path, plan, file, verdicts, figures, stored, self._without(file))
            return figures, [replace(c, state=State.FAILS) if c.state is State.OPEN and self.settings.strict else c for c in checks]

        measured = None
        if file.measurable and error is None and all(v.failure is None for v in verdicts):
            note(f"measuring {file.name}")
            try:
                measured = self._measured(outcome.path, draw(graph, dims, 1)[1][0], plan.calls, lambda m: _slow(judged(m)[1]))
            except CompilerError as failure:
                error = failure
        figures, checks = judged(measured)
        return replace(
            outcome, verdicts=verdicts, measured=measured, figures=figures, stored=stored, checks=tuple(checks), error=error,
            seconds=time.perf_counter() - started,
        )  # fmt: skip

    def _measured(self, path: str, arrays: Mapping[str, np.ndarray], calls: int, slow: Callable[[Measured], bool]) -> Measured:
        """The quickest of up to three processes: there is another one only where a gate on latency would not hold."""
        best = measure(path, arrays, self.threads, calls)
        for _ in range(TRIES - 1):
            if slow(best):
                best = min(best, measure(path, arrays, self.threads, calls), key=lambda m: m.median)
        return best

    def _without(self, file: FilePlan) -> str:
        """Why there are no figures to compare those of a file with."""
        if self.baseline is None or not self.baseline.found:
            path = None if self.baseline is None else self.baseline.path
            return f"not compared: there is no baseline {path} yet; `tfc ci --update-baseline` writes it"
        return f"not compared: {self.baseline.path} has no figures of '{file.name}'; `tfc ci --update-baseline` adds them"


def _slow(checks: Sequence[Check]) -> bool:
    return any(c.gate == "latency" and c.state is State.FAILS and c.figure is not None and c.bound is not None for c in checks)


def _figures(size: int, verdicts: Sequence[Verdict], measured: Measured | None, conditions: Conditions) -> Figures:
    errors = [d.relative for v in verdicts for d in v.differences]
    known = bool(errors) and all(v.failure is None for v in verdicts) and max(errors) < math.inf
    error = max(errors) if known else None
    if measured is None:
        return Figures(size, error)
    return Figures(size, error, measured.median, measured.memory, conditions)


def _merged(found: Sequence[Agreement]) -> dict[str, object]:
    """What `tfc verify -o` writes, of runs over the same source with the same probes."""
    first, *others = [a.as_dict() for a in found]
    for more in others:
        first["holds"] = first["holds"] and more["holds"]
        first["files"] += more["files"]
        first["differences"] += more["differences"]
    return first


def _line(file: FileOutcome) -> str:
    """A file in a line, for whoever waits."""
    if file.error is not None:
        return f"{file.plan.name}: {'could not be made' if file.made is None else 'could not be checked'}"
    told = [] if file.made is None else [console.quantity(file.made.bytes)]
    told += [] if file.worst is None else [f"error {file.worst.relative:.3g} of {file.worst.tolerance:.3g}"]
    told += [] if file.measured is None else [f"{time_text(file.measured.median)} a call, {console.quantity(file.measured.memory)} resident"]
    red = [c.name for c in file.checks if c.state is State.FAILS]
    return f"{file.plan.name}: {', '.join(told)}: {'holds' if not red else 'does not hold: ' + ', '.join(red)}"
