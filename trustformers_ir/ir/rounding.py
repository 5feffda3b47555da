"""Rounding to a stored dtype, once: to nearest, ties to even, from whatever width the value was computed in."""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.ir.dtypes import DType

LARGEST_F8 = 448.0  # of f8e4m3


def round_to(value: Any, dtype: DType) -> np.ndarray:
    """``value`` as an array of ``dtype``. Floats and complex numbers are rounded once; nothing else is expected to need conversion. f8e4m3 has no
    infinities: what is larger than its largest number becomes that, as on GPUs, in torch and in ONNX.

    bf16 has no direct conversion from wider types than f32: going through f32 would round twice, so the step to f32 rounds to odd (Boldo &
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008), after which the second rounding gives what one rounding would.
    """
    array = np.asarray(value)
    if array.dtype == dtype.numpy:
        return array
    with np.errstate(all="ignore"):
        if dtype is DType.bf16 and DType.from_numpy(array.dtype) is not DType.f16:
            array = _to_f32_odd(_sticky(array) if array.dtype.kind in "iu" else array.astype(np.float64))
        if dtype is DType.f8e4m3:
            array = np.clip(array, -LARGEST_F8, LARGEST_F8)
        return array.astype(dtype.numpy)


def _to_f32_odd(x: np.ndarray) -> np.ndarray:
    """float64 to float32; an inexact result is truncated and its last bit set."""
    nearest = x.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = np.atleast_1d(nearest).view(np.uint32).reshape(x.shape)
    away = np.abs(back) > np.abs(x)
    odd = (bits - away.astype(np.uint32)) | np.uint32(1)
    inexact = (back != x) & ~np.isnan(x)
    return np.where(inexact, odd, bits).astype(np.uint32).view(np.float32)


def _sticky(x: np.ndarray) -> np.ndarray:
    """Integers as float64 such that a later rounding to 24 bits or fewer is right: the bits that float64 cannot hold are ored together."""
    wide = x.astype(np.uint64 if x.dtype.kind == "u" else np.int64)
    low = wide.dtype.type(0xFFF)
    big = (wide >> wide.dtype.type(53) != 0) & (wide >> wide.dtype.type(53) != -1)  # beyond 2**53 either way
    squeezed = (wide & ~low) | np.where(wide & low, wide.dtype.type(0x1000), wide.dtype.type(0))
    return np.where(big, squeezed, wide).astype(np.float64)


def fma_f32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a * b + c`` of f32 arrays, rounded once.

    The product is exact in float64. Its sum with c is rounded to odd there, by the error that Knuth's two-sum gives, so that the second rounding, to
    f32, gives what one rounding would (Boldo & Melquiond 2008, as above).
    """
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        wide = c.astype(np.float64)
        total = product + wide
        back = total - product
        error = (product - (total - back)) + (wide - back)
        even = (np.atleast_1d(total).view(np.int64).reshape(total.shape) & 1) == 0
        moves = np.isfinite(total) & (error != 0) & even
        odd = np.where(moves, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return odd.astype(np.float32)
