"""``tfc targets``: what this machine can compile for, and what it can execute."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

from trustformers_ir.codegen.llvm import target as cpu
from trustformers_ir.codegen.triton.build import has_triton
from trustformers_ir.codegen.triton.target import INTERPRETER
from trustformers_ir.codegen.triton.target import TARGETS as GPUS
from trustformers_ir.runtime.gpu import devices
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Json


@dataclass(frozen=True)
class Row:
    """One target: whether code can be made for it here, and whether it can be executed here."""

    target: str
    compiles: bool
    executes: bool
    note: str


def targets(json: Json = False) -> None:
    """List what this machine can compile for and execute."""
    rows = _rows()
    if json:
        console.print_json([asdict(r) for r in rows])
    else:
        console.print_table([(r.target, _yes(r.compiles), _yes(r.executes), r.note) for r in rows], ("target", "compile", "execute", ""))


def _rows() -> list[Row]:
    try:
        host = cpu.host()
    except cpu.TargetError as error:
        rows = [Row("cpu", False, False, str(error))]
        have: set[str] = set()
    else:
        have = set(host.features)
        rows = [Row("cpu", True, True, f"this machine: {host.cpu}, {host.triple}")]
    for name in cpu.familiar():
        level = cpu.parse(name)
        missing = sorted(set(level.features) - have)
        executes = not missing and platform.machine().lower() in ("x86_64", "amd64")
        added = [f for f in ("avxvnni", "avx512vnni") if f in level.features]
        rows.append(Row(name, True, executes, " + ".join([level.cpu, *added]) + (f"; lacks {', '.join(missing)}" if missing else "")))
    rows += [_gpu(name) for name in (*GPUS, INTERPRETER.name)]
    return rows + [Row(name, False, False, "not built yet") for name in ("metal", "vulkan")]


def _gpu(name: str) -> Row:
    executes, note = devices.told(name)
    compiles = has_triton()
    return Row(name, compiles, executes, note if compiles else f"texts alone: machine code needs Triton (pip install triton); {note}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
