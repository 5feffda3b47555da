"""The report as one page for people: a verdict on top, a table for each model, and the reason of every red cell in words.

The page is whole in itself (no script, nothing fetched), every text in it is escaped, and it follows the reader's choice of light or dark. State is
said in words and signs; colours only repeat it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Diagnostic, printable
from trustformers_ir.tools.ci.amounts import change_text, time_text
from trustformers_ir.tools.ci.gates import TEXT
from trustformers_ir.tools.ci.outcome import Check, FileOutcome, ModelOutcome, Outcome, State

SIGNS = {State.HOLDS: ("holds", "✓"), State.OPEN: ("open", "–"), State.FAILS: ("fails", "✗"), State.ERROR: ("fails", "!")}
WORDS = {State.HOLDS: "holds", State.FAILS: "does not hold", State.ERROR: "error"}
TITLES = {State.HOLDS: "Everything holds", State.FAILS: "Not everything holds", State.ERROR: "Something could not be checked"}
#: columns, and how much of the width each takes
HEAD = (("file", 20), ("size", 15), ("largest error / allowed", 25), ("a call (median)", 14), ("resident", 14), ("verdict", 12))
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --dim: #59636e; --page: #fff; --card: #f6f8fa; --line: #d1d9e0; --good: #1a7f37; --bad: #c4232c;
  --bad-back: #ffebe9; --good-back: #dafbe1; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --dim: #9198a1; --page: #0d1117; --card: #151b23; --line: #3d444d; --good: #3fb950;
  --bad: #ff7b72; --bad-back: #3c1618; --good-back: #12261e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 75rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.3rem; margin: 0 0 .8rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; } p { margin: .3rem 0; }
.verdict { border-radius: .5rem; padding: .8rem 1rem; font-size: 1.1rem; border: 1px solid var(--line); }
.verdict b { margin-right: .5rem; } .verdict.holds { background: var(--good-back); } .verdict.fails { background: var(--bad-back); }
.holds b, td.verdict-of.holds { color: var(--good); } .fails b, .bad { color: var(--bad); } .bad { font-weight: 600; }
.dim, small { color: var(--dim); } small { display: block; font-size: .82rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; min-width: 50rem; margin: .6rem 0; }
th { text-align: left; font-weight: 600; color: var(--dim); font-size: .85rem; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { font-variant-numeric: tabular-nums; } td.fails { background: var(--bad-back); }
code { font: .88em ui-monospace, monospace; overflow-wrap: anywhere; } ul { margin: .3rem 0; padding-left: 1.2rem; } li { margin: .35rem 0; }
pre { background: var(--card); padding: .7rem; overflow-x: auto; white-space: pre-wrap; font-size: .82rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; } summary { cursor: pointer; color: var(--dim); }
"""


def as_html(outcome: Outcome) -> str:
    """The page."""
    title = f"tfc ci: {outcome.pipeline.path}"
    css, sign = SIGNS[outcome.state]
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="verdict {css}"><b>{sign} {TITLES[outcome.state]}</b> {_text(outcome.verdict)}.</p>',
        _contents(outcome),
        *(_model(n, m) for n, m in enumerate(outcome.models)),
        "<footer>",
        f'<p class="dim">Accuracy: each file was read again, executed, and compared with a float64 run of its source; errors are relative to the '
        f"largest magnitude of an output. Measured on {_text(outcome.cpu)} with {outcome.threads} thread{'s' * (outcome.threads > 1)}. "
        f"Baseline: {_text(outcome.baseline)}.</p>",
        f'<p class="dim">trustformers_ir {_text(tfir.__version__)}; {_text(outcome.began)}; {_text(time_text(outcome.seconds))}.</p>',
        "</footer>",
    ]
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{view}<title>{_text(title)}</title><style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _text(text: object) -> str:
    return "<br>".join(escape(printable(line)) for line in str(text).split("\n"))


def _contents(outcome: Outcome) -> str:
    """What is red, in a line for each file."""
    rows = []
    for n, m in enumerate(outcome.models):
        if m.error is not None:
            rows.append((n, m.plan.name, "could not be read"))
            continue
        for f in m.files:
            told = [c.name for c in f.checks if c.state is State.FAILS]
            if f.error is not None:
                told.insert(0, f"could not be {_stage(f)}")
            if told:
                rows.append((n, f.plan.name, ", ".join(told)))
    items = [f'<li><a href="#model-{n}"><code>{_text(name)}</code></a>: <b>{_text(what)}</b></li>' for n, name, what in rows]
    return f'<ul class="fails">{"".join(items)}</ul>' if items else ""


