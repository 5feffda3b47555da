"""Small compiled modules for the tests of the runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from trustformers_ir.codegen.build import build, find_target
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.abi import CompiledModule
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.types import TensorType

f32, i64 = DType.f32, DType.i64
BATCH = {"batch": (1, 64), "seq": (1, 128)}


#: Files of the control group ``box/pod`` (both versions of Linux' interface), and how many of 8 CPUs they leave.
QUOTAS = [
    ({}, 8),
    ({"cpu.max": "max 100000"}, 8),
    ({"cpu.max": "250000 100000"}, 3),
    ({"box/pod/cpu.max": "max 100000", "box/cpu.max": "100000 100000"}, 1),
    ({"box/pod/cpu.max": "10000 100000"}, 1),
    ({"cpu.max": "nonsense"}, 8),
    ({"cpu.max": "200000 0"}, 8),
    ({"cpu.max": "9223372036854775807 1"}, 8),
    ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
]


def same(a: Any, b: Any) -> bool:
    """Whether the results of two calls have the same bytes."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def compiled(fn: Callable[..., Any], *specs: TensorType, target: str = "host", names: tuple[str, ...] = (), **options: Any) -> CompiledModule:
    """The traced function, compiled as it is: no passes."""
    module = trace(fn, *specs, **options)
    built = build(module, find_target(target), {"main": names} if names else None)
    return replace(built, report={"passes": ["none"]})


def add_modules() -> CompiledModule:
    """``x + y``."""
    return compiled(lambda x, y: x + y, f32["batch", "seq"], f32["batch", "seq"], facts=BATCH)


add = functools.cache(add_modules)


def random_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "table": random.standard_normal((50, 24)).astype(np.float32),
        "dense": random.standard_normal((40, 24)).astype(np.float32),
        "bias": random.standard_normal(40).astype(np.float32),
    }


def encoder_function(ids: Any, scale: Any) -> Any:
    """A row of a table per id, through a layer, and its softmax: sites, weights, an arena, a reduction, two outputs."""
    table = Parameter("table", (50, 24))
    dense, bias = Parameter("dense", (40, 24)), Parameter("bias", (40,))
    hidden = F.linear(F.embedding(ids, table) * scale, dense, bias)
    return {"probabilities": F.softmax(hidden, -1), "pooled": F.tanh(hidden).mean(1)}


def encoder_module(target: str = "host") -> CompiledModule:
    options: dict[str, Any] = {"facts": BATCH, "weights": random_weights(), "names": ("probabilities", "pooled"), "name": "encoder"}
    return compiled(encoder_function, i64["batch", "seq"], f32[()], target=target, **options)


encoder = functools.cache(encoder_module)


def encoder_reference(ids: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    w = {name: a.astype(np.float64) for name, a in random_weights().items()}
    hidden = w["table"][ids] * scale @ w["dense"].T + w["bias"]
    e = np.exp(hidden - hidden.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), np.tanh(hidden).mean(1)


def encoder_inputs(batch: int = 3, seq: int = 11, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, 50, (batch, seq)), np.array(0.25, np.float32)
