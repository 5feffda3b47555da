"""The rivals by name: what each is, what it needs, and where it is made. Heavy packages are imported when a rival is made, in its own process."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from trustformers_ir.tools.bench.rivals.job import Call, Job

OURS = "trustformers_ir"
FREE = "trustformers_ir, order free"  # what results cost that are the same everywhere: see identity.py
EXTRA = "pip install 'trustformers_ir[peers]'"


@dataclass(frozen=True)
class Rival:
    """``family`` is a module of this folder with a function ``make(setting, job)``; ``setting`` chooses among what it offers."""

    family: str
    setting: str
    what: str
    int8: bool = False
    slow: bool = False  # takes most of a minute to compile

    def make(self, job: Job) -> Call:
        module = importlib.import_module(f"trustformers_ir.tools.bench.rivals.{self.family}")
        call: Call = module.make(self.setting, job)
        return call


RIVALS: Mapping[str, Rival] = {
    "eager": Rival("pytorch", "eager", "torch, not compiled"),
    "inductor": Rival("pytorch", "default", "torch.compile with frozen weights and static shapes"),
    "inductor-max": Rival("pytorch", "max-autotune", "the same with mode='max-autotune'", slow=True),
    "onnxruntime": Rival("onnx", "plain", "ONNX Runtime, all of its own graph optimizations"),
    "onnxruntime-opt": Rival("onnx", "optimized", "ONNX Runtime after its transformer optimizer: fused attention, skip-layernorm, gelu"),
    "openvino": Rival("vino", "latency", "OpenVINO, latency hint, static shapes"),
    "openvino-throughput": Rival("vino", "throughput", "OpenVINO, throughput hint, the batch cut into one request per stream"),
    "onnxruntime-int8": Rival("onnx", "plain-int8", "ONNX Runtime, quantize_dynamic, weights per channel", int8=True),
    "onnxruntime-opt-int8": Rival("onnx", "optimized-int8", "the same on the graph of onnxruntime-opt", int8=True),
    "openvino-int8": Rival("vino", "int8", "OpenVINO, latency hint, quantized by NNCF with calibration", int8=True),
    "inductor-int8": Rival("pytorch", "int8", "torch.compile of a PT2E model with the x86 quantizer, calibrated", int8=True),
    "inductor-dynamic-int8": Rival("pytorch", "dynamic-int8", "the same with dynamic activations", int8=True),
}
OWN: Mapping[str, Rival] = {
    OURS: Rival("ours", "", "this project"),
    FREE: Rival("ours", "free", "this project when sums may have any order"),
}

F32 = tuple(name for name, rival in RIVALS.items() if not rival.int8)
INT8 = tuple(name for name, rival in RIVALS.items() if rival.int8)
