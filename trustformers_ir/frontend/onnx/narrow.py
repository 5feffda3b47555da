"""Rounding to the element types that no dtype of ours is: integers of 2 and 4 bits, floats of 4 and 8.

A float is rounded to a multiple of the distance of its neighbours, which is a power of two made from the bits of its exponent; so every step is
exact but the one that rounds, to nearest, ties to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.elements import Element, Small
from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import where
from trustformers_ir.ir.tensor import Tensor, as_tensor


def fixed(value: Any, dtype: DType) -> Tensor:
    """A number as a scalar of a dtype, bit for bit."""
    return as_tensor(np.asarray(value).astype(dtype.numpy).reshape(1)).reshape()


def convert(x: Tensor, source: Element, target: Element, saturate: bool = True, up: str = "up") -> Tensor:
    """ONNX ``Cast``: ``x`` holds elements of ``source``, the result those of ``target``."""
    if source == target:
        return x
    if target.small is not None:
        return rounded(x, target.small, saturate, up)
    if target.narrow_integer:
        return wrapped(x, target)
    if x.dtype.is_float and target.dtype.is_integer and target.dtype.bits < 64:
        # out of range is undefined; the low bits of the whole number, as numpy and most backends have it
        return x.to(DType.i64).to(target.dtype) if target.dtype.bits < 32 else x.to(target.dtype)
    return x.to(target.dtype)


def wrapped(x: Tensor, target: Element) -> Tensor:
    """The low bits of whole numbers."""
    low = x.to(DType.i32) & ((1 << target.bits) - 1)
    if target.dtype.is_signed:
        low = where(low > target.high, low - (1 << target.bits), low)
    return low.to(target.dtype)


_BITS = {DType.f32: (DType.i32, 23, 127), DType.f64: (DType.i64, 52, 1023)}


def rounded(x: Tensor, small: Small, saturate: bool, up: str = "up") -> Tensor:
    """``x`` rounded to a small float, as f32. What is larger than the largest number becomes that if ``saturate``, else infinity or NaN."""
    wide = x if x.dtype is DType.f64 else x.to(DType.f32) if x.dtype.is_float or x.dtype.bits <= 16 else x.to(DType.f64)
    if not small.signed:
        return _power(wide, saturate, up)
    whole, fraction, bias = _BITS[wide.dtype]
    bits = wide._emit(ops.BitCast(whole))
    exponent = ((bits >> fraction) & (2 * bias + 1)) - bias
    exponent = exponent.clamp(small.lowest_exponent, None)
    step = ((exponent - small.fraction + bias) << fraction)._emit(ops.BitCast(wide.dtype))
    near = (wide / step).round() * step
    largest = fixed(small.largest, wide.dtype)
    size = near.abs()
    over = size > largest
    sign = where(bits < 0, fixed(-1.0, wide.dtype), fixed(1.0, wide.dtype))
    nan, infinity = fixed(np.nan, wide.dtype), fixed(np.inf, wide.dtype)
    if saturate or not small.nan:
        near = where(over | wide.isinf(), sign * largest, near)
    else:
        near = where(over, sign * infinity if small.infinite else nan, near)
    near = where(wide.isnan(), nan if small.nan else fixed(-0.0, wide.dtype), near)  # without a NaN as ml_dtypes; ONNX leaves it open
    if small.bias in (8, 16):  # fnuz: there is no negative zero
        near = near + fixed(0.0, wide.dtype)
    return near.to(DType.f32)


def _power(x: Tensor, saturate: bool, up: str) -> Tensor:
    """E8M0: the powers of two from 2**-127 to 2**127, and NaN, which stands for what is not positive as well."""
    whole, fraction, bias = _BITS[x.dtype]
    bits = x.abs()._emit(ops.BitCast(whole))
    exponent, rest = bits >> fraction, bits & ((1 << fraction) - 1)
    half = 1 << (fraction - 1)
    if up == "up":
        more = rest > 0
    elif up == "nearest":
        more = rest >= half
    else:
        more = rest < 0
    if x.dtype is DType.f32:  # numbers below the smallest normal one are 2**-127 at most
        more = where(exponent == 0, rest > (half if up == "up" else half - 1 if up == "nearest" else (1 << fraction)), more)
        # 2**-127 is the subnormal with the highest bit of the fraction
    found = exponent + more.to(whole)
    found = found.clamp(0 if x.dtype is DType.f32 else bias - 127, None)
    top = 254 if x.dtype is DType.f32 else bias + 127
    over = found > top
    found = found.clamp(None, top)
    if x.dtype is DType.f32:
        power = where(found == 0, fixed(2.0**-127, DType.f32), (found << fraction)._emit(ops.BitCast(DType.f32)))
    else:
        power = (found << fraction)._emit(ops.BitCast(DType.f64)).to(DType.f32)
    nan = fixed(np.nan, DType.f32)
    if not saturate:
        power = where(over, nan, power)
    return where(x.isnan() | (x < 0) | (x == 0), nan, power) if not saturate else where(x.isnan(), nan, power)
