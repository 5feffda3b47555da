"""What can be verified: a row for each kind of file says how it is opened, and each way in which it is executed, without the help of the others."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.abi import RECIPE_KEY
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import argument_names, evaluate, result_names
from trustformers_ir.ir.progress import note
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools.agreement import llama_cpp
from trustformers_ir.tools.agreement.coreml_file import CoreMlFile
from trustformers_ir.tools.agreement.onnx_file import OnnxFile, package
from trustformers_ir.tools.agreement.quantized_source import is_narrow, quantized_source
from trustformers_ir.tools.agreement.stablehlo_file import StableHloFile
from trustformers_ir.tools.agreement.tolerance import UNITS
from trustformers_ir.tools.agreement.values import aligned_values, narrow_results

Arrays = Mapping[str, np.ndarray]
Outputs = Sequence[np.ndarray]


@dataclass(frozen=True)
class Run:
    """A way to execute a file. ``by``: what executes it. ``shows``: the name of the only output that it gives; None: it gives all. ``view``: what of
    the true outputs it gives; None: all of them as they are. ``values``:
    the results inside a file, by operations of the source (``12:linear.0``). ``least``: a unit that its arithmetic is no more exact than. ``asked``:
    it is so slow that it runs only where it is named."""

    by: str
    compute: Callable[[Arrays], Outputs]
    version: str = ""
    view: Callable[[Arrays, Outputs], Outputs] | None = None
    values: Callable[[Module, Arrays], Mapping[str, np.ndarray]] | None = None
    least: float = 0.0
    asked: bool = False
    shows: str | None = None


@dataclass(frozen=True)
class Subject:
    """A file that is open. ``outputs``: how many. ``module``: its graph, where it holds one that can be read. ``quantize``: the recipe that it says
    it is quantized by; ``quantized``: the source as it is quantized there, which is what it should compute."""

    path: str
    kind: str
    inputs: Mapping[str, DType]
    outputs: int
    runs: tuple[Run, ...]
    module: Module | None = None
    quantize: str = ""
    quantized: Module | None = None


@dataclass(frozen=True)
class Reader:
    """A kind of file: its ending, how it is opened (with the source beside it), and what may execute it. ``compiles``: ``--compiled`` compiles it.
    ``graph``: it holds a graph that can be the source of others."""

    ending: str
    kind: str
    by: tuple[str, ...]
    open: Callable[[str, Module], Subject]
    compiles: bool = False
    graph: bool = True


def open_subject(path: str, source: Module, compiled: bool, by: Sequence[str]) -> Subject:
    """The file, executed by what is named in ``by``, or by all that is there. Raises ``CompilerError`` when there is none."""
    note(f"reading {path}")
    reader = _reader(path)
    subject = _native(path, tfir.compile(path), reader.kind) if compiled and reader.compiles else reader.open(path, source)
    runs = tuple(r for r in subject.runs if (r.by in by if by else not r.asked))
    if not runs:
        message = f"nothing of --by {', '.join(by)} executes '{path}'"
        raise CompilerError.of(Code.USAGE, message, Where(file=path), f"it is executed by {', '.join(r.by for r in subject.runs)}")
    return replace(subject, runs=runs)


def _reader(path: str) -> Reader:
    """The row of a file's kind."""
    return next((r for r in READERS if path.rstrip("/").endswith(r.ending)), READERS[-1])


def open_source(path: str) -> Module:
    """The graph of the first file, of which a float64 run is the truth."""
    note(f"reading {path}")
    if not _reader(path).graph:
        message, help = f"'{path}' cannot be the first", f"name the model before it: tfc verify MODEL {path}"
        raise CompilerError.of(Code.USAGE, message, Where(file=path), help)
    module = tfir.load(path).module if path.endswith(".tfc") else tfir.api.to_module(path)
    if path.endswith(".onnx"):  # what its codes stand for is in the graph
        module.metadata |= {k: v for k, v in OnnxFile.open(path).told.items() if k == RECIPE_KEY}
    return module


def true_outputs(module: Module, arrays: Arrays) -> list[np.ndarray]:
    """The outputs of ``main`` in float64, nothing rounded in between."""
    return listed(evaluate(module, *_ordered(module, arrays), wide=True))


def _ordered(module: Module, arrays: Arrays) -> list[np.ndarray]:
    return [arrays[name] for name in argument_names(module.main)]


def listed(results: object) -> list[np.ndarray]:
    """Outputs as a list, whether there is one or many."""
    values = results if isinstance(results, tuple | list) else (results,)
    try:
        return [np.asarray(v) for v in values]
    except (TypeError, ValueError) as error:
        raise CompilerError.of(Code.USAGE, f"an output is no array: {error}") from error


def signature(module: Module) -> dict[str, DType]:
    """Names and dtypes of the inputs."""
    return {name: a.type.dtype for name, a in zip(argument_names(module.main), module.main.args, strict=True)}


# -- a reader for each kind -------------------------------------------------------------------------------------------------


def _native(path: str, executable: Runnable, kind: str) -> Subject:
    module = executable.module
    run = Run("native code", lambda arrays: listed(executable(**arrays)), values=lambda s, a: aligned_values(s, module, a, wide=False))
    return Subject(path, kind, signature(module), len(module.main.outputs), (run,), module)


