"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face folder, a .gguf, .onnx, .tfir or .tfc file, random:<model_type>[?field=value&…], or module:factory.",
        show_default=False,
    ),
]
Target = Annotated[
    str, typer.Option(metavar="T", help="What to compile for, one of `tfc targets`, or several with commas between: the best that runs is executed.")
]
Quantize = Annotated[str | None, typer.Option(metavar="R", help="A quantization recipe: int8, or int8{activations=static,method=entropy}.")]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Examples for int8{activations=static}: a .npz of arrays or a text per line; give it again for more."),
]
Dtype = Annotated[str | None, typer.Option(metavar="D", help="Compute in this dtype instead of the checkpoint's.")]
Cache = Annotated[
    str | None,
    typer.Option(metavar="C", help="How a language model keeps what it has read: f16, bf16, q8_0, paged, or paged,q8_0 and its like."),
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that execute the model.")]
Schedules = Annotated[
    str | None, typer.Option(metavar="TABLE.json", help="Tuned schedules, as `tfc tune` writes them.", show_default="those of this machine")
]
Lock = Annotated[
    str | None, typer.Option("--lock", metavar="model.lock", help="Write what was read, done and written, by digests, for `tfc rebuild`.")
]
Bom = Annotated[str | None, typer.Option("--bom", metavar="FILE.json", help="Write a bill of materials (CycloneDX 1.6, the model a component).")]
Json = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout, and nothing else there.")]


def files(paths: list[str] | None) -> list[Path] | None:
    """Paths as examples are named in Python."""
    return [Path(p) for p in paths] if paths else None


def check_options_of_artifact(model: str, quantize: str | None, dtype: str | None, cache: str | None = None) -> None:
    """Raises ``USAGE`` when something is asked of an artifact that could only be chosen when it was compiled."""
    asked = [name for name, given in (("--quantize", quantize), ("--dtype", dtype), ("--cache", cache)) if given]
    if asked:
        message = f"'{model}' is compiled already: {', '.join(asked)} cannot be chosen any more"
        raise CompilerError.of(Code.USAGE, message, Where(file=model), "compile the model itself")
