"""Weights in 8 and 4 bits: what codes, scales and palettes become of a matrix, the same each time.

======== ============================================================= ==========================================================================
form     op of MIL                                                     how
======== ============================================================= ==========================================================================
int8     ``constexpr_affine_dequantize`` (iOS 16)                      symmetric, a scale for each output
int4     ``constexpr_blockwise_shift_scale`` (iOS 18)                  symmetric, a scale for each block of up to 32 neighbours of a row
palette4 ``constexpr_lut_to_dense`` (iOS 18)                           16 numbers by k-means for each few rows (Lloyd 1982), codes say which
======== ============================================================= ==========================================================================

Scales and palettes are numbers that f16 holds, in every program: so what a weight is rounded to does not depend on what a program computes in, and
:func:`rounded_module` says it of a graph, for those who compare.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.dtypes import DType

LEAST = 512  # elements of what is worth codes
BLOCK = 32  # neighbours that share a scale, at most
SMALLEST_BLOCK = 8
PALETTE = 16
SHARING = 2048  # elements that share a palette, at least: its numbers cost an eighth of a bit for each then
ROUNDS = 100  # of k-means, at most
SMALLEST = 2.0**-24  # number of f16
WEIGHTS_KEY = "weights"  # of a package's metadata: the form that weights have, and have been rounded to


class WeightForm(enum.Enum):
    """How weights are kept; the value is its name in ``--quantize``."""

    INT8 = "int8"
    INT4 = "int4"
    PALETTE4 = "palette4"


@dataclass(frozen=True)
class Codes:
    """A weight in codes: the op that makes numbers of them, the arrays that it takes, the one called ``packed`` with 4 bits for an entry; and the
    numbers."""

    op: str
    operands: Mapping[str, np.ndarray]
    packed: str | None
    numbers: np.ndarray


def takes(type_dtype: DType, shape: tuple[int, ...]) -> bool:
    """Whether a weight gets codes: matrices, tables and filters of some size."""
    return type_dtype in (DType.f32, DType.f16, DType.bf16) and len(shape) >= 2 and math.prod(shape) >= LEAST


def coded(form: WeightForm, array: np.ndarray) -> Codes:
    """The codes of finite numbers of at least two axes."""
    return _CODERS[form](np.ascontiguousarray(array, np.float32))


def rounded_module(module: Module, form: WeightForm) -> Module:
    """A copy of a graph whose weights are what their codes stand for."""
    copy = clone_module(module)
    for name, w in module.weights.items():
        if takes(w.type.dtype, w.type.concrete({})):
            numbers = coded(form, np.asarray(w.data).astype(np.float32)).numbers
            copy.weights[name] = Weight(name, w.type, numbers.astype(w.type.dtype.numpy))
    return copy


def _f16(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of f16, as f32; scales, so none is 0."""
    return np.maximum(x.astype(np.float16), np.float16(SMALLEST)).astype(np.float32)


def _int8(x: np.ndarray) -> Codes:
    rows = x.reshape(len(x), -1)
    scale = _f16(np.abs(rows).max(1) / 127)
    codes = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
    operands = {"quantized_data": codes.reshape(x.shape), "zero_point": np.int8(0), "scale": scale, "axis": np.int32(0)}
    return Codes("constexpr_affine_dequantize", operands, None, (codes * scale[:, None]).reshape(x.shape))


def _divisor(n: int, most: int) -> int:
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _int4(x: np.ndarray) -> Codes:
    """Of several scales for a block, from the one that its extreme needs on, the one with the least squared error."""
    block = _divisor(x.shape[-1], BLOCK)
    if block < SMALLEST_BLOCK:  # a block is all that makes one output
        block = x.size // len(x)
        spread = (len(x), *[1] * (x.ndim - 1))
    else:
        spread = (*x.shape[:-1], x.shape[-1] // block)
    blocks = x.reshape(-1, block)
    needed = np.maximum(blocks.max(1, keepdims=True) / 7, blocks.min(1, keepdims=True) / -8)
    best, codes, scale = np.full((len(blocks), 1), np.inf, np.float32), np.zeros(blocks.shape, np.int8), np.zeros_like(needed)
    for part in (1.0, 0.95, 0.9, 0.85):
        tried = _f16(needed * part)
        found = np.clip(np.rint(blocks / tried), -8, 7)
        error = np.square(found * tried - blocks).sum(1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
        codes = np.where(better, found.astype(np.int8), codes)
    numbers = (codes * scale).reshape(x.shape)
    return Codes("constexpr_blockwise_shift_scale", {"data": codes.reshape(x.shape), "scale": scale.reshape(spread)}, "data", numbers)


def _palette4(x: np.ndarray) -> Codes:
    rows = next(d for d in range(1, len(x) + 1) if len(x) % d == 0 and (d * x[0].size >= SHARING or d == len(x)))
    groups = x.reshape(len(x) // rows, -1)
    palettes = _k_means(groups.astype(np.float64)).astype(np.float16).astype(np.float32)
    codes = _nearest(groups, palettes)
    numbers = np.take_along_axis(palettes, codes, 1).reshape(x.shape)
    lut = palettes.reshape(len(palettes), *[1] * (x.ndim - 1), PALETTE, 1)
    return Codes("constexpr_lut_to_dense", {"indices": codes.astype(np.uint8).reshape(x.shape), "lut": lut}, "indices", numbers)


def _k_means(groups: np.ndarray) -> np.ndarray:
    """``f64[groups, 16]``, ascending: centres of the numbers of each group, from between its quantiles and its even parts to where none moves."""
    count, size = groups.shape
    ordered = np.sort(groups, axis=1)
    low, high = ordered[:, :1], ordered[:, -1:]
    sums = np.concatenate([np.zeros((count, 1)), np.cumsum(ordered, axis=1)], axis=1)
    share = (np.arange(PALETTE) + 0.5) / PALETTE
    centres = (ordered[:, (share * size).astype(np.int64)] + low + (high - low) * share) / 2
    # all groups in one ascending row, each in an interval of its own: one search finds the borders of all
    span = np.maximum(high - low, 1e-30)
    number = 2.0 * np.arange(count)[:, None]
    line = (number + (ordered - low) / span).ravel()
    start = size * np.arange(count)[:, None]
    for _ in range(ROUNDS):
        borders = (centres[:, 1:] + centres[:, :-1]) / 2
        inner = np.searchsorted(line, (number + (borders - low) / span).ravel()).reshape(count, -1) - start
        ends = np.concatenate([np.zeros((count, 1), np.int64), np.clip(inner, 0, size), np.full((count, 1), size)], axis=1)
        many = np.diff(ends, axis=1)
        means = np.diff(np.take_along_axis(sums, ends, 1), axis=1) / np.maximum(many, 1)
        moved = np.where(many > 0, means, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.sort(centres, axis=1)


def _nearest(groups: np.ndarray, palettes: np.ndarray) -> np.ndarray:
    """``i64[groups, size]``: which number of its palette is nearest."""
    codes = np.zeros(groups.shape, np.int64)
    for n in range(1, PALETTE):
        codes += groups > (palettes[:, n - 1 : n] + palettes[:, n : n + 1]) / 2
    return codes


_CODERS: Mapping[WeightForm, Callable[[np.ndarray], Codes]] = {
    WeightForm.INT8: _int8, WeightForm.INT4: _int4, WeightForm.PALETTE4: _palette4,
}  # fmt: skip
