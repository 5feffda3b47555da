"""``tfc ci``: a pipeline file from models to files that are proved to agree, and reports of it (docs/ci.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from trustformers_ir.ir.atomic import check_writable, write_text
from trustformers_ir.ir.diagnostics import CheckFailed, Code, CompilerError, Diagnostic, DiagnosticError, InternalError, Where
from trustformers_ir.passes.options import nearest
from trustformers_ir.tools import console
from trustformers_ir.tools.ci.outcome import Outcome
from trustformers_ir.tools.ci.pipeline import Pipeline, read_pipeline
from trustformers_ir.tools.ci.report_html import as_html
from trustformers_ir.tools.ci.report_json import as_json
from trustformers_ir.tools.ci.report_junit import as_junit
from trustformers_ir.tools.ci.report_text import HEAD, as_markdown, rows
from trustformers_ir.tools.ci.run import Settings, run, update
from trustformers_ir.tools.commands.options import Json

REPORTS = ("report.json", "report.html", "junit.xml")


def ci(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE.yaml", help="Models, formats and gates: docs/ci.md describes it.", show_default=False)],
    update_baseline: Annotated[bool, typer.Option("--update-baseline", help="Store the figures of this run, if everything else holds.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only this model of the pipeline; may be repeated.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FOLDER", help="Instead of the pipeline's output.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What cannot be compared with the baseline does not hold.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read the pipeline, say what it would make, and stop.")] = False,
    summary: Annotated[str | None, typer.Option(metavar="FILE.md", help="Append the result as Markdown: $GITHUB_STEP_SUMMARY.")] = None,
    json: Json = False,
) -> None:
    """Make the files of a pipeline, and check each of them."""
    asked = read_pipeline(pipeline)
    if output is not None:
        asked = replace(asked, output=output)
    chosen = _only(asked, only or [])
    if update_baseline and asked.baseline is None:
        raise console.usage("the pipeline names no baseline", "add baseline: baseline.json to it")
    if check:
        _tell(chosen, json)
        return
    _clear(chosen)
    if update_baseline:
        check_writable(asked.baseline or "")
    if summary is not None:
        _append(summary, "")
    with console.progress("ci"):
        found = run(chosen, Settings(update_baseline, strict), console.say)
    if update_baseline:
        found = update(found, [m.name for m in asked.models if m not in chosen.models])
    _report(found)
    if summary is not None:
        _append(summary, as_markdown(found))
    if json:
        console.print_json(as_json(found))
    else:
        console.print_table(rows(found), HEAD)
        print(f"\n{found.verdict}; see {os.path.join(chosen.output, 'report.html')}")
        if asked.baseline is not None:
            print(f"baseline: {found.baseline}")
    _raise(found)


def _only(pipeline: Pipeline, names: list[str]) -> Pipeline:
    """The pipeline with these models alone; all where none is named."""
    known = [m.name for m in pipeline.models]
    for name in names:
        if name not in known:
            raise console.usage(f"the pipeline has no model '{name}'", nearest(name, known, f"its models are {', '.join(known)}"))
    return replace(pipeline, models=tuple(m for m in pipeline.models if m.name in names)) if names else pipeline


def _tell(pipeline: Pipeline, json: bool) -> None:
    """What would be made."""
    found = [(m.name, pipeline.place(f), ", ".join(f"{k} {v}" for k, v in f.options.items())) for m in pipeline.models for f in m.files]
    if json:
        console.print_json({"pipeline": pipeline.path, "files": [dict(zip(("model", "path", "options"), row, strict=True)) for row in found]})
    else:
        console.print_table(found, ("model", "file", "options"))


def _clear(pipeline: Pipeline) -> None:
    """Makes the folder, and takes away the reports of an earlier run: nobody is to take them for those of this one."""
    folder = Path(pipeline.output)
    with _writing(pipeline.output):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*REPORTS, *(f"{m.name}.agreement.json" for m in pipeline.models)):
            (folder / name).unlink(missing_ok=True)


def _append(path: str, text: str) -> None:
    with _writing(path), Path(path).open("a", encoding="utf-8") as stream:
        stream.write(text)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """What the disk says, as an error that names the place."""
    try:
        yield
    except OSError as error:
        raise CompilerError.of(Code.UNWRITABLE, f"cannot write '{path}': {error.strerror}", Where(file=path)) from error


def _report(found: Outcome) -> None:
    folder = Path(found.pipeline.output)
    for name, content in zip(REPORTS, (console.as_json(as_json(found)), as_html(found), as_junit(found).decode()), strict=True):
        write_text(folder / name, content)


def _raise(found: Outcome) -> None:
    """What is wrong, with the exit code of the worst of it."""
    errors, reds = found.errors, found.reds
    told: list[Diagnostic] = [d for e in errors for d in e.diagnostics] + reds
    kind: type[DiagnosticError] = CheckFailed
    if errors:
        kind = InternalError if any(isinstance(e, InternalError) for e in errors) else CompilerError
    if told:
        raise kind(*told)
