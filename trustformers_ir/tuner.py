"""Faster schedules by measuring: the search behind ``tfc tune``.

Kernels are measured where they run: in calls of the whole model, between their neighbours, with the caches as these leave them. (A product that
is called alone finds its weight in L2; in a model of a hundred megabytes it has to fetch it.) Every entry can note the cycle counter around
each kernel, so one call times all kernels of a build at once, and one build carries a candidate for each of them.

* A **heat** builds the model once per candidate and calls the builds in turn, round after round. A candidate's figure is the median over the
  rounds of its time over that of the best so far *in the same round*: a machine that is slower for a second is slower for both. Candidates are
  the neighbours of the best so far: another register tile, another block of rows, another distance of prefetching. Heats go on from what
  they found until nothing is found or the time is up.
* The **final** measures anew, the heuristic's build against that of the winners: the smallest of many medians is small by chance, too. A winner
  replaces the heuristic's choice where its median is at least ``MARGIN`` lower and it was faster in ``MOST`` of the rounds.
* The **proof** calls the model as its users do, with the heuristic and with the table. Unless the table is faster there, nothing is kept.

Weights lie as they lie: all builds share them, and the width of panels is no part of the search (docs/kernels.md says why).

On a GPU it is the same search: its driver stamps events between the kernels, and a kernel for a range of rows that is not launched is left alone.
What Triton refuses, and what spills registers or wants more shared memory than there is, is found by compiling, and not measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trustformers_ir.codegen.lower.schedules import NEAR, MachineShape, misfit, panel_bytes
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.schedule_table import (
    LANES,
    MOST_AHEAD,
    MOST_ATTENTION_ROWS,
    MOST_COLUMNS,
    MOST_ROWS,
    MOST_VECTORS,
    AttentionChoice,
    Choice,
    ScheduleKey,
    ScheduleTable,
    TileChoice,
    TunedEntry,
    most_rows,
    row_choice,
    row_key,
)
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.gpu.executable import GpuExecutable

MARGIN = 0.02  # a choice that is less faster than this is not told from noise
MOST = 0.75  # of the rounds of a final that a winner wins
HEATS, FINAL = 0.6, 0.85  # parts of the budget after which heats, and the final, begin no more rounds
LEAST_ROUNDS, HEAT_ROUNDS, MOST_ROUNDS = 5, 15, 200
BLOCKS = (32, 64, 128, 256, 512)

Build = Callable[[ScheduleTable], Executable | GpuExecutable]
Neighbours = Callable[[ScheduleKey, Choice], list[Choice]]
Inputs = Mapping[str, Any]  # arrays by name
Choices = dict[ScheduleKey, Choice]


@dataclass(frozen=True)
class Finding:
    """What was found for one key: ``calls`` kernels of a call of the model, which take ``seconds`` in all with the heuristic's choice. ``fastest``
    won the heats (the heuristic's choice when nothing did); ``ratio`` is its time over the heuristic's in the final, ``won`` its share of rounds."""

    key: ScheduleKey
    label: str
    calls: int
    seconds: float
    heuristic: Choice
    fastest: Choice
    tried: int
    ratio: float = 1.0
    won: float = 0.0

    @property
    def better(self) -> bool:
        """Whether the heuristic's choice is clearly beaten."""
        return self.fastest != self.heuristic and self.ratio <= 1 - MARGIN and self.won >= MOST


@dataclass(frozen=True)
class Tuned:
    """``table`` holds what is clearly faster, and nothing when the whole call is not. ``before`` and ``after`` are the seconds of one call with the
    heuristic and with the table (medians), ``ratio`` the median of their ratios, round by round."""

    table: ScheduleTable
    findings: tuple[Finding, ...]
    before: float
    after: float
    ratio: float
    builds: int

    @property
    def tried(self) -> tuple[ScheduleKey, ...]:
        return tuple(f.key for f in self.findings)


# --- candidates --------------------------------------------------------------------------------------------------------------------


def neighbours(machine: MachineShape, key: ScheduleKey, choice: Choice) -> list[Choice]:
    """Choices that differ from this one in the register tile, the block of rows or the distance of prefetching, and that the machine can follow."""
    found: list[Choice] = []
    found.extend(_tiles(machine, key, choice) if isinstance(choice, TileChoice) else _attention_tiles(machine))
    return [c for c in dict.fromkeys(found) if c != choice and misfit(machine, key, c) is None]


def _tiles(machine: MachineShape, key: ScheduleKey, choice: TileChoice) -> Iterator[TileChoice]:
    panel = panel_bytes(key, choice.columns) if key.panel and key.k else 0
    widest = MOST_COLUMNS if key.n is None else min(MOST_COLUMNS, -(-key.n // LANES) * LANES)
    for columns in range(LANES, widest + 1, LANES):
        most = min(most_rows(machine.registers, columns // LANES), MOST_ROWS, key.rows or MOST_ROWS)
        ahead = panel_bytes(key, columns) if panel and choice.ahead == panel else choice.ahead  # a panel stays a panel
        for rows in (most, most - 1, most * 3 // 4, most // 2):
            if rows > 0:
                yield TileChoice(rows, columns, choice.block, min(ahead, MOST_AHEAD))
    if panel:
        for ahead in (0, NEAR // 4, NEAR, 4 * NEAR, min(panel, MOST_AHEAD)):
            yield TileChoice(choice.rows, choice.columns, choice.block, ahead)
    for block in BLOCKS:
        if key.rows is None or block < 2 * key.rows:
            yield TileChoice(choice.rows, choice.columns, block, choice.ahead)


def _attention_tiles(machine: MachineShape) -> Iterator[AttentionChoice]:
    for vectors in range(1, MOST_VECTORS + 1):
        most = min(most_rows(machine.registers, vectors), MOST_ATTENTION_ROWS)
        for rows in (most, 8, 6, 4):
            if 0 < rows <= most:
                yield AttentionChoice(vectors, rows)


# --- measuring ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Runner:
    """A build of the model, and which kernels of it belong to which key."""

    executable: Executable | GpuExecutable
    choices: Choices = field(default_factory=dict)
    calls: dict[ScheduleKey, list[int]] = field(default_factory=dict)  # positions of its kernels in the entry

    def __post_init__(self) -> None:
        told = self.executable.compiled.report["schedules"]
        assert isinstance(told, dict)
        keys = {}
        for symbol, row in told["kernels"].items():
            keys[symbol] = row_key(row)
            self.choices[keys[symbol]] = row_choice(row)
        for n, kernel in enumerate(self.executable.manifest.entries[0].kernels):
            if kernel.symbol in keys:
                self.calls.setdefault(keys[kernel.symbol], []).append(n)

    def times(self, inputs: Inputs) -> dict[ScheduleKey, float]:
        """Seconds that the kernels of each key take in one call."""
        rows = self.executable.profile(**inputs).rows
        return {key: sum(rows[n].seconds for n in calls) for key, calls in self.calls.items()}

    def seconds(self, inputs: Inputs) -> float:
        """One call, as its user sees it."""
        started = time.perf_counter()
        self.executable(**inputs)
        return time.perf_counter() - started

    def label(self, key: ScheduleKey) -> str:
        kernels = self.executable.manifest.entries[0].kernels
        return " | ".join(dict.fromkeys(kernels[n].label for n in self.calls[key]))


class _Clock:
    """The budget of a search, in seconds."""

    def __init__(self, budget: float) -> None:
        self.budget, self.started = budget, time.perf_counter()

    @property
    def spent(self) -> float:
        """The part of the budget that is over."""
        return (time.perf_counter() - self.started) / self.budget

    def rounds(self, stage: str, until: float, most: int) -> Iterator[int]:
        """Numbers of rounds until that part of the budget is over, ``LEAST_ROUNDS`` of them at least and ``most`` at most."""
        for n in range(most):
            if n >= LEAST_ROUNDS and self.spent > until:
                return
            note(stage, round(min(self.spent, 1.0) * 100), 100)
            yield n


class Search:
    """One search: for a model that ``build`` compiles with any table, called with ``inputs``, within about ``budget`` seconds. (A few rounds of each
    stage are run in any case.) ``around`` gives the candidates beside a choice; ``usable`` says which of some can be built at all."""

    def __init__(
        self, build: Build, around: Neighbours, kind: str, inputs: Inputs, budget: float, usable: Callable[[Choices], Choices] | None = None
    ) -> None:
        self.build, self.around, self.kind, self.inputs = build, around, kind, inputs
        self.usable = usable or (lambda choices: choices)
        self.builds = 0
        self.base = self.runner({})
        self.clock = _Clock(budget)
        launched = self.base.times(inputs)
        self.heuristic: Choices = {key: choice for key, choice in self.base.choices.items() if launched[key] > 0}
        self.tried: dict[ScheduleKey, set[Choice]] = {key: {choice} for key, choice in self.heuristic.items()}
        self.seconds: dict[ScheduleKey, list[float]] = {key: [] for key in self.heuristic}

    def runner(self, changed: Choices) -> _Runner:
        """The model with these choices and otherwise the heuristic's."""
        self.builds += 1
        runner = _Runner(self.build(ScheduleTable(self.kind, tuple(TunedEntry(key, choice) for key, choice in changed.items()))))
        runner.executable(**self.inputs)
        return runner

    def run(self) -> Tuned:
        """Heats, final and proof."""
        executable = self.base.executable
        dims = executable.profile(**self.inputs).dims
        where = executable.driver.title if isinstance(executable, GpuExecutable) else f"{executable.threads} threads"
        about = ", ".join((executable.manifest.name, *(f"{name} {size}" for name, size in dims.items()), where))
        best: Choices = {}
        while found := self.heat(best):
            best |= found
            if self.clock.spent > HEATS:
                break
        findings = self.final(best)
        entries = tuple(TunedEntry(f.key, f.fastest, f"{f.ratio:.2f} of the time: {about}") for f in findings if f.better)
        table = ScheduleTable(self.kind, entries)
        before, after, ratio = self.proof(table)
        if ratio >= 1.0:
            table = ScheduleTable(self.kind)
        executable.close()
        return Tuned(table, findings, before, after, ratio, self.builds)

    def heat(self, best: Choices) -> Choices:
        """Keys for which a neighbour of the best so far is faster, with the fastest."""
        waiting: dict[ScheduleKey, list[Choice]] = {}
        for key, first in self.heuristic.items():
            near = [c for c in self.around(key, best.get(key, first)) if c not in self.tried[key]]
            if near:
                waiting[key] = near
        if not waiting:
            return {}
        contestants: list[tuple[Choices, _Runner]] = []
        champion = self.runner(best) if best else self.base
        for n in range(max(map(len, waiting.values()))):
            if contestants and self.clock.spent > HEATS / 2 + HEATS / 4 * bool(best):
                break
            note("building candidates", round(min(self.clock.spent, 1.0) * 100), 100)
            fresh = {key: choices[n] for key, choices in waiting.items() if n < len(choices)}
            for key, choice in fresh.items():
                self.tried[key].add(choice)
            entered = self.usable(fresh)
            if entered:
                contestants.append((entered, self.runner(best | entered)))
        ratios: dict[tuple[ScheduleKey, Choice], list[float]] = {}
        for n in self.clock.rounds("measuring candidates", HEATS, HEAT_ROUNDS if contestants else 0):
            reference = champion.times(self.inputs)
            if champion is self.base:
                self.remember(reference)
            turn = n % len(contestants)
            for entered, runner in contestants[turn:] + contestants[:turn]:
                times = runner.times(self.inputs)
                for key, choice in entered.items():
                    ratios.setdefault((key, choice), []).append(_ratio(times[key], reference[key]))
        for runner in [*(r for _, r in contestants), *([champion] if champion is not self.base else [])]:
            runner.executable.close()
        found: Choices = {}
        for (key, choice), seen in sorted(ratios.items(), key=lambda item: -statistics.median(item[1])):
            if statistics.median(seen) <= 1 - MARGIN:
                found[key] = choice  # the last one, which is the fastest, stays
        return found

    def final(self, best: Choices) -> tuple[Finding, ...]:
        """The winners of the heats against the heuristic's choices, measured anew."""
        ratios: dict[ScheduleKey, list[float]] = {key: [] for key in best}
        other = self.runner(best) if best else None
        for n in self.clock.rounds("final", FINAL, MOST_ROUNDS if best else LEAST_ROUNDS):
            later = other.times(self.inputs) if other is not None and n % 2 else None  # who begins a round changes
            reference = self.base.times(self.inputs)
            self.remember(reference)
            if other is not None:
                times = later or other.times(self.inputs)
                for key, seen in ratios.items():
                    seen.append(_ratio(times[key], reference[key]))
        if other is not None:
            other.executable.close()
        findings = []
        for key, first in self.heuristic.items():
            about = (key, self.base.label(key), len(self.base.calls[key]), statistics.median(self.seconds[key]), first, best.get(key, first))
            seen = ratios.get(key, [])
            figures = (statistics.median(seen), sum(r < 1 for r in seen) / len(seen)) if seen else (1.0, 0.0)
            findings.append(Finding(*about, len(self.tried[key]), *figures))
        return tuple(sorted(findings, key=lambda f: -f.seconds))

    def proof(self, table: ScheduleTable) -> tuple[float, float, float]:
        """Seconds of a call with the heuristic and with the table, and their ratio."""
        if not table.entries:
            before = statistics.median(self.base.seconds(self.inputs) for _ in range(LEAST_ROUNDS))
            return before, before, 1.0
        other = self.runner(table.choices)
        pairs = []
        for n in self.clock.rounds("proof", 1.0, MOST_ROUNDS):
            order = (self.base, other) if n % 2 else (other, self.base)
            taken = {id(runner): min(runner.seconds(self.inputs) for _ in range(3)) for runner in order}
            pairs.append((taken[id(self.base)], taken[id(other)]))
        other.executable.close()
        before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
        return before, after, statistics.median(b / a for a, b in pairs)

    def remember(self, times: Mapping[ScheduleKey, float]) -> None:
        for key, seen in self.seconds.items():
            seen.append(times[key])


def _ratio(time: float, reference: float) -> float:
    return time / reference if reference else math.inf

