"""Resize: every axis is interpolated by itself, from a few elements of x for each element of the result.

Which elements, and by which weights, follows the reference of the specification (``onnx/reference/ops/op_resize.py``); along axes of constant sizes
they are constants, along symbolic ones they are computed (nearest and linear).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.narrow import fixed
from trustformers_ir.frontend.onnx.node import Node, emit, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, SymExpr, floordiv
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange, where
from trustformers_ir.ir.tensor import Tensor, as_tensor

Weights = Callable[[float, float], np.ndarray]  # of a place between two elements, at a scale


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized."""

    size: Dim
    result: Dim
    scale: float
    start: float = 0.0
    end: float = 1.0


def _cubic(a: float) -> Weights:
    return lambda ratio, scale: np.array([_kernel(a, i - ratio) for i in range(-1, 3)])


def _cubic_antialias(a: float) -> Weights:
    def weights(ratio: float, scale: float) -> np.ndarray:
        scale = min(scale, 1.0)
        start = math.floor(-2 / scale) + 1
        return _normal(np.array([_kernel(a, scale * (i - ratio)) for i in range(start, 2 - start)]))

    return weights


def _normal(weights: np.ndarray) -> np.ndarray:
    """Weights whose sum is 1."""
    out: np.ndarray = weights / weights.sum()
    return out


def _kernel(a: float, x: float) -> float:
    """Cubic convolution (Keys 1981)."""
    x = abs(x)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def _linear(ratio: float, scale: float) -> np.ndarray:
    return np.array([1 - ratio, ratio])


def _linear_antialias(ratio: float, scale: float) -> np.ndarray:
    scale = min(scale, 1.0)
    start = math.floor(-1 / scale) + 1
    return _normal(np.clip(1 - np.abs((np.arange(start, 2 - start) - ratio) * scale), 0, 1))


def _nearest(mode: str) -> Weights:
    def weights(ratio: float, scale: float) -> np.ndarray:
        if ratio == 1.0:
            return np.array([0.0, 1.0])
        second = {"round_prefer_floor": ratio > 0.5, "round_prefer_ceil": ratio >= 0.5, "floor": False, "ceil": True}
        if mode not in second:
            raise Refused(f"the nearest_mode {mode}", broken=True)
        return np.array([0.0, 1.0]) if second[mode] else np.array([1.0, 0.0])

    return weights


def _origin(i: int, axis: _Axis, mode: str) -> float:
    """Where element ``i`` of the result lies in x."""
    size, result = int(axis.size), int(axis.result)  # type: ignore[arg-type]
    width = axis.scale * size
    if mode == "align_corners":
        return 0.0 if width == 1 else i * (size - 1) / (width - 1)
    if mode == "asymmetric":
        return i / axis.scale
    if mode == "tf_crop_and_resize":
        span = axis.end - axis.start
        first = span * (size - 1) / 2 if width == 1 else i * span * (size - 1) / (width - 1)
        return first + axis.start * (size - 1)
    if mode == "tf_half_pixel_for_nn":
        return (i + 0.5) / axis.scale
    half = (i + 0.5) / axis.scale - 0.5
    if mode == "pytorch_half_pixel":
        return -0.5 if width == 1 else half
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - result / width) + half
    if mode == "half_pixel":
        return half
    raise Refused(f"the coordinate_transformation_mode {mode}", broken=True)


