"""Figures of a file against their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from trustformers_ir.ir.diagnostics import Where
from trustformers_ir.tools.agreement.compare import Verdict
from trustformers_ir.tools.agreement.tolerance import YARDSTICK
from trustformers_ir.tools.agreement.words import problems
from trustformers_ir.tools.ci.amounts import change_text, time_text
from trustformers_ir.tools.ci.baseline import Figures
from trustformers_ir.tools.ci.outcome import Check, State
from trustformers_ir.tools.ci.pipeline import GATES, GROW, Bound, FilePlan, ModelPlan
from trustformers_ir.tools.console import quantity

TEXT: Mapping[str, Callable[[float], str]] = {
    "accuracy": lambda x: f"{x:.3g}", "size": quantity, "latency": time_text, "memory": quantity,
}  # fmt: skip
NAMES = {"accuracy": "the largest error", "size": "the size", "latency": "the median of a call", "memory": "resident memory"}
SAID = {"accuracy": "accuracy.relative sets what is allowed"}


def judge(
    pipeline: str, model: ModelPlan, file: FilePlan, verdicts: Sequence[Verdict], figures: Figures, stored: Figures | None, without: str
) -> list[Check]:
    """Every gate of a file of which these figures are known. ``without``: why there is nothing stored, where there is not."""
    found: list[Check] = []
    for gate, (key, _) in GATES.items():
        if gate in ("latency", "memory") and not file.measurable:
            continue
        where = {k: Where(file=pipeline, line=b.line) for (g, k), b in file.gates.items() if g == gate}
        bounds = {k: b for (g, k), b in file.gates.items() if g == gate and math.isfinite(b.value)}
        figure = figures.of(gate)
        if gate == "accuracy":
            if verdicts:
                found.append(_accuracy(model, key, verdicts, figure, bounds.get(key)))
        elif key in bounds:
            found.append(_most(gate, key, file, figure, bounds[key], where[key]))
        if GROW in bounds:
            found.append(_growth(gate, file, figures, stored, bounds[GROW], where[GROW], without))
    return found


def _accuracy(model: ModelPlan, key: str, verdicts: Sequence[Verdict], figure: float | None, bound: Bound | None) -> Check:
    """Of all outputs by all that execute the file: the worst is told, with the op that its error comes from."""
    rows = [d for v in verdicts for d in v.differences]
    worst = max(rows, key=lambda d: d.excess, default=None)
    limit = None if worst is None else worst.tolerance
    reds = [d for v in verdicts for d in problems(v, model.source, model.seed, SAID["accuracy"])]
    if reds:
        said = "; ".join(dict.fromkeys(f"{d.message}{_by(v)}" for v in verdicts for d in problems(v, model.source, model.seed, "")))
        allowed = "" if limit is None else f"; allowed is {limit:.3g}"
        return Check("accuracy", key, State.FAILS, f"{said}{allowed}. {reds[0].help}", figure, limit, None, reds[0].where, _help("accuracy"))
    assert worst is not None
    by = ", ".join(dict.fromkeys(v.by for v in verdicts))
    rule = "said in the pipeline" if bound is not None else "what dtype and depth allow"
    return Check("accuracy", key, State.HOLDS, f"at most {worst.relative:.3g} of {limit:.3g} ({rule}), by {by}", figure, limit)


def _by(v: Verdict) -> str:
    return "" if v.failure is not None else f" by {v.by}"


def _most(gate: str, key: str, file: FilePlan, figure: float | None, bound: Bound, where: Where) -> Check:
    text = TEXT[gate]
    if figure is None:
        return Check(gate, key, State.OPEN, f"{NAMES[gate]} is not known", None, bound.value, None, where)
    holds = figure <= bound.value
    said = f"{NAMES[gate]} is {text(figure)}, {'at most' if holds else 'more than'} {text(bound.value)}"
    return Check(gate, key, State.HOLDS if holds else State.FAILS, said, figure, bound.value, None, where, "" if holds else _help(gate))


def _growth(gate: str, file: FilePlan, figures: Figures, stored: Figures | None, bound: Bound, where: Where, without: str) -> Check:
    figure, before, text = figures.of(gate), None if stored is None else stored.of(gate), TEXT[gate]
    if figure is None:
        return Check(gate, GROW, State.OPEN, f"{NAMES[gate]} is not known", None, None, before, where)
    if stored is None or before is None:
        said = without if stored is None else f"the baseline has no such figure of '{file.name}'"
        return Check(gate, GROW, State.OPEN, said, figure, None, None, where)
    if gate in ("latency", "memory"):
        here, there = figures.measured, stored.measured
        unlike = "the baseline does not say where it was measured" if here is None or there is None else here.unlike(there)
        if unlike:
            return Check(gate, GROW, State.OPEN, f"not compared with the baseline: {unlike}", figure, None, before, where)
    limit = before * (1 + bound.value)
    limit = max(limit, YARDSTICK) if gate == "accuracy" else limit
    holds = figure <= limit
    change = change_text(figure, before)
    most = f"{'at most' if holds else 'more than'} +{bound.value * 100:.4g}%"
    said = f"{NAMES[gate]} is {text(figure)}, {change} from {text(before)} of the baseline; {most}"
    help = "" if holds else f"{_help(gate)}; where that is meant, `tfc ci --update-baseline` stores it"
    return Check(gate, GROW, State.HOLDS if holds else State.FAILS, said, figure, limit, before, where, help)


def _help(gate: str) -> str:
    return {
        "accuracy": f"`tfc verify` shows every output and op; {SAID['accuracy']}, by: what executes the file",
        "size": "`tfc inspect` shows what the file holds",
        "latency": "`tfc run --profile` shows where the time goes",
        "memory": "`tfc inspect` shows weights and arena",
    }[gate]
