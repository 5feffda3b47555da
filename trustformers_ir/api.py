"""The one module behind the public functions: it joins frontends, passes, code generation and runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from trustformers_ir.ir import interpreter
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError


def _not_built(what: str) -> NoReturn:
    raise CompilerError.of(Code.NOT_BUILT, f"{what} is not built yet")


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str = "cpu",
    dtype: Any = None,
    quantize: Any = None,
    dynamic: Any = None,
    threads: int | None = None,
    partition: Any = None,
    verify: bool | None = None,
) -> Any:
    """Compile ``model`` for ``target``."""
    _not_built("compile")


def load(path: str, threads: int | None = None) -> Any:
    """Load an artifact."""
    _not_built("load")


def trace(fn: Any, *specs: Any, **named: Any) -> Module:
    """Trace ``fn``."""
    _not_built("trace")


def evaluate(module: Module, *inputs: np.ndarray, **named: Any) -> Any:
    """Run the reference interpreter: slow and obviously right."""
    return interpreter.evaluate(module, *inputs, **named)


def export(model: Any, path: str, **options: Any) -> None:
    """Export to another format."""
    _not_built("export")


def parse(text: str) -> Module:
    """Read a module from its text."""
    _not_built("parse")


def to_module(model: Any) -> Module:
    """The graph of a model, by its frontend alone."""
    _not_built("reading models")


def run_passes(module: Module, pipeline: str) -> Module:
    """Run passes by name."""
    _not_built("running passes")


def list_passes() -> Iterator[str]:
    """One line per pass."""
    return iter(())


def emit(executable: Any, stage: str) -> str:
    """The kernels, LLVM text or assembly of an executable."""
    _not_built("emitting stages")
