"""Everything that came of a pipeline, as plain data. What depends on the time is in ``written_at``, ``seconds``, ``measured``, and in figures
and gates of latency and memory; the rest is the same each time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import DiagnosticError
from trustformers_ir.tools.ci.outcome import Check, FileOutcome, ModelOutcome, Outcome

VERSION = 1


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The report: models, their files, gates of each with figure, bound and reason."""
    return {
        "version": VERSION, "tfc": tfir.__version__, "pipeline": outcome.pipeline.path, "state": outcome.state.value, "verdict": outcome.verdict,
        "written_at": outcome.began, "seconds": round(outcome.seconds, 3), "machine": {"cpu": outcome.cpu, "threads": outcome.threads},
        "baseline": outcome.baseline, "models": [_model(m) for m in outcome.models],
    }  # fmt: skip


def _model(m: ModelOutcome) -> dict[str, Any]:
    return {
        "name": m.plan.name, "source": m.plan.source, "line": m.plan.line, "state": m.state.value, "probes": m.plan.probes, "seed": m.plan.seed,
        "dims": dict(m.dims), "agreement": m.agreement or None, "seconds": round(m.seconds, 3), "errors": _errors(m.error),
        "files": [_file(f) for f in m.files],
    }  # fmt: skip


def _file(f: FileOutcome) -> dict[str, Any]:
    worst = f.worst
    return {
        "name": f.plan.name, "path": f.path, "format": f.plan.kind, "options": {k: _plain(v) for k, v in sorted(f.plan.options.items())},
        "line": f.plan.line, "state": f.state.value, "seconds": round(f.seconds + (f.made.seconds if f.made else 0.0), 3),
        "tensors": None if f.made is None else dict(f.made.tensors), "figures": None if f.figures is None else asdict(f.figures),
        "stored": None if f.stored is None else asdict(f.stored), "measured": None if f.measured is None else asdict(f.measured),
        "worst": None if worst is None else asdict(worst), "culprit": f.culprit or None, "checks": [_check(c) for c in f.checks],
        "errors": _errors(f.error),
    }  # fmt: skip


def _check(c: Check) -> dict[str, Any]:
    place = str(c.where)
    return {
        "name": c.name, "state": c.state.value, "figure": c.figure, "bound": c.bound, "stored": c.stored, "said": c.said, "where": place or None,
        "help": c.help or None,
    }  # fmt: skip


def _plain(value: object) -> object:
    return [str(v) for v in value] if isinstance(value, list) else value


def _errors(error: DiagnosticError | None) -> list[dict[str, object]]:
    return [] if error is None else [d.as_dict() for d in error.diagnostics]
