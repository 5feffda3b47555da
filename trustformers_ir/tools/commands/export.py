"""``tfc export``: a model to files of other systems."""

from __future__ import annotations

import functools
import time
from dataclasses import asdict
from typing import Annotated

import typer

from trustformers_ir.codegen.export.written import Written
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import Bom, Calibrate, Json, Lock, Model
from trustformers_ir.tools.locking.keeper import Keeper
from trustformers_ir.tools.locking.request import EXPORT, Request, exported
from trustformers_ir.tools.locking.request import export as write


def export(
    model: Model,
    output: Annotated[
        list[str], typer.Option("-o", "--output", metavar="FILE", help="*.gguf, *.onnx, *.mlir or *.mlpackage; may be repeated.", show_default=False)
    ],
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="GGUF: the type of matrices, q8_0, q4_k_m, …; ONNX: a recipe, int8, int4, …; Core ML: int8, int4, palette4.",
            show_default="as stored",
        ),
    ] = None,
    calibrate: Calibrate = None,
    dtype: Annotated[str | None, typer.Option(metavar="D", help="The type of what is not quantized: f32, f16 or bf16; Core ML: f16, f32.")] = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="The operator set of an ONNX file, 18 to 24.", show_default="20, or 21 for weights in blocks")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="C", help="Core ML: a language model that keeps what it has read in states, as f16.", show_default=False)
    ] = None,
    capacity: Annotated[int | None, typer.Option(min=1, metavar="N", help="With --cache: the most tokens of a text.", show_default="2048")] = None,
    lock: Lock = None,
    bom: Bom = None,
    json: Json = False,
) -> None:
    """Write MODEL for other systems."""
    started = time.perf_counter()
    options = {"quantize": quantize, "calibrate": calibrate, "dtype": dtype, "opset": opset, "cache": cache, "capacity": capacity}
    keeper = Keeper.of(Request.of(EXPORT, model, output, **options), lock, bom)
    with console.progress("exporting"):
        made = write(keeper.request, output)
        keeper.keep(functools.partial(exported, made, output))
    seconds = time.perf_counter() - started
    for path, written in zip(output, made, strict=True):
        tensors = ", ".join(f"{count} {kind}" for kind, count in written.kinds.items())
        console.say(f"{path}: {console.quantity(written.bytes)}, tensors: {tensors}" + (f", in {seconds:.2f} s" if len(made) == 1 else ""))
        if written.wide:
            console.say(f"{len(written.wide)} tensors are beyond what f16 holds, and stay in f32:")
            for w in written.wide:
                console.say(f"  {w.name}: {w.largest:.3g}" + (f" ({w.place})" if w.place else ""))
    if len(made) > 1:
        console.say(f"in {seconds:.2f} s")
    if json:
        rows = [_told(path, written) for path, written in zip(output, made, strict=True)]
        console.print_json({"model": model, "seconds": seconds, **(rows[0] if len(rows) == 1 else {"outputs": rows})})


def _told(path: str, written: Written) -> dict[str, object]:
    told: dict[str, object] = {"output": path, "bytes": written.bytes, "tensors": written.kinds}
    if path.endswith(".mlpackage"):
        told["wide"] = [asdict(w) for w in written.wide]
    return told
