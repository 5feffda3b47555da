"""ONNX files, executed by ONNX Runtime and by ONNX's own reference, with the values inside them on request.

Files that this project wrote name the operation of the graph that each node is a part of, and the results that its outputs are
(``codegen/export/onnx/write.py``); values are known under those names.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.onnx.emitter import DTYPES
from trustformers_ir.codegen.export.onnx.write import RESULTS
from trustformers_ir.ir.abi import RECIPE_KEY
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.quantize_int8 import SMOOTHING

EXACT_BLOCKS = ("session.qdq_matmulnbits_accuracy_level", "1")  # f32; 4, what it does where nothing is said, is 8 bits
IN_MEMORY = 1 << 30  # bytes of a message up to which it is handed over as it is


@dataclass(frozen=True)
class OnnxFile:
    """A file, and what it says of itself."""

    path: str
    inputs: Mapping[str, DType]
    outputs: Sequence[str]
    least: DType | None  # the narrowest float dtype of its weights, scales of codes left out
    told: Mapping[str, str]  # what it says of itself, ``metadata_props``
    smoothing: Mapping[str, np.ndarray]  # by what activations are multiplied in front of their codes, by the name of the first product behind

    @classmethod
    def open(cls, path: str) -> OnnxFile:
        onnx = package("onnx")
        try:
            model = onnx.load(path, load_external_data=False)
        except Exception as error:
            message = f"'{path}' is no ONNX file: {error}"
            raise CompilerError.of(Code.UNREADABLE, message, Where(file=path)) from error
        graph = model.graph
        weights = {t.name for t in graph.initializer}
        inputs = {i.name: _dtype(i.type.tensor_type.elem_type, i.name, path) for i in graph.input if i.name not in weights}
        read = _factors(graph)
        floats = [DTYPES[t.data_type] for t in graph.initializer if t.name in read and t.data_type in DTYPES]
        least = min((d for d in floats if d.is_float), key=lambda d: d.bits, default=None)
        told = {p.key: p.value for p in model.metadata_props}
        vectors = [t for t in graph.initializer if RECIPE_KEY in told and t.name.endswith(SMOOTHING)]
        with failing(path, "the package onnx"):
            smoothing = {t.name.removesuffix(SMOOTHING): onnx.numpy_helper.to_array(t, str(Path(path).parent)) for t in vectors}
        return cls(path, inputs, [o.name for o in graph.output], least, told, smoothing)

    def runtime(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs by ONNX Runtime, with all of its rewrites, as its users have it."""
        with failing(self.path, "ONNX Runtime"):
            return list(session(self.path).run(None, self._feed(arrays)))

    def reference(self, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs by ``onnx.reference``."""
        package("onnx")
        from onnx.reference import ReferenceEvaluator

        with failing(self.path, "onnx.reference"), np.errstate(all="ignore"):
            return [np.asarray(x) for x in ReferenceEvaluator(self.path).run(None, self._feed(arrays))]

    def runtime_values(self, arrays: Mapping[str, np.ndarray], narrow: Container[str] = ()) -> dict[str, np.ndarray]:
        """Results of operations, ``12:linear.0``, by ONNX Runtime: all, or those up to the first node that it cannot execute. ``narrow``: results
        in dtypes that numpy lacks."""
        return self._values(arrays, narrow, lambda path: lambda names, feed: session(path).run(names, feed))

    def reference_values(self, arrays: Mapping[str, np.ndarray], narrow: Container[str] = ()) -> dict[str, np.ndarray]:
        """The same by ``onnx.reference``."""
        package("onnx")
        from onnx.reference import ReferenceEvaluator

        return self._values(arrays, narrow, lambda path: lambda names, feed: ReferenceEvaluator(path).run(names, feed))

    def _values(self, arrays: Mapping[str, np.ndarray], narrow: Container[str], opened: Callable[[str], Any]) -> dict[str, np.ndarray]:
        onnx = package("onnx")
        whole = onnx.load(self.path)
        nodes = list(whole.graph.node)

        def first(count: int) -> dict[str, np.ndarray]:
            """Of so many nodes."""
            model = onnx.ModelProto()
            model.CopyFrom(whole)
            names = _expose(onnx, model, count, narrow)
            if not names:
                return {}
            with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
                path = str(Path(folder) / "values.onnx")
                onnx.save_model(model, path, save_as_external_data=model.ByteSize() > IN_MEMORY)
                return _by_result(names, opened(path)(list(names), self._feed(arrays)))

        try:
            return first(len(nodes))
        except Exception:
            low, high, found = 0, len(nodes), {}
        while high - low > 1:  # the first ones can be executed, all of them cannot
            middle = (low + high) // 2
            try:
                low, found = middle, first(middle)
            except Exception:
                high = middle
        return found

    def _feed(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray(arrays[name]) for name in self.inputs}


def _factors(graph: Any) -> set[str]:
    """Names of what nodes read, but for what codes are multiplied by, as it is or widened."""
    nodes = list(_nodes(graph))
    scales = {n.input[1] for n in nodes if n.op_type == "DequantizeLinear"}
    scales |= {n.input[0] for n in nodes if n.op_type == "Cast" and n.output[0] in scales}
    return {x for n in nodes for x in n.input} - scales


def _nodes(graph: Any) -> Iterator[Any]:
    """Those of subgraphs, too."""
    for node in graph.node:
        yield node
        for a in node.attribute:
            for inner in (*a.graphs, *([a.g] if a.HasField("g") else [])):
                yield from _nodes(inner)


def _expose(onnx: Any, model: Any, count: int, narrow: Container[str]) -> dict[str, list[str]]:
    """Leaves the first nodes of a model, with an output for every value that is the result of an operation; which results each is."""
    names: dict[str, list[str]] = {}
    kept = list(model.graph.node[:count])
    for node in list(kept):
        told = {p.key: p.value for p in node.metadata_props}.get(RESULTS, "")
        for name, results in zip(node.output, told.split(";"), strict=False):
            if name and results:
                shown = results.split(",")
                if any(r in narrow for r in shown):
                    wide = f"{name} as f32"
                    kept.append(onnx.helper.make_node("Cast", [name], [wide], to=onnx.TensorProto.FLOAT))
                    name = wide
                names[name] = shown
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(kept)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return names


def package(name: str) -> Any:
    """A package that verifying ONNX files needs. ``MISSING_DEPENDENCY``"""
    try:
        if name == "onnx":
            import onnx

            return onnx
        import onnxruntime

        return onnxruntime
    except ImportError as error:
        message = f"executing ONNX files needs the package {name}, which is not installed"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help=f"pip install {name}") from error


def session(path: str) -> Any:
    """ONNX Runtime with the file, on the CPU, without its log. Weights in blocks are multiplied by activations as the file has them: of its own
    accord it would round these to 8 bits, which no file asks for."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*EXACT_BLOCKS)
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def failing(path: str, by: str) -> Iterator[None]:
    """What a program says when it cannot execute a file, as an error that names both."""
    try:
        yield
    except CompilerError:
        raise
    except Exception as error:
        message = f"{by} cannot execute '{path}': {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        raise CompilerError.of(Code.CHECK_FAILED, message, Where(file=path), "--by names the programs that are to execute files") from error


def _dtype(number: int, name: str, path: str) -> DType:
    if number not in DTYPES:
        raise CompilerError.of(Code.INPUT_DTYPE, f"the input '{name}' of '{path}' has a dtype that is not known here", Where(file=path, tensor=name))
    return DTYPES[number]


def _by_result(names: Mapping[str, Sequence[str]], arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    return {result: np.asarray(a) for results, a in zip(names.values(), arrays, strict=True) for result in results}
