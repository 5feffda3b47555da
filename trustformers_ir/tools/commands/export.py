"""``tfc export``: a model to a file of another system."""

from __future__ import annotations

import time
from typing import Annotated

import typer

import trustformers_ir as tfir
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Json, Model

FORMATS = (".onnx", ".gguf", ".mlpackage", ".mlir")


def export(
    model: Model,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="*.gguf or *.onnx; later *.mlpackage or *.mlir.")],
    quantize: Annotated[
        str | None, typer.Option(metavar="T", help="The type of matrices: f32, f16, bf16, q8_0, q4_0, …, q4_k_m, …, q6_k.", show_default="as stored")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="D", help="The type of matrices that are not quantized: f32, f16 or bf16.")] = None,
    opset: Annotated[int | None, typer.Option(metavar="N", help="The operator set of an ONNX file, 18 to 24.", show_default="20")] = None,
    json: Json = False,
) -> None:
    """Write MODEL for another system."""
    if not output.endswith(FORMATS):
        raise console.usage(f"'{output}' is of no format that can be exported", f"the formats are {', '.join(FORMATS)}")
    started = time.perf_counter()
    with console.progress("exporting"):
        made = tfir.export(model, output, quantize=quantize, dtype=dtype, opset=opset)
    seconds = time.perf_counter() - started
    tensors = ", ".join(f"{count} {kind}" for kind, count in made.kinds.items())
    console.say(f"{output}: {console.quantity(made.bytes)}, tensors: {tensors}, in {seconds:.2f} s")
    if json:
        console.print_json({"model": model, "output": output, "bytes": made.bytes, "tensors": made.kinds, "seconds": seconds})
