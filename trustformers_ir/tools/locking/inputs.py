"""The files that a build reads."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trustformers_ir.frontend.factory import is_factory
from trustformers_ir.frontend.onnx.reader import external_files
from trustformers_ir.frontend.random_model import PREFIX
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.runtime.identity import GGUF, READ, checkpoint_files, gguf_parts
from trustformers_ir.tools.locking.request import Request

CHECKPOINT = (*READ, ".jinja")  # chat templates go into GGUF files
MODEL, SOURCE, CALIBRATION, SCHEDULES, ARRAY = "model", "source", "calibration", "schedules", "array"


def input_files(request: Request) -> dict[str, str]:
    """Every file that what was asked for can depend on, by its name as it was given, and what it is: the model, the Python source of a factory,
    examples of calibration, tuned schedules, or the array of an input. Of a factory the sources that are imported by now."""
    found = dict.fromkeys(_model_files(request.model), SOURCE if is_factory(request.model) else MODEL)
    for path in request.option("calibrate") or ():
        found.setdefault(path, CALIBRATION)
    for entry in request.option("input") or ():
        found.setdefault(entry.partition("=")[2], ARRAY)
    if request.option("schedules"):
        found.setdefault(request.option("schedules"), SCHEDULES)
    return dict(sorted(found.items()))


def _model_files(model: str) -> list[str]:
    if model.startswith(PREFIX):
        return []
    if is_factory(model):
        return list(_sources(model.partition(":")[0]))
    path = Path(model)
    try:
        if path.is_dir():
            return [os.path.join(model, name) for name in checkpoint_files(path, CHECKPOINT)]
    except OSError as error:
        raise CompilerError.of(Code.UNREADABLE, f"what '{model}' holds cannot be told: {error}", Where(file=model)) from None
    names = [model]
    if path.suffix == GGUF:
        names = [os.path.join(os.path.dirname(model), name) for name in gguf_parts(path.name)]
    elif path.suffix == ".onnx":
        names += [os.path.join(os.path.dirname(model), name) for name in external_files(path)]
    elif path.suffix == ".tfir" and path.with_suffix(".safetensors").is_file():
        names.append(str(path.with_suffix(".safetensors")))
    return names


def _sources(module: str) -> Iterator[str]:
    """The source of a factory's module, and of all that was imported from where that lies: installed packages count by their versions."""
    own = _source(sys.modules.get(module))
    if own is None:
        return
    root = own.parents[module.count(".") + (own.name == "__init__.py")]
    installed = [Path(p) for p in sysconfig.get_paths().values()] + [Path(__file__).resolve().parents[2]]
    for loaded in list(sys.modules.values()):
        path = _source(loaded)
        if path is not None and path.is_relative_to(root) and not any(path.is_relative_to(p) for p in installed):
            yield _shown(path)


def _source(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(os.path.abspath(file)) if isinstance(file, str) and file.endswith(".py") and os.path.isfile(file) else None


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies there."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
