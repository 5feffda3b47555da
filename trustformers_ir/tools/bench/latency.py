"""How long one call of a model takes, for us and for rivals, with the same inputs in one contest."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.ops.contract import Linear
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools.bench.contest import Outcome, compete
from trustformers_ir.tools.bench.limits import Limits
from trustformers_ir.tools.bench.models import draw_sets, first_output
from trustformers_ir.tools.bench.rivals.job import Job
from trustformers_ir.tools.bench.rivals.table import EXTRA, OURS, RIVALS

COMPARED, CALIBRATING = 4, 8  # sets of inputs where something is quantized


@dataclass(frozen=True)
class Entrant:
    """One line of a result. Times in seconds, ``memory`` in bytes, ``ratio`` is its median over ours, ``error`` and ``rms`` the largest and the root
    mean square difference of its output from the reference's, ``failure`` why there are none of these."""

    name: str
    median: float = math.nan
    best: float = math.nan
    after_pause: float = math.nan
    calls: int = 0
    build: float = math.nan
    memory: int = 0
    ratio: float = math.nan
    of_limit: float = math.nan
    error: float = math.nan
    rms: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Result:
    """``limit`` is the time that the arithmetic of the call takes at the machine's limit, in seconds."""

    dims: Mapping[str, int]
    flops: float
    limit: float
    entrants: Mapping[str, Entrant]

    @property
    def ours(self) -> Entrant:
        return self.entrants[OURS]

    def fastest(self, names: Sequence[str]) -> Entrant | None:
        """The entrant with the smallest median among ``names``, of those that ran."""
        ran = [e for n in names if (e := self.entrants.get(n)) is not None and not e.failure]
        return min(ran, key=lambda e: e.median, default=None)


@dataclass(frozen=True)
class Settings:
    """How a contest is held: at least ``seconds`` of timed calls each, or ``calls`` of them where that is not 0."""

    threads: int
    seconds: float = 3.0
    calls: int = 0


def race(reference: Runnable, job: Job, dims: Mapping[str, int], rivals: Sequence[str], settings: Settings, limits: Limits) -> Result:
    """Times ``job`` on us and on ``rivals``; ``reference`` (the same model, not quantized) gives the flops and the right output.

    ``job.inputs`` and ``job.work`` are filled in here.
    """
    int8 = job.quantize is not None or any(RIVALS[name].int8 for name in rivals if name in RIVALS)
    count = COMPARED if int8 else 1
    dims, sets = draw_sets(reference, dims, count + (CALIBRATING if int8 else 0))
    expected = [first_output(reference(**inputs)) for inputs in sets[:count]]
    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as work:
        job = replace(job, inputs=sets[:count], calibration=sets[count:], work=Path(work))
        outcomes = compete([OURS, *rivals], job, settings.seconds, settings.calls)
    flops = sum(evaluate(k.flops, dims) for k in reference.manifest.entries[0].kernels)
    products = weight_products(reference.module, dims) if int8 and limits.vnni else 0
    limit = products / (limits.vnni or math.inf) / 1e9 + (flops - products) / limits.fma / 1e9
    ours = outcomes[OURS]
    return Result(dims, flops, limit, {name: _entrant(o, ours, limit, expected) for name, o in outcomes.items()})


def weight_products(module: Module, dims: Mapping[str, int]) -> int:
    """Flops of the products with weights, which int8 speeds up; the rest stays f32."""
    total = 0
    for o in module.walk():
        if isinstance(o.op, Linear):
            types = [v.type if v is not None else None for v in o.operands]
            total += evaluate(o.op.flops(types, [r.type for r in o.results]), dims)
    return total


def _entrant(outcome: Outcome, ours: Outcome, limit: float, expected: Sequence[np.ndarray]) -> Entrant:
    if outcome.failure:
        help = f": {EXTRA}" if outcome.missing else ""
        return Entrant(outcome.name, failure=" ".join(outcome.failure.split()) + help)
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(outcome.outputs, expected, strict=True)]
    return Entrant(
        outcome.name,
        outcome.median,
        outcome.best,
        outcome.after_pause,
        len(outcome.seconds),
        outcome.build,
        outcome.memory,
        outcome.median / ours.median,
        limit / outcome.median,
        max(float(np.abs(a - b).max(initial=0.0)) for a, b in pairs),
        math.sqrt(float(np.mean([np.square(a - b).mean() for a, b in pairs]))),
    )
