"""How far an output lies from the true one: units in the last place, relative error, divergence of distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.rounding import round_to

INFINITE = float("inf")


@dataclass(frozen=True)
class Distance:
    """Between two arrays. ``ulp``: the most units in the last place of the output's dtype between two elements (0 of an element is many units away
    from anything: it is told, not judged). ``absolute``: the largest difference; ``relative``: the same by the largest magnitude of the true output.
    ``kl``: the largest Kullback-Leibler divergence, in nats, of the distributions that logits are; None for other outputs."""

    ulp: float
    absolute: float
    relative: float
    kl: float | None = None


def distance(true: np.ndarray, have: np.ndarray, dtype: DType, logits: bool = False) -> Distance:
    """How far ``have`` lies from ``true``, which was computed in float64, as numbers of ``dtype``.

    Infinite where shapes, NaNs or infinities differ; integers and bools are compared exactly: any difference is infinite relatively.
    """
    if true.shape != have.shape:
        return Distance(INFINITE, INFINITE, INFINITE, INFINITE if logits else None)
    if not true.size:
        return Distance(0.0, 0.0, 0.0, 0.0 if logits else None)
    if true.dtype.kind in "biu":
        differ = true != have
        away = max((abs(int(a) - int(b)) for a, b in zip(true[differ], have[differ], strict=True)), default=0)
        return Distance(float(away), float(away), INFINITE if away else 0.0)
    kind = np.complex128 if np.iscomplexobj(true) else np.float64
    a, b = true.astype(kind), have.astype(kind)
    units = max(_ulps(x, y, dtype) for x, y in ((a.real, b.real), (a.imag, b.imag))) if kind is np.complex128 else _ulps(a, b, dtype)
    a = np.where(np.isinf(_narrowed(a, dtype)), _narrowed(a, dtype), a)  # beyond the dtype
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return Distance(units, INFINITE, INFINITE, INFINITE if logits else None)
    absolute = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    largest = float(np.abs(a[finite]).max(initial=0.0))
    relative = absolute / largest if largest else absolute
    return Distance(units, absolute, relative, _divergence(a, b) if logits else None)


def _narrowed(a: np.ndarray, dtype: DType) -> np.ndarray:
    return round_to(a, dtype).astype(a.dtype) if dtype.is_float or dtype.is_complex else a


def _ulps(a: np.ndarray, b: np.ndarray, dtype: DType) -> float:
    """The most numbers of the dtype that lie between two elements."""
    part = {DType.c64: DType.f32, DType.c128: DType.f64}.get(dtype, dtype)
    if not part.is_float:
        return 0.0
    x, y = (_places(round_to(v, part)) for v in (a, b))
    odd = np.isnan(a) != np.isnan(b)
    same = np.isnan(a) & np.isnan(b)
    if odd.any():
        return INFINITE
    # subtracted as Python's numbers would be: places of float64 take all 64 bits
    far = np.abs(x.astype(np.float64) - y.astype(np.float64))
    near = np.abs(x - y).astype(np.float64)
    return float(np.where(same, 0.0, np.where(far < 2.0**62, near, far)).max(initial=0.0))


def _places(x: np.ndarray) -> np.ndarray:
    """The place of each number among all numbers of its dtype, 0 at zero."""
    bits = x.dtype.itemsize * 8
    whole = np.ascontiguousarray(x).view(f"i{bits // 8}").astype(np.int64)
    low = np.int64(-(1 << (bits - 1)))
    found: np.ndarray = np.where(whole < 0, low - whole, whole)
    return found


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    wide = x.astype(np.float64)
    off = wide - wide.max(-1, keepdims=True)
    found: np.ndarray = off - np.log(np.exp(off).sum(-1, keepdims=True))
    return found


def _divergence(a: np.ndarray, b: np.ndarray) -> float:
    """The largest KL(true || have) over all rows."""
    if a.shape[-1] == 0:
        return 0.0
    with np.errstate(all="ignore"):
        p, q = log_softmax(a), log_softmax(b)
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    found = terms.sum(-1)
    return float(np.max(np.where(np.isnan(found), INFINITE, np.maximum(found, 0.0)), initial=0.0))
