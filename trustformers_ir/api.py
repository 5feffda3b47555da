"""The public functions. Loading and running an artifact imports the runtime alone; everything else goes through ``compiler.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.keeping import package_identity
from trustformers_ir.ir.schedule_table import find_tables
from trustformers_ir.runtime import artifact
from trustformers_ir.runtime import cache as kept
from trustformers_ir.runtime.gpu import devices
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.runtime.workers import thread_count

if TYPE_CHECKING:
    from trustformers_ir.codegen.export.written import Written
    from trustformers_ir.ir.core import Module
    from trustformers_ir.passes.int8_error import ErrorReport
    from trustformers_ir.passes.manager import Report
    from trustformers_ir.tuner import Tuned


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
    calibration: Any = None,
    schedules: Any = None,
    cache: str | None = None,
    run: bool = True,
) -> Runnable:
    """Compile ``model`` to native code for ``target``, a CPU or a GPU.

    ``model`` is a checkpoint folder, a ``.gguf``, ``.tfir`` or ``.tfc`` file, ``random:<model_type>[?field=value]``, a module, a module of torch or a
    program that torch exported, ``package.module:factory`` that makes one, or a function over symbolic tensors. ``example_inputs`` are the arguments
    of a function to trace or of a module of torch, or a dict of them by name: tensor types (``f32["n", 4]``), arrays, tensors; for other models,
    arrays that give the size of the dims that are not ``dynamic``. ``target`` is ``cpu`` (this machine), ``cuda`` (its
    GPU), one that ``tfc targets`` lists, or several with commas between: then there is code for each, and the best that a machine runs is executed.
    Code for a GPU that is not here can be saved. ``dtype`` is what a checkpoint computes in (f32, but for the 8-bit activations that products by
    weights in blocks take on CPUs where no dtype is given). ``quantize`` is a recipe: ``"int8"``, ``"int8{activations=static}"`` with the examples
    of ``calibration``, or an ``Int8`` (docs/quantization.md). ``dynamic`` names the dims that stay symbolic; None keeps all
    (of a module of torch: batches and sequences; docs/torch.md). ``threads``: None takes
    ``TFIR_THREADS`` or the CPUs of this process. ``verify`` runs the verifier after every pass; None asks ``TFIR_VERIFY``. ``schedules`` is a table
    of tuned schedules or its path, as ``tfc tune`` writes it; None asks ``TFIR_SCHEDULES``. ``cache`` is how a language model keeps the keys
    and values of what it has read: ``"f32"``, ``"f16"``, ``"bf16"`` or ``"q8_0"`` (8-bit codes), ``"paged"`` (texts share a pool of pages), or
    ``"paged,q8_0"``; None: as it computes them, each text by itself. ``run=False``: the executable will be saved, so memory is
    not filled with its weights before somebody calls it. What a checkpoint folder was compiled to, unless that rests on examples, is kept, and used
    when nothing that it depends on has changed (``TFIR_CACHE``; ``report()["cache"]`` says so). Raises ``CompilerError`` with everything that is
    wrong with the request.
    """
    if partition is not None:
        raise CompilerError.of(Code.NOT_BUILT, "partition is not built yet", help="CHANGELOG.md lists what each version does")
    thread_count(threads)  # what is wrong with it is said now, and is no fault of an entry of the cache
    target = devices.resolved(target) if isinstance(target, str) else target
    recipe = quantize if quantize is None or isinstance(quantize, str) else f"{type(quantize).__name__}: {quantize!r}"
    tables = find_tables(schedules)
    asked = {"target": target, "dtype": None if dtype is None else str(dtype), "dynamic": dynamic, "quantize": recipe}
    asked |= {} if cache is None else {"cache": cache}
    asked |= {} if tables.identity is None else {"schedules": tables.identity}
    asked |= {"triton": package_identity("triton")} if isinstance(target, str) and ":" in target and not target.startswith("cpu") else {}
    examples = calibration if calibration is not None else getattr(quantize, "calibration", None)
    slot = kept.slot(model, asked) if example_inputs is None and examples is None else None
    found = slot.load(threads, _parse) if slot is not None else None
    if found is not None:
        return found

    from trustformers_ir import compiler

    request = compiler.Request.of(target, dtype, dynamic, verify, quantize, calibration, tables, cache)
    made = compiler.compile_model(model, example_inputs, request, threads, run)
    if slot is not None:
        slot.store(made)
    return made


def quantization_error(
    model: Any,
    examples: Any,
    quantize: Any = "int8",
    *,
    example_inputs: Any = None,
    dynamic: Any = None,
    threads: int | None = None,
    calibration: Any = None,
) -> ErrorReport:
    """How far ``model`` quantized lies from ``model`` in f32 on ``examples``, product by product, the worst first.

    ``examples`` are texts, dicts of arrays, or paths of ``.npz`` and text files, one of them or a list; the other arguments are those of
    :func:`compile`. Each product is compared on the same activation, and on what the quantized model feeds it. Raises ``CompilerError``.
    """
    from trustformers_ir import compiler

    request = compiler.Request.of("cpu", None, dynamic, None, quantize, calibration)
    return compiler.quantization_error(model, examples, example_inputs, request, threads)


def tune(
    model: Any,
    inputs: Mapping[str, np.ndarray],
    *,
    target: str = "cpu",
    dtype: Any = None,
    quantize: Any = None,
    dynamic: Any = None,
    threads: int | None = None,
    calibration: Any = None,
    budget: float = 60.0,
) -> Tuned:
    """Find schedules that are faster than the heuristic's for ``model`` on this machine, by measuring calls with ``inputs`` (arrays by name).

    ``.table`` of the result has those that are clearly faster, and ``compile(…, schedules=table)`` uses it; ``.table.save(path)`` writes it. On
    CPUs no schedule changes a bit of a result. ``budget`` is about how many seconds the search takes; the other arguments are those of
    :func:`compile`. Raises ``CompilerError``, also where this machine cannot execute the target.
    """
    thread_count(threads)
    if not (isinstance(budget, (int, float)) and 0 < budget < float("inf")):
        raise CompilerError.of(Code.USAGE, f"the budget is {budget!r}", help="give a number of seconds")

    from trustformers_ir import compiler

    request = compiler.Request.of(target, dtype, dynamic, None, quantize, calibration)
    return compiler.tune(model, inputs, request, threads, budget)


def load(path: str, threads: int | None = None, target: str | None = None) -> Runnable:
    """The executable in a ``.tfc`` file, its weights mapped. Raises ``CompilerError`` when the file is broken or made for another machine.
    ``target`` names the code to execute where the file has some for several targets; None: ``TFIR_TARGET``, or the best that runs here."""
    return artifact.load(path, threads, parse=_parse, target=target)


def trace(fn: Any, *specs: Any, **named: Any) -> Module:
    """The module of a function over symbolic tensors: ``trace(lambda x: x + 1, f32["n"])``. Errors point at the user's own line."""
    from trustformers_ir import reader

    return reader.trace(fn, *specs, **named)


