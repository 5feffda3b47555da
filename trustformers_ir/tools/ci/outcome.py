"""What came of a pipeline: plain data, from which every report is written."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trustformers_ir.ir.diagnostics import Code, Diagnostic, DiagnosticError, Where
from trustformers_ir.tools.agreement.compare import Difference, Verdict
from trustformers_ir.tools.ci.baseline import Figures
from trustformers_ir.tools.ci.measure import Measured
from trustformers_ir.tools.ci.pipeline import FilePlan, ModelPlan, Pipeline


class State(enum.Enum):
    """Of a gate, a file, a model, a pipeline."""

    HOLDS = "holds"
    OPEN = "not compared"  # of a gate alone: there is nothing to compare with
    FAILS = "fails"
    ERROR = "error"  # it could not be made, read, executed or measured: nothing is known


@dataclass(frozen=True)
class Check:
    """A gate of a file. ``figure``, ``bound``: in bytes or seconds, or relative; ``stored``: that of the baseline, where the gate is about it.
    ``said``: the reason in words, also where it holds. ``where``: the line of the pipeline that sets the bound, or the op that an
    error comes from."""

    gate: str
    key: str
    state: State
    said: str
    figure: float | None = None
    bound: float | None = None
    stored: float | None = None
    where: Where = field(default_factory=Where)
    help: str = ""

    @property
    def name(self) -> str:
        return self.gate if self.gate == "accuracy" and self.key != "grow" else f"{self.gate}.{self.key}"


@dataclass(frozen=True)
class Made:
    """A file that was written: bytes, tensors of each type, and seconds that it took."""

    bytes: int
    tensors: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class FileOutcome:
    """A file. ``stored``: its figures in the baseline. ``error``: why something is not known. ``seconds``: of measuring."""

    plan: FilePlan
    path: str
    made: Made | None = None
    verdicts: tuple[Verdict, ...] = ()
    measured: Measured | None = None
    figures: Figures | None = None
    stored: Figures | None = None
    checks: tuple[Check, ...] = ()
    error: DiagnosticError | None = None
    seconds: float = 0.0

    @property
    def state(self) -> State:
        if self.error is not None:
            return State.ERROR
        return State.FAILS if any(c.state is State.FAILS for c in self.checks) else State.HOLDS

    @property
    def worst(self) -> Difference | None:
        """The output that is furthest from the truth by what is allowed."""
        return max((d for v in self.verdicts for d in v.differences), key=lambda d: d.excess, default=None)

    @property
    def culprit(self) -> str:
        """The op that the error comes from, with its line; empty where none is named."""
        first = next((v.culprits[0] for v in self.verdicts if not v.holds and v.culprits), None)
        return "" if first is None else f"{first.operation} {first.source}".rstrip()


@dataclass(frozen=True)
class ModelOutcome:
    """A model. ``error``: why its source could not be read. ``agreement``: the file with everything that was compared, or empty."""

    plan: ModelPlan
    files: tuple[FileOutcome, ...]
    dims: Mapping[str, int] = field(default_factory=dict)
    agreement: str = ""
    error: DiagnosticError | None = None
    seconds: float = 0.0

    @property
    def state(self) -> State:
        return worst([State.ERROR if self.error is not None else State.HOLDS, *(f.state for f in self.files)])


@dataclass(frozen=True)
class Outcome:
    """The whole run. ``cpu``, ``threads``: what measured. ``baseline``: in words what became of it. ``began``: UTC, ISO 8601."""

    pipeline: Pipeline
    models: tuple[ModelOutcome, ...]
    cpu: str
    threads: int
    baseline: str
    began: str
    seconds: float

    @property
    def state(self) -> State:
        return worst([m.state for m in self.models])

    @property
    def files(self) -> Iterator[tuple[ModelOutcome, FileOutcome]]:
        return ((m, f) for m in self.models for f in m.files)

    @property
    def open(self) -> int:
        """How many comparisons could not be made."""
        return sum(c.state is State.OPEN for _, f in self.files for c in f.checks)

    @property
    def verdict(self) -> str:
        """A sentence."""
        checks = [c for _, f in self.files for c in f.checks]
        red = sum(c.state is State.FAILS for c in checks)
        broken = len(self.errors)
        count = sum(c.state is State.HOLDS for c in checks)
        said = {
            State.HOLDS: f"all {count} gates hold",
            State.FAILS: f"{red} of {red + count} gates {'does' if red == 1 else 'do'} not hold",
            State.ERROR: f"{broken} {'file or model' if broken == 1 else 'files or models'} could not be made, read or executed"
            + (f", and {red} of {red + count} gates {'does' if red == 1 else 'do'} not hold" if red else ""),
        }[self.state]
        return said + (f"; {self.open} could not be compared" if self.open else "")

    @property
    def errors(self) -> list[DiagnosticError]:
        """What kept anything from being known, one for each model or file."""
        return [e for m in self.models for e in (m.error, *(f.error for f in m.files if m.error is None)) if e is not None]

    @property
    def reds(self) -> list[Diagnostic]:
        """Gates that do not hold."""
        red = [(f, c) for _, f in self.files for c in f.checks if c.state is State.FAILS]
        return [Diagnostic(Code.CHECK_FAILED, f"{f.plan.name}, {c.name}: {c.said}", c.where, c.help) for f, c in red]


def worst(states: list[State]) -> State:
    """The one that says most."""
    order = (State.HOLDS, State.OPEN, State.FAILS, State.ERROR)
    return max(states, key=order.index, default=State.HOLDS)
