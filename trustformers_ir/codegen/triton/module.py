"""A Python file of Triton functions: kernels, and the functions that they call."""

from __future__ import annotations

from collections.abc import Sequence

from trustformers_ir.codegen.triton.emit import Emitted
from trustformers_ir.codegen.triton.optable import functions, functions_in
from trustformers_ir.codegen.triton.target import GpuTarget
from trustformers_ir.codegen.triton.write import function_text
from trustformers_ir.ir.dtypes import DType

HEAD = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


def module_text(kernels: Sequence[Emitted], target: GpuTarget | None = None) -> str:
    """The file with those kernels, as it is for a GPU, or for any."""
    known = functions("") if target is None else functions(target.backend, target.eighths)
    expansions: dict[tuple[str, DType], str] = {}
    todo = [f for k in kernels for f in k.functions]
    while todo:
        key = todo.pop()
        if key not in expansions:
            expansions[key], more = function_text(*key)
            todo += more
    bodies = [*expansions.values(), *(k.text for k in kernels)]
    called: dict[str, None] = {}
    todo_names = [n for body in bodies for n in (*functions_in(body), *_combines(body))]
    while todo_names:
        name = todo_names.pop()
        if name not in called:
            called[name] = None
            todo_names += functions_in(known[name])
    texts = [*(known[name] for name in sorted(called)), *bodies]
    return "\n\n".join([HEAD, *(f"@triton.jit\n{text}\n" for text in texts)])


def _combines(text: str) -> list[str]:
    """Functions that are handed to ``tl.reduce``."""
    return [name for name in ("maximum", "minimum", "product") if f", {name})" in text]
