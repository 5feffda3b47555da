"""Models to files of other systems: joins front ends, which know what a model is, and the writers of ``codegen/export/``. Behind ``compiler.py``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.export.gguf.kinds import find_file_type, find_numbers
from trustformers_ir.codegen.export.gguf.write import Written, write_gguf
from trustformers_ir.frontend.gguf.outward import content_of
from trustformers_ir.ir.atomic import check_writable
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.progress import note

GGUF = ".gguf"
LATER = (".mlir",)


def export(model: Any, path: str | os.PathLike[str], quantize: Any, dtype: Any) -> Written:
    """See :func:`trustformers_ir.export`."""
    name = os.fspath(path)
    suffix = Path(name).suffix
    if suffix in LATER:
        raise CompilerError.of(Code.NOT_BUILT, f"exporting to {suffix} is not built yet", help="CHANGELOG.md lists what each version does")
    if suffix != GGUF:
        help = f"the formats are .onnx, .mlpackage, {', '.join((GGUF, *LATER))}"
        raise CompilerError.of(Code.USAGE, f"'{name}' is of no format that can be exported", help=help)
    asked, numbers = find_file_type(quantize), find_numbers(dtype)
    if not isinstance(model, (str, os.PathLike)):
        message = f"{type(model).__name__} cannot be written as a GGUF file"
        raise CompilerError.of(Code.CANNOT_EXPORT, message, help="give a checkpoint folder, random:<model_type>, or a .gguf file")
    check_writable(name)
    if os.path.exists(name) and os.path.exists(model) and os.path.samefile(name, model):
        raise CompilerError.of(Code.USAGE, f"'{name}' is what is read", Where(file=name), "give the output another name")
    note("reading the model")
    return write_gguf(name, content_of(os.fspath(model)), asked, numbers)
