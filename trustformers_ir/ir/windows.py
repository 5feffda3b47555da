"""Pooling and convolutions over any number of axes, made of ``unfold``, reductions and ``conv``. Frontends and models call these.

x is ``[B, C, …]``; every option has one entry per window axis. ``before`` and ``after`` are what is added at the two ends of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trustformers_ir.ir import ops
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.dims import Dim, SymExpr
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import arange
from trustformers_ir.ir.ops import Window
from trustformers_ir.ir.tensor import Tensor, aligned, as_tensor
from trustformers_ir.ir.tracing import trace_error

Windows = Sequence[Window]


@dataclass(frozen=True)
class Pooled:
    """The largest elements, and where each of them is along every window axis (i64, counted from 0 in x)."""

    values: Tensor
    places: tuple[Tensor, ...]


def with_ceiling(x: Any, windows: Windows) -> tuple[Window, ...]:
    """The windows with so much more after x that a window which fits in part counts, as long as it begins in x or what is added before it
    (``ceil_mode`` of torch and ONNX)."""
    y = as_tensor(x)
    out: list[Window] = []
    for w, size in zip(windows, y.shape[y.ndim - len(windows) :], strict=True):
        if isinstance(size, SymExpr):
            if w.after + w.stride - 1 >= w.span and w.stride > 1:
                message = f"rounding up the places of {w} along an axis of symbolic size {size}"
                raise trace_error(Code.TRACE_UNSUPPORTED, message, "give that axis a fixed size")
            out.append(replace(w, after=w.after + w.stride - 1))
            continue
        places = -(-(size + w.before + w.after - w.span) // w.stride) + 1
        if (places - 1) * w.stride >= size + w.before:
            places -= 1
        out.append(replace(w, after=max(w.after, (places - 1) * w.stride + w.span - size - w.before)))
    return tuple(out)


def unfold(x: Any, windows: Windows, value: float = 0.0) -> Tensor:
    """``[…, places…, window…]``: see the op ``unfold``."""
    return as_tensor(x)._emit(ops.Unfold(tuple(windows), value))


def _window_axes(y: Tensor, windows: Windows) -> tuple[int, ...]:
    return tuple(range(y.ndim - len(windows), y.ndim))


def _lowest(dtype: DType) -> float:
    return float("-inf") if dtype.is_float else float(dtype.min)


def max_pool(x: Any, windows: Windows) -> Tensor:
    """The largest element of every window; what is added around x is smaller than all."""
    y = unfold(x, windows, _lowest(as_tensor(x).dtype))
    return y._emit(ops.ReduceMax(_window_axes(y, windows)))


def max_pool_places(x: Any, windows: Windows) -> Pooled:
    """``max_pool`` with the place of the first largest element of every window."""
    t = as_tensor(x)
    y = unfold(t, windows, _lowest(t.dtype))
    n = len(windows)
    values = y._emit(ops.ReduceMax(_window_axes(y, windows)))
    taps = y.reshape(*y.shape[: y.ndim - n], int(np.prod([w.size for w in windows])))
    best = taps.argmax(-1)
    places: list[Tensor] = []
    inner = 1
    for i in reversed(range(n)):
        w, size = windows[i], t.shape[t.ndim - n + i]
        tap = best // inner % w.size
        inner *= w.size
        at = arange(best.shape[best.ndim - n + i]).reshape(-1, *(1,) * (n - 1 - i)) * w.stride + tap * w.dilation - w.before
        places.append(at.clamp(0, None).minimum(as_tensor(size, DType.i64) - 1))  # only a window of nothing but padding leaves x
    return Pooled(values, tuple(reversed(places)))


def sum_pool(x: Any, windows: Windows) -> Tensor:
    """The sum over every window, zero outside of x."""
    y = unfold(x, windows)
    return y._emit(ops.ReduceSum(_window_axes(y, windows)))


def avg_pool(x: Any, windows: Windows, include_padding: bool = False, ceiling: bool = False) -> Tensor:
    """The mean of every window over its elements in x; with ``include_padding`` what is added counts as zeros, but never what ``ceiling``
    (``with_ceiling``) adds."""
    t = as_tensor(x)
    moved = with_ceiling(t, windows) if ceiling else tuple(windows)
    sizes = t.shape[t.ndim - len(windows) :]
    if include_padding:
        sizes = tuple(s + w.before + w.after for s, w in zip(sizes, windows, strict=True))
        counted = tuple(replace(m, before=0, after=m.after - w.after) for m, w in zip(moved, windows, strict=True))
    else:
        counted = moved
    total = sum_pool(t, moved)
    wide = DType.f32 if t.dtype in (DType.f16, DType.bf16) else t.dtype
    count = sum_pool(as_tensor(1.0, wide).expand(*sizes), counted)
    return (total.to(wide) / count).to(t.dtype)


def lp_pool(x: Any, windows: Windows, p: float) -> Tensor:
    """``(sum |x|^p)^(1/p)`` over every window."""
    t = as_tensor(x)
    if p == 1:
        return sum_pool(t.abs(), windows)
    if p == 2:
        return sum_pool(t * t, windows).sqrt()
    return sum_pool(t.abs() ** p, windows) ** (1.0 / p)


def conv(x: Any, weight: Any, bias: Any, windows: Windows, groups: int = 1) -> Tensor:
    """Cross-correlation of ``[B, C, …]`` with ``[O, C / groups, …]``; sizes of the windows are those of the weight."""
    given = [t for t in (bias,) if t is not None]
    y, w, *rest = aligned(x, weight, *given)
    stride, before, after, dilation = zip(*((v.stride, v.before, v.after, v.dilation) for v in windows), strict=True)
    return y._emit(ops.Conv(stride, before, after, dilation, groups), w, rest[0] if rest else None)


def conv_transpose(x: Any, weight: Any, bias: Any, windows: Windows, groups: int = 1, extra: Sequence[int] | None = None) -> Tensor:
    """The transpose of ``conv`` as a linear map: x is ``[B, C, …]``, weight ``[C, O / groups, …]``, the result
    ``(size - 1) * stride + span - before - after + extra`` long.

    Computed as the convolution, by the mirrored weight, of x with ``stride - 1`` zeros between its elements.
    """
    y, w = aligned(x, weight)
    channels, per_group, *sizes = w.shape
    turned = w.reshape(groups, channels // groups, per_group, *sizes).transpose(1, 2)
    turned = turned.reshape(per_group * groups, channels // groups, *sizes).flip(*range(2, w.ndim))
    flat: list[Window] = []
    for i, v in enumerate(windows):
        axis = i + 2
        y = _spread(y, axis, v.stride)
        before, after = v.span - 1 - v.before, v.span - 1 - v.after + (extra[i] if extra else 0)
        low, high = max(0, -before), max(0, -after)
        if low or high:
            y = y.narrow(axis, low, y.shape[axis] - low - high)
        flat.append(Window(v.size, 1, max(0, before), max(0, after), v.dilation))
    return conv(y, turned, bias, flat, groups)


def _spread(x: Tensor, axis: int, stride: int) -> Tensor:
    """``stride - 1`` zeros between the elements along an axis."""
    if stride == 1:
        return x
    size = x.shape[axis]
    column = x.unsqueeze(axis + 1)
    zeros: tuple[Dim, ...] = (0,) * column.ndim
    high = (*zeros[: axis + 1], stride - 1, *zeros[axis + 2 :])
    spaced = column._emit(ops.Pad(zeros, high)).reshape(*x.shape[:axis], size * stride, *x.shape[axis + 1 :])
    return spaced.narrow(axis, 0, (size - 1) * stride + 1)