def _model(number: int, m: ModelOutcome) -> str:
    """A model: what it is, its files, and what is to be said of them."""
    dims = ", ".join(f"{name} {size}" for name, size in m.dims.items())
    about = f"source <code>{_text(m.plan.source)}</code>; {m.plan.probes} seeded probe{'s' * (m.plan.probes > 1)} (seed {m.plan.seed})"
    about += f"; measured with {_text(dims)}" if dims else ""
    about += f'; all comparisons: <a href="{_text(m.agreement)}">{_text(m.agreement)}</a>' if m.agreement else ""
    parts = [f'<section id="model-{number}"><h2>{_text(m.plan.name)}</h2><p class="dim">{about}</p>']
    if m.error is not None:
        parts.append(f'<p class="bad">It could not be read, so nothing was made of it.</p>{_problems(m.error.diagnostics)}')
        return "\n".join([*parts, "</section>"])
    head = "".join(f'<th style="width: {width}%">{name}</th>' for name, width in HEAD)
    parts.append(f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>')
    parts += [_row(f) for f in m.files]
    parts.append("</tbody></table></div>")
    reds = [_reason(f, c) for f in m.files for c in f.checks if c.state is State.FAILS]
    reds += [_failure(f, f.error.diagnostics) for f in m.files if f.error is not None]
    if reds:
        parts.append(f'<ul class="fails">{"".join(reds)}</ul>')
    opens = [f"<li><code>{_text(f.plan.name)}</code> {c.name}: {_text(c.said)}</li>" for f in m.files for c in f.checks if c.state is State.OPEN]
    if opens:
        parts.append(f"<details><summary>{len(opens)} not compared</summary><ul>{''.join(opens)}</ul></details>")
    return "\n".join([*parts, "</section>"])


def _failure(f: FileOutcome, diagnostics: Sequence[Diagnostic]) -> str:
    return f"<li><code>{_text(f.plan.name)}</code> <b>could not be {_stage(f)}</b>{_problems(diagnostics)}</li>"


def _stage(f: FileOutcome) -> str:
    return "made" if f.made is None else "checked"


def _reason(f: FileOutcome, c: Check) -> str:
    where = f"<small>{_text(c.where)}</small>" if str(c.where) else ""
    return f"<li><code>{_text(f.plan.name)}</code> <b>{c.name}</b>: {_text(c.said)}.{where}</li>"


def _problems(diagnostics: Sequence[Diagnostic]) -> str:
    return "".join(f"<pre>{escape(chr(10).join(map(printable, str(d).split(chr(10)))))}</pre>" for d in diagnostics)


def _row(f: FileOutcome) -> str:
    css, sign = SIGNS[f.state]
    options = ", ".join(f"{k} {_said(v)}" for k, v in f.plan.options.items())
    cells = [
        f"<td><code>{_text(f.plan.name)}</code><small>{_text(f.plan.kind + (f', {options}' if options else ''))}</small></td>",
        _cell(f, "size", None if f.made is None else f.made.bytes),
        _accuracy(f),
        _cell(f, "latency", None if f.measured is None else f.measured.median),
        _cell(f, "memory", None if f.measured is None else f.measured.memory),
        f'<td class="verdict-of {css}">{sign} {WORDS[f.state]}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _of(f: FileOutcome, gate: str) -> tuple[str, str, list[Check]]:
    """The class and the sign of a cell, and its gates."""
    checks = [c for c in f.checks if c.gate == gate]
    red = any(c.state is State.FAILS for c in checks)
    return (' class="fails"', "✗ ", checks) if red else ("", "", checks)


def _cell(f: FileOutcome, gate: str, figure: float | None) -> str:
    """A figure, what it may be, and how it stands to the baseline."""
    css, sign, checks = _of(f, gate)
    if figure is None:
        return f"<td{css}>{sign}–</td>"
    text = TEXT[gate]
    notes = [f"at most {text(c.bound)}" for c in checks if c.key != "grow" and c.bound is not None]
    before = None if f.stored is None else f.stored.of(gate)
    compared = next((c for c in checks if c.key == "grow"), None)
    if compared is not None and compared.state is State.OPEN:
        notes.append("baseline: not compared")
    elif before is not None and (gate == "size" or _alike(f)):
        notes.append(f"baseline: {change_text(figure, before)}")
    return f"<td{css}>{sign}{_text(text(figure))}{''.join(f'<small>{_text(n)}</small>' for n in notes)}</td>"


def _alike(f: FileOutcome) -> bool:
    return f.figures is not None and f.stored is not None and f.figures.measured == f.stored.measured


def _accuracy(f: FileOutcome) -> str:
    css, sign, _ = _of(f, "accuracy")
    worst, failed = f.worst, [v for v in f.verdicts if v.failure is not None]
    notes = [f"by {', '.join(dict.fromkeys(v.by for v in f.verdicts))}"] if f.verdicts else []
    notes += [f"{v.by} cannot execute it" for v in failed]
    notes += [f"error from {f.culprit}"] if f.culprit else []
    said = "–" if worst is None else f"{worst.relative:.3g} / {worst.tolerance:.3g}"
    return f"<td{css}>{sign}{_text(said)}{''.join(f'<small>{_text(n)}</small>' for n in notes)}</td>"
