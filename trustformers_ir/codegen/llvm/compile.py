"""LLVM text to an object file's bytes.

The text is already in the shape that optimisation leaves behind (loops bottom-tested, values in registers), so a short pipeline does.
"""

from __future__ import annotations

from typing import Any

from trustformers_ir.codegen.llvm.target import Target, binding
from trustformers_ir.ir.mapped import give_back


class LLVMError(RuntimeError):
    """LLVM refused the text: a defect of the emitter, so the text is kept for the report."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


def parse(text: str, target: Target) -> Any:
    """A verified LLVM module."""
    llvm = binding()
    header = f'target triple = "{target.triple}"\n'
    try:
        module = llvm.parse_assembly(header + text)
        module.verify()
    except RuntimeError as error:
        raise LLVMError(str(error), text) from error
    return module


def optimise(module: Any, machine: Any, level: int = 1) -> None:
    """Runs the pass pipeline in place."""
    llvm = binding()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_interleaving = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)


def compile_object(text: str, target: Target, *, level: int = 1) -> bytes:
    """The relocatable object (ELF) of a module's text. The same text and target give the same bytes."""
    machine = target.machine()
    module = parse(text, target)
    optimise(module, machine, level)
    code = bytes(machine.emit_object(module))
    del module, machine
    give_back()
    return code


def compile_assembly(text: str, target: Target, *, level: int = 1) -> str:
    """The assembly of a module's text, for reading."""
    machine = target.machine()
    module = parse(text, target)
    optimise(module, machine, level)
    return str(machine.emit_assembly(module))
