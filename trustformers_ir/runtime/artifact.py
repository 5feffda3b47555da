"""Saving and loading compiled modules as ``*.tfc`` files. The format is in ``container.py``, its description in ``docs/artifact.md``.

    save(compiled, "model.tfc")
    exe = load("model.tfc")            # checked, mapped, linked; the compiler is not imported
    inspect("model.tfc").manifest      # checked and mapped only: works for code of any machine
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from trustformers_ir.ir import env
from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.device import TRIPLES
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.runtime import container
from trustformers_ir.runtime.container import Artifact
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.memory import Weights
from trustformers_ir.runtime.native import LinkError
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.runtime.targets import choose_target


def save(module: CompiledModule | Runnable, path: str | os.PathLike[str]) -> None:
    """Writes the module, whole or not at all. Equal modules give equal files. ``UNWRITABLE`` when the file cannot be written."""
    if isinstance(module, Runnable):
        module.save(path)
    else:
        container.write([module], path, module.weights)


def inspect(path: str | os.PathLike[str]) -> Artifact:
    """What a file holds, without linking it: manifest, graph, sections, weights by name and by digest. Raises ``CompilerError``."""
    return container.read(path)


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    parse: Callable[..., Any] | None = None,
    check_weights: bool = True,
    target: str | None = None,
) -> Runnable:
    """The executable in a file. Its weights stay in the file and are mapped. Raises ``CompilerError``.

    A file may hold code for several targets: the best that this machine runs is taken, or the one named ``target`` (``TFIR_TARGET`` where
    the file has several). All give the same bits.

    ``check_weights=False`` leaves out the checksums of the weights (half a second per gigabyte), so that only the pages that are used are read.
    A checksum protects against accidents. The code in the file runs with all rights of this process: load files of people you trust.
    """
    artifact = container.read(path)
    chosen = choose(artifact, target)
    if check_weights:
        artifact.check_weights(artifact.variants[chosen])
    return link(artifact, chosen, threads, parse)


def choose(artifact: Artifact, target: str | None = None) -> int:
    """Which of the variants of a file is executed: see :func:`load`. ``USAGE`` or ``ARTIFACT_TARGET``."""
    targets = [v.manifest.target for v in artifact.variants]
    return choose_target(targets, env.TARGET.get() if target is None and len(targets) > 1 else target, Where(file=artifact.path))


def link(artifact: Artifact, chosen: int, threads: int | None = None, parse: Callable[..., Any] | None = None) -> Runnable:
    """The executable of a variant. ``ARTIFACT_CODE`` when its code cannot be linked. ``threads`` is for CPUs."""
    variant = artifact.variants[chosen]
    family = [artifact.compiled(v) for v in artifact.variants]
    where = Where(file=artifact.path, offset=artifact.sections["code"].offset + variant.code.offset)
    if variant.manifest.target.triple in TRIPLES:
        return GpuExecutable(family[chosen], parse=parse, family=family, where=where)
    executable = Executable(family[chosen], threads, parse=parse, weights=Weights(artifact.weights), family=family)
    try:
        executable.prepare()
    except LinkError as error:
        message = f"the object code cannot be used: {error.diagnostics[0].message}"
        raise CompilerError.of(Code.ARTIFACT_CODE, message, where, "compile the model again") from None
    return executable
