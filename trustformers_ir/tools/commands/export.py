"""``tfc export``: a model to a file of another system."""

from __future__ import annotations

from typing import Annotated

import typer

from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Model, Quantize

FORMATS = (".onnx", ".gguf", ".mlpackage", ".mlir")


def export(
    model: Model,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="*.onnx, *.gguf, *.mlpackage or *.mlir.")],
    quantize: Quantize = None,
) -> None:
    """Write MODEL for another system."""
    if not output.endswith(FORMATS):
        raise console.usage(f"'{output}' is of no format that can be exported", f"the formats are {', '.join(FORMATS)}")
    raise console.not_built(f"exporting to {output[output.rindex('.') :]}")