def _taps(axis: _Axis, mode: str, weights: Weights, exclude: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and weights ``[result, taps]``, and which elements lie within x."""
    size, result = int(axis.size), int(axis.result)  # type: ignore[arg-type]
    if size == 0:
        raise Refused("an axis of size 0 is resized", broken=True)
    at: list[np.ndarray] = []
    by: list[np.ndarray] = []
    inside = np.ones(result, bool)
    for i in range(result):
        x = _origin(i, axis, mode)
        if mode == "tf_crop_and_resize" and not 0 <= x <= size - 1:
            inside[i] = False
        low = math.floor(x)
        ratio = 1.0 if x == low else x - low
        w = weights(ratio, axis.scale)
        # the nearest positions; of equally near ones the smaller comes first
        half = len(w) // 2
        first = (low - half) if ratio == 1.0 else low - half + 1
        places = np.arange(first, first + len(w))
        if exclude:
            w = np.where((places < 0) | (places >= size), 0.0, w)
            w = _normal(w)
        at.append(np.clip(places, 0, size - 1))
        by.append(w)
    most = max(map(len, at), default=1)
    return (
        np.array([np.pad(a, (0, most - len(a)), mode="edge") for a in at], np.int64).reshape(result, most),
        np.array([np.pad(w, (0, most - len(w))) for w in by]).reshape(result, most),
        inside,
    )


def interpolated(x: Tensor, axis: int, at: np.ndarray, by: np.ndarray) -> Tensor:
    """``sum over k of by[i, k] * x[…, at[i, k], …]``."""
    if ((by == 0) | (by == 1)).all() and (by.sum(1) == 1).all():
        chosen = at[np.arange(len(at)), by.argmax(1)]
        return x if len(chosen) == x.shape[axis] and (chosen == np.arange(len(chosen))).all() else emit(x, ops.Gather(axis), as_tensor(chosen))
    used = (by != 0).any(0)
    at, by = at[:, used], by[:, used]
    taps = emit(x, ops.Gather(axis), as_tensor(np.ascontiguousarray(at)))
    weights = as_tensor(np.ascontiguousarray(by).astype(x.dtype.numpy)).reshape(*by.shape, *(1,) * (x.ndim - axis - 1))
    return emit(taps * weights, ops.ReduceSum((axis + 1,)))


def _symbolic(x: Tensor, number: int, axis: _Axis, mode: str, kind: str, nearest: str) -> Tensor:
    """Nearest or linear along an axis whose size only the run knows."""
    size = as_tensor(axis.size, DType.i64)
    i = arange(axis.result).to(DType.f64)
    scale = fixed(axis.scale, DType.f64)
    if mode == "asymmetric":
        at = i / scale
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        at = (i + 0.5) / scale - 0.5
    elif mode == "align_corners":
        last = as_tensor(axis.result, DType.i64).to(DType.f64) - 1.0
        at = i * ((size.to(DType.f64) - 1.0) / last.maximum(1.0))
    else:
        raise Refused(f"the coordinate_transformation_mode {mode} along a symbolic axis", "give that axis a fixed size")
    low = at.floor()
    ratio = at - low

    def place(t: Tensor) -> Tensor:
        return t.to(DType.i64).clamp(0, None).minimum(size - 1)

    if kind == "nearest":
        up = {"round_prefer_floor": ratio > 0.5, "round_prefer_ceil": ratio >= 0.5, "floor": ratio < 0.0, "ceil": ratio > 0.0}[nearest]
        return emit(x, ops.Gather(number), place(where(up, low + 1.0, low)))
    if kind != "linear":
        raise Refused(f"resizing by '{kind}' along a symbolic axis", "give that axis a fixed size")
    ratio = ratio.to(x.dtype).reshape(-1, *(1,) * (x.ndim - number - 1))
    a, b = emit(x, ops.Gather(number), place(low)), emit(x, ops.Gather(number), place(low + 1.0))
    return a * (1.0 - ratio) + b * ratio


@onnx_op("Resize", "Upsample")
def _resize(n: Node) -> Tensor:
    x = n.t(0)
    kind = n.attr("mode", "nearest")
    kind = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(kind, kind)
    old = n.op == "Upsample" or n.version < 11
    mode = "asymmetric" if old else n.attr("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else n.attr("nearest_mode", "round_prefer_floor")
    extrapolation = float(n.attr("extrapolation_value", 0.0))
    axes = [n.place(a, x.ndim) for a in n.ints("axes", range(x.ndim)) or []]
    rows = _axes(n, x, axes, old, mode)
    antialias = bool(n.attr("antialias", 0))
    cubic = float(n.attr("cubic_coeff_a", -0.75))
    table: dict[str, Any] = {
        "nearest": _nearest(nearest),
        "linear": _linear_antialias if antialias else _linear,
        "cubic": _cubic_antialias(cubic) if antialias else _cubic(cubic),
    }
    n.require(kind in table, f"the mode {kind}")
    y = widened(x) if x.dtype.is_float else x if kind == "nearest" else x.to(DType.f32)
    outside: Tensor | None = None
    for number, axis in sorted(rows.items()):
        if n.same(axis.size, axis.result) and axis.scale == 1.0 and mode != "tf_crop_and_resize":
            continue
        if isinstance(axis.size, SymExpr) or isinstance(axis.result, SymExpr):
            y = _symbolic(y, number, axis, mode, kind, nearest)
            continue
        if axis.scale != axis.scale or not 0 < axis.scale < math.inf or not math.isfinite(axis.start + axis.end):
            raise Refused(f"the scale {axis.scale} of a region {axis.start} .. {axis.end}", broken=True)
        reach = 4.0 / min(axis.scale, 1.0) if antialias else 4.0
        n.reader.budget.makes(8.0 * int(axis.result) * reach, f"resizing {axis.size} to {axis.result}")
        at, by, inside = _taps(axis, mode, table[kind], bool(n.attr("exclude_outside", 0)))
        y = interpolated(y, number, at, by)
        if not inside.all():
            mask = as_tensor(~inside).reshape(-1, *(1,) * (x.ndim - number - 1))
            outside = mask if outside is None else outside | mask
    if outside is not None:
        y = where(outside, fixed(extrapolation, y.dtype), y)
    if not x.dtype.is_float and y.dtype.is_float:
        y = y.clamp(float(x.dtype.min), float(x.dtype.max))
    return y.to(x.dtype)


def _axes(n: Node, x: Tensor, axes: list[int], old: bool, mode: str) -> dict[int, _Axis]:
    if n.op == "Upsample" and n.version < 9:
        scales: list[float] | None = [float(s) for s in n.attr("scales")]
        sizes: list[Dim] | None = None
        roi: list[float] = []
    else:
        where_ = 1 if old else 2
        given = n.has(where_) and n.item(where_).shape != (0,)
        scales = [float(s) for s in n.const(where_).reshape(-1)] if given else None
        sizes = n.dims(3) if scales is None and n.has(3) else None
        roi = [float(r) for r in n.const(1).reshape(-1)] if mode == "tf_crop_and_resize" and n.has(1) else []
    n.require(scales is not None or sizes is not None, "there are neither scales nor sizes")
    count = len(axes)
    n.require(len(scales if scales is not None else sizes or []) == count, "scales or sizes do not fit the axes")
    out: dict[int, _Axis] = {}
    policy = n.attr("keep_aspect_ratio_policy", "stretch")
    if sizes is not None and policy != "stretch":
        known = [(int(s), x.shape[a]) for s, a in zip(sizes, axes, strict=True)]  # type: ignore[arg-type]
        if any(isinstance(d, SymExpr) for _, d in known):
            raise Refused("keeping the aspect ratio of symbolic sizes", "give those axes fixed sizes")
        ratios = [s / d for s, d in known]  # type: ignore[operator]
        scale = min(ratios) if policy == "not_larger" else max(ratios)
        sizes = [int(scale * d + 0.5) for _, d in known]  # type: ignore[operator]
        scales = [scale] * count
    for i, a in enumerate(axes):
        size = x.shape[a]
        if sizes is not None:
            result = sizes[i]
            if scales is not None:
                scale = scales[i]
            elif isinstance(size, int) and isinstance(result, int):
                scale = result / size if size else 1.0
            else:
                scale = _ratio(n, result, size)
        else:
            assert scales is not None
            scale = scales[i]
            n.require(scale > 0 and math.isfinite(scale), f"the scale {scale}")
            if isinstance(size, int):
                result = math.floor(size * scale)
            elif scale == int(scale):
                result = size * int(scale)
            elif 1 / scale == round(1 / scale):
                result = floordiv(size, round(1 / scale))
            else:
                raise Refused(f"an axis of the symbolic size {size} times {scale}", "give that axis a fixed size")
        start, end = (roi[i], roi[i + count]) if len(roi) == 2 * count else (0.0, 1.0)
        out[a] = _Axis(size, result, scale, start, end)
    return out


def _ratio(n: Node, result: Dim, size: Dim) -> float:
    """A constant ratio of two dims."""
    for k in range(1, 65):
        if n.same(result, size * k):
            return float(k)
        if n.same(result * k, size):
            return 1.0 / k
    raise Refused(f"resizing {size} to {result}: their ratio is no constant", "give that axis a fixed size")