def evaluate(module: Module, *inputs: np.ndarray, **named: Any) -> Any:
    """Run the reference interpreter: slow and obviously right."""
    from trustformers_ir.ir import interpreter

    return interpreter.evaluate(module, *inputs, **named)


@overload
def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    quantize: Any = ...,
    dtype: Any = ...,
    example_inputs: Any = ...,
    opset: int | None = ...,
    cache: str | None = ...,
    capacity: int | None = ...,
    calibration: Any = ...,
) -> Written: ...
@overload
def export(
    model: Any,
    path: Sequence[str | os.PathLike[str]],
    *,
    quantize: Any = ...,
    dtype: Any = ...,
    example_inputs: Any = ...,
    opset: int | None = ...,
    cache: str | None = ...,
    capacity: int | None = ...,
    calibration: Any = ...,
) -> list[Written]: ...
def export(
    model: Any,
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    quantize: Any = None,
    dtype: Any = None,
    example_inputs: Any = None,
    opset: int | None = None,
    cache: str | None = None,
    capacity: int | None = None,
    calibration: Any = None,
) -> Written | list[Written]:
    """Write ``model`` to ``path`` for another system, which the ending of ``path`` names: ``.gguf``, for llama.cpp, ``.onnx``, ``.mlir`` or
    ``.mlpackage``. Or to several paths: each takes those of the options that say something of its kind; a file that cannot be written keeps no other
    from being written, and ``CompilerError`` has the problems of all.

    ONNX: ``model`` is anything that :func:`compile` takes, with its ``example_inputs``; ``opset`` is the operator set, 18 to 24 (20; 21 for weights
    in blocks). All dims that are dynamic stay so. Weights of more than a gigabyte lie in ``path.data`` beside it. ``quantize`` is a recipe as
    :func:`compile` takes it, ``int8``, ``q8_0``, ``q4_0``, ``int4``, ``f16`` or ``bf16``, or an object of one, with its ``calibration``. Raises
    ``CompilerError`` with all ops that have no form there (docs/onnx_export.md).

    Core ML packages: ``model`` as for ONNX; ``dtype`` is what floats are computed in, ``f16`` (if not said) or ``f32``; ``quantize`` None, or weights
    of matrices as ``int8``, ``int4`` in blocks of 32, or ``palette4``, 16 numbers by k-means. Dims that are dynamic stay so. In f16, tensors that
    overflow on seeded inputs stay in f32 and are in ``wide`` of what is returned, by name. ``cache="f16"``: a language model that reads on, keys and
    values of up to ``capacity`` tokens (2048, or as many as it has positions for) in states: ``input_ids[1, piece]`` and ``start[1]``, how many were
    read before, to ``logits[1, vocab]`` of the token after them (docs/coreml.md).

    StableHLO: ``model`` as for ONNX; all dims that are dynamic stay so. Weights are in the text (docs/stablehlo.md).

    GGUF: ``model`` is a checkpoint folder or a ``random:<model_type>`` of a family that GGUF has an architecture for, or a ``.gguf`` file.
    ``quantize`` is the type of matrices: ``f32``, ``f16``, ``bf16``, ``q8_0``, ``q4_0``, …, ``q4_k_m``, …; None leaves them as they are stored.
    ``dtype``, ``f32``, ``f16`` or ``bf16``, is the type of matrices that are not quantized. What was written is returned: tensors of each type, and
    bytes. The file is there whole or not at all. Raises ``CompilerError`` with everything that such a file cannot say of the model (docs/gguf.md).
    """
    from trustformers_ir import exporter

    options = exporter.Options(quantize, dtype, example_inputs, opset, calibration, cache, capacity)
    if isinstance(path, (str, os.PathLike)):
        return exporter.export(model, [path], options)[0]
    return exporter.export(model, path, options)


