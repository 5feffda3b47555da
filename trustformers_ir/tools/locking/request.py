"""What a build was asked for, as a lock keeps it, and doing it: behind ``tfc compile``, ``tfc export`` and ``tfc rebuild``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.codegen.build import find_targets
from trustformers_ir.codegen.export.emitting import PASSES
from trustformers_ir.codegen.export.written import Written
from trustformers_ir.codegen.triton.build import find_gpu
from trustformers_ir.codegen.triton.target import is_gpu
from trustformers_ir.ir import env
from trustformers_ir.ir.abi import TargetInfo
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.digests import tree_files
from trustformers_ir.ir.schedule_table import find_tables
from trustformers_ir.runtime.gpu.devices import resolved
from trustformers_ir.runtime.library import library_name
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools import console
from trustformers_ir.tools.arrays import load_arrays

COMPILE, EXPORT = "compile", "export"
THIS_MACHINE = ("cpu", "host", "cpu:host")
#: the options of each command that decide over bytes, and what their values are
OPTIONS: Mapping[str, Mapping[str, type]] = {
    COMPILE: {
        "target": str, "quantize": str, "calibrate": list, "dtype": str, "schedules": str, "cache": str, "dynamic": list, "input": list,
        "embed_weights": bool,
    },
    EXPORT: {"quantize": str, "calibrate": list, "dtype": str, "opset": int, "cache": str, "capacity": int},
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """``options`` has those of ``OPTIONS`` that were given. Paths are as they were given: relative ones to the working directory."""

    command: str
    model: str
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, command: str, model: str, outputs: Sequence[str], **options: Any) -> Request:
        """Without options that were not given."""
        return cls(command, model, tuple(outputs), {k: v for k, v in options.items() if v is not None and v is not False})

    def option(self, name: str) -> Any:
        """None where it was not given."""
        return self.options.get(name)

    @property
    def targets(self) -> list[str]:
        return [t.strip() for t in str(self.option("target") or "cpu").split(",")]

    def pinned(self) -> Request:
        """The request that says by itself what other files and this machine say: GPUs by their names, the table of schedules that counts. ``USAGE``
        where a lock could not say it."""
        if env.STOP_AFTER.get() is not None:
            raise console.usage("a build with TFIR_STOP_AFTER is not locked: it has a part of its rewrites", "unset TFIR_STOP_AFTER")
        if self.command != COMPILE:
            return self
        target = resolved(str(self.option("target") or "cpu"))
        options: dict[str, Any] = {**self.options, "target": target}
        if "schedules" not in options:
            kinds = [find_gpu(t).chip for t in target.split(",")] if is_gpu(target) else [t.kind for t in find_targets(target)]
            tables = [t for t in find_tables().tables if t.entries and t.target in kinds]
            if len(tables) > 1:
                names = ", ".join(str(t.file) for t in tables)
                raise console.usage(f"several tables of schedules count: {names}", "name one with --schedules, or set TFIR_SCHEDULES=0")
            if tables:
                options["schedules"] = tables[0].file
        return replace(self, options=options)


@dataclass(frozen=True)
class Made:
    """What a build made. ``files``: all that it wrote, folders resolved. ``pipeline``: passes with their options. ``targets``: empty for exports."""

    files: tuple[str, ...]
    pipeline: tuple[str, ...]
    targets: tuple[TargetInfo, ...] = ()


def compiled(request: Request, threads: int | None = None, partition: str | None = None) -> Runnable:
    """The executable of a request to compile, not saved yet."""
    return tfir.compile(
        request.model,
        load_arrays(request.option("input") or []) or None,
        target=request.option("target") or "cpu",
        dtype=request.option("dtype"),
        quantize=request.option("quantize"),
        dynamic=tuple(request.option("dynamic")) if "dynamic" in request.options else None,
        threads=threads,
        partition=partition,
        calibration=[Path(p) for p in request.option("calibrate") or ()] or None,
        schedules=request.option("schedules"),
        cache=request.option("cache"),
        run=False,
    )


def save(request: Request, executable: Runnable, output: str) -> None:
    """Writes the executable."""
    executable.save(output, embed_weights=bool(request.option("embed_weights")))


def saved(request: Request, executable: Runnable, output: str) -> Made:
    """What a lock says of an executable that is written."""
    files = [output]
    if output.endswith(".so"):
        files += [os.path.join(os.path.dirname(output), f"{library_name(output)}.h")]
        files += [] if request.option("embed_weights") else [str(Path(output).with_suffix(".weights"))]
    passes: Any = executable.report()["passes"]
    return Made(tuple(files), tuple(row["text"] for row in passes), tuple(m.manifest.target for m in executable.family))


def export(request: Request, outputs: Sequence[str]) -> list[Written]:
    """Writes the files of a request to export."""
    given = {name: request.option(name) for name in OPTIONS[EXPORT] if name != "calibrate"}
    return tfir.export(request.model, list(outputs), **given, calibration=[Path(p) for p in request.option("calibrate") or ()] or None)


def exported(written: Sequence[Written], outputs: Sequence[str]) -> Made:
    """What a lock says of files that are written."""
    files = [str(p) for w in written for name in w.files for p in tree_files(name)]
    graphs = any(not name.endswith(".gguf") for name in outputs)
    more = dict.fromkeys(text for w in written for text in w.passes)
    return Made(tuple(files), (*(str(p) for p in PASSES), *more) if graphs else ())


def build(request: Request, outputs: Sequence[str]) -> Made:
    """Does what was asked for, anew, into other outputs of the same names: nothing that was kept from earlier builds is used, and no table of
    schedules that the request does not name."""
    schedules = None if "schedules" in request.options else "0"
    with env.replaced({env.CACHE: "0", env.SCHEDULES: schedules, env.STOP_AFTER: None}):
        if request.command == EXPORT:
            return exported(export(request, outputs), outputs)
        executable = compiled(request)
        save(request, executable, outputs[0])
        return saved(request, executable, outputs[0])


def check_machine(request: Request, targets: Sequence[TargetInfo]) -> None:
    """``LOCK_MACHINE`` where the request is for "this machine" and that was another one."""
    for name, locked in zip(request.targets, targets, strict=False):
        if request.command == COMPILE and name in THIS_MACHINE and len(request.targets) == 1:
            here = find_targets(name)[0]
            if (here.triple, here.cpu, here.features) != (locked.triple, locked.cpu, locked.features):
                message = f"the target '{name}' was {locked.cpu} with {len(locked.features)} features, and this machine is {here.cpu}"
                raise CompilerError.of(Code.LOCK_MACHINE, message)
