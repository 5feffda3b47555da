"""Which of the targets that there is code for this machine executes: its CPU by architecture, system and features, its GPU by kind."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from trustformers_ir.ir import machine
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.device import TRIPLES
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where, printable
from trustformers_ir.runtime.gpu import devices
from trustformers_ir.runtime.host import lacking


def check_target(target: TargetInfo, where: Where | None = None) -> None:
    """``ARTIFACT_TARGET`` unless this machine runs code of ``target``: same architecture and system, and every feature is there."""
    problem = _problem(target, where)
    if problem is not None:
        raise problem


def choose_target(targets: Sequence[TargetInfo], wanted: str | None = None, where: Where | None = None) -> int:
    """Which of the targets of a module, best first, is executed here: the first that this machine runs, or the one named ``wanted``.
    ``USAGE`` when there is none of that name; ``ARTIFACT_TARGET``, with what each of them lacks, when none can be executed."""
    if wanted is not None:
        names = [t.name for t in targets]
        if wanted not in names:
            message = f"there is no code for the target '{printable(wanted)}'"
            raise CompilerError.of(Code.USAGE, message, where, f"there is code for {', '.join(map(printable, names))}")
        check_target(targets[names.index(wanted)], where)
        return names.index(wanted)
    problems = [_problem(target, where) for target in targets]
    if None in problems:
        return problems.index(None)
    raise CompilerError(*(d for problem in problems if problem is not None for d in problem.diagnostics))


def _problem(target: TargetInfo, where: Where | None) -> CompilerError | None:
    """Why this machine cannot run code of ``target``; None when it can."""
    if target.triple in TRIPLES:
        return devices.problem(target, where)
    architecture, *rest = target.triple.split("-")
    if architecture != machine.architecture() or platform.system().lower() not in rest:
        message = f"the code is for {target.triple}; this machine is {machine.architecture()}-{platform.system().lower()}"
        return CompilerError.of(Code.ARTIFACT_TARGET, message, where, "compile the model for this machine: tfc compile --target cpu")
    missing = lacking(target.features)
    if not missing:
        return None
    shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    message = f"the code was compiled for {target.name} ({target.cpu}) and needs CPU features that this machine lacks: {shown}"
    help = "compile the model on this machine, or for a smaller target such as --target cpu:avx2"
    return CompilerError.of(Code.ARTIFACT_TARGET, message, where, help)
