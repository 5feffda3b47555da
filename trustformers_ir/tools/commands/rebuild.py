"""``tfc rebuild``: what a lock says was built, built again and compared."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from trustformers_ir.ir.diagnostics import CheckFailed, Code, Diagnostic, Where
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Json
from trustformers_ir.tools.locking.lock import read_lock
from trustformers_ir.tools.locking.rebuild import Rebuilt
from trustformers_ir.tools.locking.rebuild import rebuild as build_again


def rebuild(
    lock: Annotated[str, typer.Argument(metavar="model.lock", help="What `tfc compile --lock` or `tfc export --lock` wrote.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Compare only: the outputs on the disk stay as they are.")] = False,
    json: Json = False,
) -> None:
    """Build again what a lock says, and compare every byte."""
    started = time.perf_counter()
    with console.progress("building again"):
        found = build_again(read_lock(lock), lock, in_place=not check)
    for c in found.outputs:
        if c.same:
            console.say(f"{c.name}: the same, sha256 {c.locked}")
    if found.same:
        for line in found.changed:
            console.say(f"although {line}")
    console.say(f"{sum(c.same for c in found.outputs)} of {len(found.outputs)} files are the same, in {time.perf_counter() - started:.2f} s")
    if json:
        console.print_json(found.as_dict())
    where, advice = Where(file=lock), _advice(found)
    problems = [Diagnostic(Code.CHECK_FAILED, _said(c.name, c.locked, c.found), where, advice) for c in found.outputs if not c.same]
    if problems:
        raise CheckFailed(*problems)


def _said(name: str, locked: str | None, found: str | None) -> str:
    if locked is None or found is None:
        return f"'{name}' {'was not made by the locked build' if locked is None else 'is not made any more'}"
    return f"'{name}' has other bytes: sha256 {found}, locked is {locked}"


def _advice(found: Rebuilt) -> str:
    if not found.changed:
        return "inputs, versions and passes are what they were: this is a bug of ours, please report it"
    return f"what changed: {'; '.join(found.changed[:20])}. Build with --lock for a new lock"
