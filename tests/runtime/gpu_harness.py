"""Small modules with code for GPUs, and Triton's interpreter to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="pip install triton")

from runtime_harness import BATCH, encoder_function, f32, i64, random_weights

from trustformers_ir.codegen.triton import device
from trustformers_ir.codegen.triton.build import find_gpu
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.types import TensorType
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.runtime.gpu import code
from trustformers_ir.runtime.gpu.driver import Driver
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.gpu.interpreter import Interpreter

INTERPRETER = "triton:interpreter"


def compiled(fn: Callable[..., Any], *specs: TensorType, target: str = INTERPRETER, **options: Any) -> CompiledModule:
    """The traced function for a GPU."""
    names = {"main": options.pop("names")} if "names" in options else None
    module = trace(fn, *specs, **options)
    PassManager(pipelines.gpu()).run(module)
    made = device.build(module, find_gpu(target), names)
    return CompiledModule(made.manifest, code.encode(made.device, made.codes), made.print_graph, made.weights, made.digest, {})


def encoder_module(target: str = INTERPRETER) -> CompiledModule:
    options: dict[str, Any] = {"facts": BATCH, "weights": random_weights(), "names": ("probabilities", "pooled"), "name": "encoder"}
    return compiled(encoder_function, i64["batch", "seq"], f32[()], target=target, **options)


encoder = functools.cache(encoder_module)


@functools.cache
def add() -> CompiledModule:
    return compiled(lambda x, y: x + y, f32["batch", "seq"], f32["batch", "seq"], facts=BATCH)


def running(module: CompiledModule, driver: Driver | None = None) -> tuple[GpuExecutable, Any]:
    """The module on a GPU of its own, and that GPU."""
    gpu = driver or Interpreter(lazy=True)
    return GpuExecutable(module, driver=gpu), gpu


def launches(exe: GpuExecutable, batch: int = 3, seq: int = 11) -> int:
    """How many kernels a call launches: those whose conditions hold."""
    env = {"batch": batch, "seq": seq}
    sizes = [[(evaluate(c.size, env), c) for c in launch.conditions] for launch in exe.device.functions[0].launches]
    return sum(all(c.above < n and (c.most is None or n <= c.most) for n, c in conditions) for conditions in sizes)
