"""Peers that run the same checkpoint, for ``tfc bench --against``. Each is a function of the inputs by name, on a given number of threads."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.ir.diagnostics import Code, CompilerError, Where

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]
Make = Callable[[Path, Mapping[str, np.ndarray], int], Call]


def rival(name: str, folder: str, example: Mapping[str, np.ndarray], threads: int) -> Call:
    """The peer ``name`` on the checkpoint in ``folder``; its result is the first output of the model. ``example`` are inputs to export it with.

    Raises ``MISSING_DEPENDENCY`` when the peer is not installed, ``USAGE`` when ``folder`` is no checkpoint folder.
    """
    if not Path(folder).is_dir():
        raise CompilerError.of(Code.USAGE, f"peers run checkpoint folders, and '{folder}' is none", Where(file=folder), "leave out --against")
    try:
        return RIVALS[name](Path(folder), example, threads)
    except ImportError as error:
        message = f"{name} needs the package '{error.name}'"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, message, help=f"pip install {error.name}") from error


def _torch_model(folder: Path, threads: int) -> Any:
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_pretrained(str(folder)).eval()

    class FirstOutput(torch.nn.Module):  # type: ignore[misc]
        """Positional tensors in, the first output out: what exporters want."""

        def __init__(self, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(self.names, tensors, strict=True)))[0]

    return FirstOutput


def _eager(folder: Path, example: Mapping[str, np.ndarray], threads: int) -> Call:
    import torch

    return _caller(_torch_model(folder, threads)(list(example)), torch.inference_mode)


def _inductor(folder: Path, example: Mapping[str, np.ndarray], threads: int) -> Call:
    import torch

    return _caller(torch.compile(_torch_model(folder, threads)(list(example))), torch.no_grad)


def _caller(model: Any, mode: Callable[[], Any]) -> Call:
    """A torch module as a function of arrays, called in the mode without gradients that suits it."""
    import torch

    def call(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        with mode():
            return np.asarray(model(*map(torch.from_numpy, inputs.values())).numpy())

    return call


def _onnx_file(folder: Path, example: Mapping[str, np.ndarray], threads: int, into: str) -> str:
    import torch

    model = _torch_model(folder, threads)(list(example))
    path = str(Path(into) / "model.onnx")
    axes = {name: {0: "batch", 1: "seq"} if array.ndim == 2 else {0: "batch"} for name, array in example.items()}  # tokens; images
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of every Python branch in the model
        tensors = tuple(map(torch.from_numpy, example.values()))
        torch.onnx.export(model, tensors, path, input_names=list(example), output_names=["y"], dynamic_axes=axes, dynamo=False, opset_version=17)
    return path


def _onnxruntime(folder: Path, example: Mapping[str, np.ndarray], threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as into:
        session = onnxruntime.InferenceSession(_onnx_file(folder, example, threads, into), options, providers=["CPUExecutionProvider"])
    return lambda inputs: np.asarray(session.run(None, dict(inputs))[0])


def _openvino(folder: Path, example: Mapping[str, np.ndarray], threads: int) -> Call:
    import openvino

    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as into:
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(_onnx_file(folder, example, threads, into), "CPU", options)
    request = compiled.create_infer_request()
    return lambda inputs: np.asarray(next(iter(request.infer(dict(inputs)).values())))


RIVALS: Mapping[str, Make] = {"eager": _eager, "inductor": _inductor, "onnxruntime": _onnxruntime, "openvino": _openvino}
