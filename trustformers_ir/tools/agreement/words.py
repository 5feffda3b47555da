"""What was found of a file, as problems for people: `tfc verify` and `tfc ci` say the same."""

from __future__ import annotations

from dataclasses import replace

from trustformers_ir.ir.diagnostics import Code, Diagnostic, Where
from trustformers_ir.tools.agreement.compare import Verdict


def problems(v: Verdict, source: str, seed: int, allow: str) -> list[Diagnostic]:
    """Of each output that differs, or of a file that could not be executed. ``allow``: how one says what is allowed."""
    if v.failure is not None:
        return [replace(d, help=advice(v, allow)) if v.culprits else d for d in v.failure.diagnostics]
    out = []
    for d in v.differences:
        if not d.holds:
            how = f", quantized by {v.quantize}" if v.quantize else ""
            message = f"output '{d.output}' of '{v.path}' is {d.relative:.3g} away from that of '{source}'{how}"
            first = v.culprits[0] if v.culprits else None
            where = Where(file=v.path, op=first.operation if first else None)
            out.append(Diagnostic(Code.CHECK_FAILED, message, where, f"{advice(v, allow)}; the worst probe is '{d.probe}' of --seed {seed}"))
    if v.strays and not out:
        first = v.strays[0]
        message = f"'{first.operation}' of '{v.path}' is {first.error:.3g} away from what it is on its own operands"
        out.append(Diagnostic(Code.CHECK_FAILED, message, Where(file=v.path, op=first.operation), f"it comes from {first.source}".rstrip()))
    return out


def advice(v: Verdict, allow: str) -> str:
    """Which op the error comes from, or why none is named."""
    if not v.culprits:
        return f"no op is named: {v.untold}" if v.untold else allow
    first = v.culprits[0]
    if first.share is None:
        return f"the first that is not what it should be is '{first.operation}' {first.source}".rstrip()
    return f"{first.share:.0%} of the error come in at '{first.operation}' {first.source}".rstrip()