def _artifact(path: str, source: Module) -> Subject:
    return _native(path, tfir.load(path), "artifact")


def _graph(path: str, source: Module) -> Subject:
    """A graph with its own dtypes, each result rounded to its own."""
    module = tfir.api.to_module(path)

    def compute(arrays: Arrays) -> list[np.ndarray]:
        return listed(evaluate(module, *_ordered(module, arrays)))

    run = Run("interpreter", compute, values=lambda s, a: aligned_values(s, module, a, wide=False))
    return Subject(path, "graph", signature(module), len(module.main.outputs), (run,), module)


def _onnx(path: str, source: Module) -> Subject:
    file = OnnxFile.open(path)
    intended = quantized_source(path, source, file.told, file.smoothing, file.least)
    recipe = "" if intended is None else file.told[RECIPE_KEY]
    least = 0.0 if file.least is None or is_narrow(recipe) else UNITS[file.least]
    versions = (package(name).__version__ for name in ("onnxruntime", "onnx"))
    ways = (("onnxruntime", file.runtime, file.runtime_values), ("onnx.reference", file.reference, file.reference_values))

    def shown(inner: Callable[[Arrays, set[str]], Mapping[str, np.ndarray]]) -> Callable[[Module, Arrays], Mapping[str, np.ndarray]]:
        return lambda graph, arrays: inner(arrays, narrow_results(graph))

    runs = tuple(
        Run(by, compute, version, values=shown(inner), least=least) for (by, compute, inner), version in zip(ways, versions, strict=True)
    )
    return Subject(path, "ONNX file", file.inputs, len(file.outputs), runs, quantize=recipe, quantized=intended)


def _gguf(path: str, source: Module) -> Subject:
    """The file as our front end reads it, in float64 on the numbers that its blocks stand for; and as llama.cpp does."""
    module = tfir.api.to_module(path)
    own = Run("interpreter", lambda arrays: true_outputs(module, arrays), values=lambda s, a: aligned_values(s, module, a, wide=True))
    runs = [own]
    made = dict(zip(result_names(source.main), source.main.outputs, strict=True))
    shows = next((name for name in llama_cpp.SHOWN if name in made), None)
    width = None if shows is None else made[shows].type.shape[-1]
    if llama_cpp.installed() and shows is not None and isinstance(width, int) and "input_ids" in signature(source):
        server = llama_cpp.LlamaCpp(path, width, llama_cpp.SHOWN[shows])
        version = importlib.metadata.version("xllamacpp")

        def view(arrays: Arrays, outputs: Outputs) -> Outputs:
            if shows == llama_cpp.LOGITS:
                return llama_cpp.true_next_tokens(arrays, outputs[list(made).index(shows)])
            plain = {name: np.zeros_like(a) if name == "token_type_ids" else a for name, a in arrays.items()}  # it knows of no others
            return llama_cpp.true_vectors(plain, true_outputs(source, plain)[list(made).index(str(shows))])

        # it holds keys and values in 16 bits, and rounds what it multiplies weights in blocks by to 8
        coarse = any(w.blocks is not None for w in module.weights.values())
        least = UNITS[DType.i8] if coarse else UNITS[DType.f16]
        runs.append(Run("llama.cpp", server.compute, version, view, least=least, shows=shows))
    return Subject(path, "GGUF file", signature(module), len(module.main.outputs), tuple(runs), module)


def _coreml(path: str, source: Module) -> Subject:
    """It says nothing of a graph, so its inputs are those of the source."""
    file = CoreMlFile(path, source)
    version = importlib.metadata.version("coremltools")
    if file.capacity:
        run = Run("numpy", file.read_on, version, file.true_scores, least=file.least)
    else:
        run = Run("numpy", file.run, version, least=file.least)
    return Subject(path, "Core ML package", signature(source), file.outputs, (run,), quantize=file.quantize, quantized=file.quantized)


def _stablehlo(path: str, source: Module) -> Subject:
    file = StableHloFile.open(path)
    least = 0.0 if file.least is None else UNITS[file.least]
    version = importlib.metadata.version("jaxlib")
    runs = (
        Run("xla", file.xla, version, values=lambda graph, arrays: file.xla_values(arrays), least=least),
        Run("stablehlo", file.interpreter, version, values=lambda graph, arrays: file.interpreter_values(arrays), least=least, asked=True),
    )
    return Subject(path, "StableHLO file", file.inputs, len(file.outputs), runs)


#: the last row has what no other ending names: checkpoint folders, graphs, random models, factories
READERS = (
    Reader(".tfc", "artifact", ("native code",), _artifact),
    Reader(".onnx", "ONNX file", ("onnxruntime", "onnx.reference"), _onnx),
    Reader(".gguf", "GGUF file", ("interpreter", "llama.cpp"), _gguf, compiles=True),
    Reader(".mlpackage", "Core ML package", ("numpy",), _coreml, graph=False),
    Reader(".mlir", "StableHLO file", ("xla", "stablehlo"), _stablehlo, graph=False),
    Reader("", "graph", ("interpreter",), _graph, compiles=True),
)
RUNNERS = tuple(dict.fromkeys(name for r in READERS for name in r.by))