def parse(text: str) -> Module:
    """The module of a text, as ``str(module)`` prints it. Weights are known by their digests only."""
    from trustformers_ir.ir.text import parse_module

    return parse_module(text)


def _parse(text: str, resolve: Any) -> Module:
    from trustformers_ir.ir.text import parse_module

    return parse_module(text, resolve=resolve)


def to_module(model: Any) -> Module:
    """The graph of anything that :func:`compile` takes, before any pass."""
    from trustformers_ir import reader

    return reader.to_module(*reader.opened(model))


def run_passes(module: Module, pipeline: str) -> Report:
    """Run passes by name, ``"canonicalize,fuse{max_ops=8}"``, or those of a target, ``"cpu"``; changes the module. Says what each pass did."""
    from trustformers_ir import compiler

    return compiler.run_passes(module, pipeline)


def list_passes() -> Iterator[str]:
    """One line per pass: name, options and what it does."""
    from trustformers_ir import compiler

    return compiler.list_passes()


def emit_gpu(
    model: Any,
    target: str,
    stage: str,
    dtype: Any = None,
    quantize: Any = None,
    calibration: Any = None,
    dynamic: Any = None,
    schedules: Any = None,
) -> str:
    """The text of a stage for a GPU, which need not be here: ``"graph"``, ``"kernels"``, ``"triton"``, ``"ptx"`` or ``"amdgcn"``."""
    from trustformers_ir import compiler

    request = compiler.Request.of(devices.resolved(target), dtype, dynamic, None, quantize, calibration, find_tables(schedules))
    return compiler.emit_gpu(model, request, stage)


def emit(executable: Runnable, stage: str) -> str:
    """The text of a stage of an executable: ``"kernels"``, ``"llvm"`` or ``"asm"``."""
    from trustformers_ir import compiler

    return compiler.emit(executable, stage)
