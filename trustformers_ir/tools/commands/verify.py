"""``tfc verify``: do these files compute the same function?

The first file is the source: run in float64 by the reference semantics, it is the truth. Every other file is executed by what executes its kind
(``tools/agreement/readers.py``), on the same probes. With ``--quantize`` there is one file, and the question is how far it lies from itself when it
is quantized.
"""

from __future__ import annotations

from typing import Annotated

import typer

from trustformers_ir.ir.atomic import check_writable, write_text
from trustformers_ir.ir.diagnostics import CheckFailed
from trustformers_ir.tools import console
from trustformers_ir.tools.agreement.compare import Agreement, Difference, agreement
from trustformers_ir.tools.agreement.readers import RUNNERS, open_source, open_subject
from trustformers_ir.tools.agreement.words import problems
from trustformers_ir.tools.commands.options import Calibrate, Json
from trustformers_ir.tools.quantized import error_of, show

HEAD = ("file", "by", "output", "max ulp", "relative", "KL", "allowed", "")
WIDTH = 40


def verify(
    files: Annotated[
        list[str],
        typer.Argument(metavar="A B…", help="The source, then what is to compute the same: model, .tfc, .onnx, .gguf, .mlir.", show_default=False),
    ],
    probe: Annotated[int, typer.Option(min=1, metavar="N", help="How many seeded inputs to try, besides edges and a long one.")] = 3,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Allowed difference, relative to the output's largest magnitude.", show_default="by dtype and depth"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Seed of the inputs.")] = 0,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile sources too, instead of interpreting them.")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="R", help="Compare one model with itself quantized by this recipe.")] = None,
    calibrate: Calibrate = None,
    data: Annotated[list[str] | None, typer.Option(metavar="FILE", help="With --quantize: a .npz, or a text per line, to compare on.")] = None,
    by: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"Execute by this alone: {', '.join(RUNNERS)}; may be repeated.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE.json", help="Write everything that was found.")] = None,
    json: Json = False,
) -> None:
    """Check that files compute the same function."""
    if quantize is not None:
        if len(files) != 1 or compiled:
            raise console.usage("--quantize compares one model with itself, compiled", "tfc verify MODEL --quantize int8")
        with console.progress("verifying"):
            report = error_of(files[0], quantize, calibrate, data, probe, seed)
        show(report, files[0], tolerance, json)
        return
    if calibrate or data:
        raise console.usage("--calibrate and --data go with --quantize", "tfc verify MODEL --quantize int8 --data texts.txt")
    if len(files) < 2:
        raise console.usage("verify compares at least two files", "tfc verify A B")
    for name in by or ():
        if name not in RUNNERS:
            raise console.usage(f"nothing is executed by '{name}'", f"--by takes {', '.join(RUNNERS)}")
    if output is not None:
        check_writable(output)
    with console.progress("verifying"):
        source = open_source(files[0])
        subjects = [open_subject(path, source, compiled, by or ()) for path in files[1:]]
        found = agreement(files[0], source, subjects, probe, seed, tolerance)
    if output is not None:
        write_text(output, console.as_json(found.as_dict()))
    if json:
        console.print_json(found.as_dict())
    else:
        _print(found)
    told = [d for v in found.verdicts for d in problems(v, files[0], seed, "--tolerance sets what is allowed")]
    if told:
        raise CheckFailed(*told)


def _print(found: Agreement) -> None:
    """A row for each output of each file; then, of those that differ, the ops that it comes from."""
    rows: list[tuple[str, ...]] = [_row(d) for v in found.verdicts for d in v.differences]
    rows += [(_short(v.path), v.by, "", "", "", "", "", "FAILS") for v in found.verdicts if v.failure is not None]
    console.print_table(rows, HEAD)
    for path, quantize, moved in dict.fromkeys((v.path, v.quantize, v.moved) for v in found.verdicts):
        if moved is not None:
            print(f"{path} is compared with the source quantized by {quantize}, which lies {moved:.3g} from the source itself")
    for v in found.verdicts:
        if shown := v.culprits or v.strays:
            print(f"\n{v.path} by {v.by}: where the error comes in")
            lines = [(c.operation, f"{c.error:.3g}", "" if c.share is None else f"{c.share:.1%}", c.source) for c in shown]
            console.print_table(lines, ("op", "own error", "share", "source"))


def _row(d: Difference) -> tuple[str, ...]:
    divergence = "" if d.kl is None else f"{d.kl:.2g}"
    verdict = "same" if d.holds else "DIFFERS"
    return _short(d.path), d.by, d.output, f"{d.ulp:.3g}", f"{d.relative:.3g}", divergence, f"{d.tolerance:.3g}", verdict


def _short(path: str) -> str:
    """What a file is called in a column of the table."""
    return path if len(path) <= WIDTH else f"{path[: WIDTH - 1]}…" if path.startswith("random:") else f"…{path[1 - WIDTH :]}"
