"""The report for a terminal, and as Markdown for the summary that CI services show of a run."""

from __future__ import annotations

from trustformers_ir.ir.diagnostics import printable
from trustformers_ir.tools.ci.amounts import time_text
from trustformers_ir.tools.ci.outcome import FileOutcome, Outcome, State
from trustformers_ir.tools.console import quantity

HEAD = ("model", "file", "size", "error", "allowed", "a call", "resident", "")


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row for each file, as ``HEAD`` says."""
    return [(printable(m.plan.name), *_row(f)) for m, f in outcome.files]


def _row(f: FileOutcome) -> tuple[str, ...]:
    worst, measured = f.worst, f.measured
    red = ", ".join(c.name for c in f.checks if c.state is State.FAILS)
    state = {State.HOLDS: "holds", State.FAILS: f"DOES NOT HOLD: {red}", State.ERROR: "ERROR"}[f.state]
    return (
        printable(f.plan.name),
        "" if f.made is None else quantity(f.made.bytes),
        "" if worst is None else f"{worst.relative:.3g}",
        "" if worst is None else f"{worst.tolerance:.3g}",
        "" if measured is None else time_text(measured.median),
        "" if measured is None else quantity(measured.memory),
        state,
    )


def as_markdown(outcome: Outcome) -> str:
    """A table, and the reasons of what does not hold."""
    table = [HEAD, ("---",) * len(HEAD), *rows(outcome)]
    lines = [f"### tfc ci: {_plain(outcome.pipeline.path)}", "", f"**{_plain(outcome.verdict)}**", ""]
    lines += ["| " + " | ".join(_plain(c) for c in row) + " |" for row in table]
    reasons = [f"* {_plain(d.message)}" for d in (*outcome.reds, *(d for e in outcome.errors for d in e.diagnostics))]
    return "\n".join([*lines, "", *reasons]) + "\n"


def _plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    shown = printable(text.replace("\n", "; ")).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#~$@" else c for c in shown)
