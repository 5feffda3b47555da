"""Models to files of other systems: joins front ends, which know what a model is, and the writers of ``codegen/export/``. Behind ``api.py``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.export.coreml.package import MARKER
from trustformers_ir.codegen.export.coreml.weights import WeightForm
from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.codegen.export.quantized import passes, quantized
from trustformers_ir.codegen.export.written import Written
from trustformers_ir.frontend.generation import fixed_cache, only_step
from trustformers_ir.ir.abi import PIECE, STEP
from trustformers_ir.ir.atomic import check_writable
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dims import symbol
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.progress import note
from trustformers_ir.passes.recipes import F16, Q4_0, Q8_0, Bf16, Int4, Int8, find_recipe
from trustformers_ir.quantizer import learnt, told
from trustformers_ir.reader import batches_of, check_weights, dtype_of, is_checkpoint, opened, to_module

CAPACITY = 2048  # tokens of a cache, where nothing else is asked for and the model has as many positions


@dataclass(frozen=True)
class Options:
    """What one may ask of a file besides the model; None where nothing is asked."""

    quantize: Any = None
    dtype: Any = None
    example_inputs: Any = None
    opset: int | None = None
    calibration: Any = None
    cache: str | None = None
    capacity: int | None = None


@dataclass(frozen=True)
class Format:
    """A kind of file: who writes it, and which options say something there."""

    name: str
    write: Callable[[Any, str, Options], Written]
    options: frozenset[str]
    marker: str | None = None  # of a file that is a folder: what is in each


def export(model: Any, paths: Sequence[str | os.PathLike[str]], options: Options) -> list[Written]:
    """See :func:`trustformers_ir.export`; what was written of each path."""
    with Collector() as problems:
        found = [_find(os.fspath(path), model, problems) for path in paths]
        _check_options([f for f in found if f is not None], options, problems)
        for twice in (name for name, times in Counter(map(os.path.realpath, paths)).items() if times > 1):
            problems.add(Code.USAGE, f"'{twice}' is named twice", Where(file=twice), "give each output its own name")
    written: list[Written] = []
    with Collector() as problems:
        for path, format in zip([os.fspath(p) for p in paths], found, strict=True):
            assert format is not None
            own = Options(**{f.name: getattr(options, f.name) for f in fields(Options) if f.name in format.options})
            try:
                written.append(format.write(model, path, own))
            except CompilerError as error:
                problems.extend(error.diagnostics)
    return written


def _find(name: str, model: Any, problems: Collector) -> Format | None:
    """What writes a file of this name, if that can be seen to be possible."""
    suffix = Path(name).suffix
    if suffix not in FORMATS:
        problems.add(Code.USAGE, f"'{name}' is of no format that can be exported", help=f"the formats are {', '.join(FORMATS)}")
        return None
    try:
        check_writable(name, FORMATS[suffix].marker)
    except CompilerError as error:
        problems.extend(error.diagnostics)
    if isinstance(model, (str, os.PathLike)) and os.path.exists(name) and os.path.exists(model) and os.path.samefile(name, model):
        problems.add(Code.USAGE, f"'{name}' is what is read", Where(file=name), "give the output another name")
    return FORMATS[suffix]


def _check_options(formats: Sequence[Format], options: Options, problems: Collector) -> None:
    for field in fields(options):
        if formats and getattr(options, field.name) is not None and not any(field.name in f.options for f in formats):
            what, takers = (" and ".join(sorted({f.name for f in group})) for group in (formats, _takers(field.name)))
            problems.add(Code.USAGE, f"{field.name} says nothing of {what}: it is for {takers}", help="leave it out")


def _takers(option: str) -> list[Format]:
    return [f for f in FORMATS.values() if option in f.options]


def _gguf(model: Any, path: str, options: Options) -> Written:
    from trustformers_ir.codegen.export.gguf.kinds import find_file_type, find_numbers
    from trustformers_ir.codegen.export.gguf.write import write_gguf
    from trustformers_ir.frontend.gguf.outward import content_of

    asked, numbers = find_file_type(options.quantize), find_numbers(options.dtype)
    if not isinstance(model, (str, os.PathLike)):
        message = f"{type(model).__name__} cannot be written as a GGUF file"
        raise CompilerError.of(Code.CANNOT_EXPORT, message, help="give a checkpoint folder, random:<model_type>, or a .gguf file")
    note("reading the model")
    return write_gguf(path, content_of(os.fspath(model)), asked, numbers)


def _onnx(model: Any, path: str, options: Options) -> Written:
    from trustformers_ir.codegen.export.onnx.rules_quantized import BLOCKED
    from trustformers_ir.codegen.export.onnx.write import write_onnx

    recipe = find_recipe(options.quantize, options.calibration)
    if recipe is not None and not isinstance(recipe, IN_ONNX):
        names = ", ".join(kind.name for kind in IN_ONNX)
        raise CompilerError.of(Code.CANNOT_EXPORT, f"no ONNX file says what '{recipe.name}' makes of weights", help=f"the recipes are {names}")
    if isinstance(recipe, IN_BLOCKS) and options.opset is not None and options.opset < BLOCKED:
        message = f"'{recipe.name}' needs opset {BLOCKED}: weights in blocks are new in that, and opset {options.opset} is asked for"
        raise CompilerError.of(Code.USAGE, message, help=f"--opset {BLOCKED}, or leave it out")
    model, example_inputs = opened(model, options.example_inputs)
    module = _graph(model, example_inputs, options.dtype)
    if recipe is None:
        return write_onnx(path, module, opset=options.opset)
    known = learnt(module, recipe, lambda examples: batches_of(examples, module, model), merged=False)
    quantizer = recipe.quantizer(known)
    module.metadata |= told(recipe, quantizer, quantized(module, quantizer))
    return replace(write_onnx(path, module, opset=options.opset), passes=tuple(str(p) for p in passes(quantizer)))


def _coreml(model: Any, path: str, options: Options) -> Written:
    """In f16 unless f32 is asked for: what it is rounded from is f32, also where a checkpoint is stored in 16 bits."""
    from trustformers_ir.codegen.export.coreml.write import write_coreml

    found = dtype_of(options.dtype) or DType.f16
    if found not in (DType.f16, DType.f32):
        raise CompilerError.of(Code.USAGE, f"Core ML does not compute in {found}", help="give f16 or f32")
    forms = {form.value: form for form in WeightForm}
    if options.quantize is not None and options.quantize not in forms:
        message = f"'{options.quantize}' is no form of weights of Core ML packages"
        raise CompilerError.of(Code.USAGE, message, help=f"give {', '.join(forms)}, or leave it out")
    numbers = DType.f32 if is_checkpoint(model) else None
    if options.cache is None and options.capacity is None:
        module = _graph(model, options.example_inputs, numbers)
    else:
        module = _decoder(model, options, numbers)
    return write_coreml(path, module, dtype=found, weights=forms.get(options.quantize))


def _decoder(model: Any, options: Options, dtype: DType | None) -> Module:
    """The graph of a language model that reads on, whose caches have one size for good: states, as Core ML has them."""
    if options.cache is None:
        raise CompilerError.of(Code.USAGE, "capacity is that of a cache, and none was asked for", help="cache='f16' keeps keys and values as states")
    if options.cache != "f16":
        raise CompilerError.of(Code.USAGE, f"cache is {options.cache!r}, and states of Core ML packages are of f16", help="give f16")
    if options.capacity is not None and options.capacity < 1:
        raise CompilerError.of(Code.USAGE, f"a cache of {options.capacity} tokens holds none", help=f"the default is {CAPACITY}")
    opened_model, _ = opened(model)
    module = to_module(opened_model, options.example_inputs, dtype, fixed_cache(options.capacity or CAPACITY))
    if STEP not in module.functions:
        message = "only language models have caches: what a checkpoint folder, a GGUF file or random:<model_type> names"
        raise CompilerError.of(Code.CANNOT_EXPORT, message, help="leave out cache")
    held = module.facts.bounds(symbol(PIECE))[1]
    if options.capacity is not None and options.capacity > held:
        message = f"a cache of {options.capacity} tokens is asked for, and the model has positions for {held}"
        raise CompilerError.of(Code.USAGE, message, help=f"give at most {held}")
    check_weights(module, str(model) if isinstance(model, (str, Path)) else None)
    return canonical(only_step(module))


def _stablehlo(model: Any, path: str, options: Options) -> Written:
    from trustformers_ir.codegen.export.stablehlo.write import write_stablehlo

    return write_stablehlo(path, _graph(model, options.example_inputs, options.dtype))


def _graph(model: Any, example_inputs: Any, dtype: Any) -> Module:
    """The graph as writers take it: of the front end, canonicalized, its weights looked at. Not that of the caller."""
    model, example_inputs = opened(model, example_inputs)
    module = to_module(model, example_inputs, dtype)
    check_weights(module, str(model) if isinstance(model, (str, Path)) else None)
    return canonical(clone_module(module) if module is model else module)


IN_BLOCKS = (Q4_0, Q8_0, Int4)
IN_ONNX = (Int8, *IN_BLOCKS, F16, Bf16)

FORMATS: Mapping[str, Format] = {
    ".onnx": Format("ONNX files", _onnx, frozenset({"quantize", "dtype", "example_inputs", "opset", "calibration"})),
    ".gguf": Format("GGUF files", _gguf, frozenset({"quantize", "dtype"})),
    ".mlpackage": Format("Core ML packages", _coreml, frozenset({"quantize", "dtype", "example_inputs", "cache", "capacity"}), MARKER),
    ".mlir": Format("StableHLO files", _stablehlo, frozenset({"dtype", "example_inputs"})),
}
