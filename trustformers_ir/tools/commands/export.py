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
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="*.gguf, *.onnx or *.mlpackage; later *.mlir.")],
    quantize: Annotated[
        str | None, typer.Option(metavar="T", help="The type of matrices: f32, f16, bf16, q8_0, …, q4_k_m, …; or int8.", show_default="as stored")
    ] = None,
    dtype: Annotated[str | None, typer.Option(metavar="D", help="The type of what is not quantized: f32, f16 or bf16; Core ML: f16, f32.")] = None,
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
    wide = [{"name": w.name, "largest": w.largest, "place": w.place} for w in made.wide]
    if wide:
        console.say(f"{len(wide)} tensors are beyond what f16 holds, and stay in f32:")
        for w in wide:
            console.say(f"  {w['name']}: {w['largest']:.3g}" + (f" ({w['place']})" if w["place"] else ""))
    if json:
        found = {"model": model, "output": output, "bytes": made.bytes, "tensors": made.kinds, "seconds": seconds}
        console.print_json(found | ({"wide": wide} if output.endswith(".mlpackage") else {}))
