"""Weights of which other weights are made: what the passes that fold, join and pack them share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from trustformers_ir.ir.core import Module, Value, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.mapped import MappedFile
from trustformers_ir.ir.ops import Transpose, WeightOp
from trustformers_ir.ir.ops.quantized import SMALLEST_SCALE
from trustformers_ir.ir.types import TensorType

BLOCK_BYTES = 1 << 20
SAMPLE = 256  # rows of which it is looked how far they move
LARGEST = 127  # of the integers of a weight


def weight_of(module: Module, value: Value) -> Weight | None:
    """The weight that ``value`` is; None when it is computed or an argument."""
    operation = value.producer
    return module.weights[operation.op.name] if operation is not None and isinstance(operation.op, WeightOp) else None


def derived(module: Module, name: str, type: TensorType, make: Callable[[], np.ndarray], origin: tuple[object, ...]) -> Weight:
    """The weight of that type and ``origin``: the weights that it is made of and what is done to them, in values that can be compared. The one
    that is there, or a new one, whose bytes ``make`` gives when they are first asked for. It is called ``name`` where nothing else is: checkpoints
    choose their names as they like."""
    chosen, n = name, 1
    while (found := module.weights.get(chosen)) is not None:
        if found.origin == origin and found.type == type:
            return found
        n += 1
        chosen = f"{name}.{n}"
    return module.add_weight(Weight(chosen, type, make, origin=origin))


def rows_of(weight: Weight, transposed: bool) -> Callable[[], np.ndarray]:
    """What gives the weight of a product as ``[n, k]``; the rows of several matrices one behind the other. Where they are the transposes of a weight
    that has such rows, it is that: nothing is turned round twice."""
    if weight.type.rank > 2 and transposed and weight.origin and isinstance(weight.origin[0], Transpose) and weight.origin[0].perm == (0, 2, 1):
        weight, transposed = weight.origin[1], False  # type: ignore[assignment]

    def rows() -> np.ndarray:
        found = np.swapaxes(weight.data, -1, -2) if transposed else weight.data
        return found if found.ndim == 2 else found.reshape(-1, found.shape[-1])

    return rows


def converted(array: np.ndarray, dtype: DType) -> np.ndarray:
    """f16, bf16 or f32 values as another one of these, rounded once, ties to even. Nothing wider stands between, and what a block of rows needs
    stays in the cache: the weights of a model go through here."""
    out = np.empty(array.shape, dtype.numpy)
    with np.errstate(all="ignore"):
        for part in blocks(*array.shape) if array.ndim else (...,):
            out[part] = array[part].astype(dtype.numpy)
    return out


def blocks(n: int = 1, *sizes: int) -> list[slice]:
    """The rows of an array of f32 in blocks that stay in the cache."""
    rows = max(1, BLOCK_BYTES // max(4 * math.prod(sizes), 1))
    return [slice(i, min(i + rows, n)) for i in range(0, n, rows)]


def sample_of(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced rows, as f32."""
    return np.ascontiguousarray(rows[:: max(1, len(rows) // SAMPLE)], np.float32)


def moved(rows: np.ndarray, back: np.ndarray) -> float:
    """How far ``back`` lies from the rows, root mean square relative to them."""
    norm = np.linalg.norm(rows.astype(np.float64))
    return float(np.linalg.norm(back.astype(np.float64) - rows) / norm) if norm else 0.0


def step_of(largest: np.ndarray) -> np.ndarray:
    """The scale of rows whose largest magnitudes are given: 1 for a row of zeros, never below the smallest normal number."""
    scale = np.maximum(largest / np.float32(LARGEST), np.float32(SMALLEST_SCALE))
    return np.where(largest == 0, np.float32(1), scale).astype(np.float32)


def steps_of(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``clip(round(w / scale), -127, 127)`` of ``rows: f32[n, k]`` as i8, ties to even."""
    steps: np.ndarray = rows / scale[:, None]
    np.rint(steps, out=steps)
    np.clip(steps, -LARGEST, LARGEST, out=steps)
    quantized: np.ndarray = steps.astype(np.int8)
    return quantized


def mapped_files(module: Module) -> list[MappedFile]:
    """The files that weights of the module are views of."""
    return list({id(file): file for w in module.weights.values() if (file := w.file) is not None}.values())
