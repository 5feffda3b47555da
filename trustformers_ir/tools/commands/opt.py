"""``tfc opt``: passes over the text of a graph."""

from __future__ import annotations

from typing import Annotated

import typer

import trustformers_ir as tfir
from trustformers_ir.ir.atomic import check_writable, write_text
from trustformers_ir.tools import console


def opt(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE.tfir", help="A .tfir file, or anything that `tfc compile` takes.", show_default=False)
    ] = None,
    passes: Annotated[str, typer.Option(metavar="A,B{K=1}", help="The passes to run, in order, with their options.")] = "",
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="OUT.tfir", help="Where to write the text; stdout by default.")] = None,
    list: Annotated[bool, typer.Option("--list", help="List the passes and their options.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Say on stderr what each pass did, and what it did not and why.")] = False,
) -> None:
    """Run passes over FILE and print the result."""
    if list:
        for line in tfir.api.list_passes():
            print(line)
        return
    if file is None:
        raise console.usage("a file is needed", "tfc opt FILE.tfir --passes a,b; --list shows the passes")
    if output is not None:
        check_writable(output)
    module = tfir.api.to_module(file)
    with console.progress("optimising"):
        done = tfir.api.run_passes(module, passes)
    if report:
        console.say(str(done))
    if output is None:
        print(module)
    else:
        write_text(output, str(module).rstrip("\n") + "\n")
