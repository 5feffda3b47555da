"""Ops of MIL in numpy, by their names: products, norms, reductions, scatters, weights in codes; the plain ones are in ``numpy_plain.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.coreml.numpy_plain import PLAIN, wide
from trustformers_ir.ir.diagnostics import Code, CompilerError


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    x, y = wide(x), wide(y)
    return np.matmul(np.swapaxes(x, -1, -2) if transpose_x else x, np.swapaxes(y, -1, -2) if transpose_y else y)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = np.matmul(wide(x), wide(weight).T)
    return y if bias is None else y + wide(bias)


def _conv(
    x: Any, weight: Any, bias: Any = None, strides: Any = None, pad_type: Any = "valid", pad: Any = None, dilations: Any = None, groups: Any = 1
) -> Any:  # fmt: skip
    """Windows of the padded input times the weights, group by group."""
    x, weight = wide(x), wide(weight)
    axes = x.ndim - 2
    strides = [1] * axes if strides is None else [int(s) for s in strides]
    dilations = [1] * axes if dilations is None else [int(d) for d in dilations]
    if pad_type not in ("custom", "valid"):
        raise CompilerError.of(Code.NOT_BUILT, f"the evaluator of Core ML packages does not know padding '{pad_type}'")
    pads = [int(p) for p in pad] if pad is not None and pad_type == "custom" else [0] * (2 * axes)
    x = np.pad(x, [(0, 0), (0, 0), *((pads[2 * a], pads[2 * a + 1]) for a in range(axes))])
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + axes)))
    picks = (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    views, outputs, groups = views[picks], len(weight), int(groups)
    inner, kernel = "xyz"[:axes], "uvw"[:axes]
    made = [
        np.einsum(f"nc{inner}{kernel},oc{kernel}->no{inner}", part, w, optimize=True)
        for part, w in zip(np.split(views, groups, axis=1), np.split(weight, groups), strict=True)
    ]  # fmt: skip
    y = np.concatenate(made, axis=1)
    return y if bias is None else y + wide(bias).reshape(outputs, *[1] * axes)


def _layer_norm(x: Any, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> Any:
    x = wide(x)
    over = tuple(int(a) for a in axes) if axes is not None else tuple(range(x.ndim))
    off = x - x.mean(over, keepdims=True)
    y = off / np.sqrt(np.mean(off * off, over, keepdims=True) + wide(epsilon))
    y = y if gamma is None else y * wide(gamma)
    return y if beta is None else y + wide(beta)


def _softmax(x: Any, axis: Any = -1) -> Any:
    x = wide(x)
    power = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return power / power.sum(axis=int(axis), keepdims=True)


def _silu(x: Any) -> Any:
    x = wide(x)
    return x / (1 + np.exp(-x))


def _reduced(how: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any, axes: Any = None, keep_dims: Any = False) -> Any:
        over = None if axes is None else tuple(int(a) for a in np.atleast_1d(axes))
        return np.asarray(how(wide(x), axis=over, keepdims=bool(keep_dims)))

    return run


def _log_sum_exp(x: np.ndarray, axis: Any, keepdims: bool) -> Any:
    top = x.max(axis=axis, keepdims=True)
    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis=axis)


def _placed(data: Any, indices: Any, updates: Any, mode: Any) -> Any:
    """``indices``: a tuple of arrays, one for each axis that is named."""
    y = np.array(data)
    how = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum, "sub": np.subtract, "div": np.divide}.get(mode)
    if how is None:
        y[indices] = updates
    else:
        how.at(y, indices, updates)
    return y


def _scatter_nd(data: Any, indices: Any, updates: Any, mode: Any = "add", validate_indices: Any = False) -> Any:
    return _placed(data, tuple(np.moveaxis(np.asarray(indices), -1, 0)), updates, mode)


def _scatter_along_axis(
    data: Any, indices: Any, updates: Any, axis: Any = 0, mode: Any = "add", validate_indices: Any = False
) -> Any:  # fmt: skip
    at = list(np.ix_(*(np.arange(n) for n in np.shape(indices))))
    at[int(axis)] = indices
    return _placed(data, tuple(at), updates, mode)


def _slice_update(
    x: Any, update: Any, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> Any:  # fmt: skip
    """Refuses what lies outside, where a slice of numpy would be shorter."""
    y = np.array(x)
    if stride is not None or squeeze_mask is not None:
        raise CompilerError.of(Code.NOT_BUILT, "the evaluator of Core ML packages does not know steps in 'slice_update'")
    places = []
    for axis, size in enumerate(y.shape):
        first = 0 if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        after = size if end_mask is not None and end_mask[axis] else int(end[axis])
        if not 0 <= first <= after <= size:
            raise CompilerError.of(Code.INDEX_OUT_OF_RANGE, f"places {first} to {after} are written of {size}")
        places.append(slice(first, after))
    y[tuple(places)] = update
    return y


def _gather_nd(x: Any, indices: Any, batch_dims: Any = 0, validate_indices: Any = False) -> Any:
    batch, x, indices = int(batch_dims), np.asarray(x), np.asarray(indices)
    steps = indices.ndim - 1 - batch
    front = [np.arange(n).reshape(*(-1 if a == b else 1 for b in range(batch)), *[1] * steps) for a, n in enumerate(x.shape[:batch])]
    return np.asarray(x[(*front, *np.moveaxis(indices, -1, 0))])


def _top_k(
    x: Any, k: Any = 1, axis: Any = -1, ascending: Any = False, sort: Any = True, return_indices: Any = True, output_indices_dtype: Any = None
) -> Any:  # fmt: skip
    x, axis = np.asarray(x), int(axis)
    order = np.argsort(x if ascending else -wide(x).astype(np.float64), axis=axis, kind="stable")
    order = np.take(order, np.arange(int(k)), axis=axis)
    found = np.take_along_axis(x, order, axis)
    return (found, order) if return_indices else (found,)


def _cumsum(x: Any, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Any:
    x, axis = wide(x), int(axis)
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis, dtype=x.dtype)
    y = y - x if exclusive else y
    return np.flip(y, axis) if reverse else y


def _gelu(x: Any, mode: Any = "EXACT") -> Any:
    x = wide(x)
    if mode == "EXACT":
        return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / np.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-1.702 * x))


def _affine_dequantized(quantized_data: Any, zero_point: Any, scale: Any, axis: Any) -> Any:
    """``(q - zero) * scale``, with a scale for each position of an axis."""
    q = np.asarray(quantized_data)
    spread = [1] * q.ndim
    spread[int(axis)] = -1
    zero, scale = (np.asarray(v).reshape(spread) if np.ndim(v) else np.asarray(v) for v in (zero_point, scale))
    return (q.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


def _spread(x: Any, shape: tuple[int, ...]) -> Any:
    """An entry for each block of an array as one for each element."""
    x = np.asarray(x)
    for axis, size in enumerate(shape):
        x = np.repeat(x, size // x.shape[axis], axis)
    return x


def _shift_scale(data: Any, scale: Any, offset: Any = None) -> Any:
    """``scale * (data - offset)``, with an entry for each block."""
    codes, scale = np.asarray(data).astype(np.float32), np.asarray(scale)
    codes = codes if offset is None else codes - _spread(offset, codes.shape).astype(np.float32)
    return _spread(scale, codes.shape).astype(np.float32) * codes


def _looked_up(indices: Any, lut: Any, vector_axis: Any = None) -> Any:
    """``lut``: for each block of ``indices`` its palette, ``[…, numbers, 1]``."""
    i, lut = np.asarray(indices).astype(np.int64), np.asarray(lut)
    if lut.shape[-1] != 1:
        raise CompilerError.of(Code.NOT_BUILT, "the evaluator of Core ML packages does not know palettes of vectors")
    places = []
    for axis, count in enumerate(lut.shape[:-2]):
        alone = [-1 if a == axis else 1 for a in range(i.ndim)]
        places.append(np.repeat(np.arange(count), i.shape[axis] // count).reshape(alone))
    return lut[(*np.broadcast_arrays(*places, i), np.zeros((), np.int64))]


NUMPY: Mapping[str, Callable[..., Any]] = {
    **PLAIN,
    "matmul": _matmul, "linear": _linear, "conv": _conv, "layer_norm": _layer_norm, "softmax": _softmax, "silu": _silu, "gelu": _gelu,
    "reduce_sum": _reduced(np.sum), "reduce_mean": _reduced(np.mean), "reduce_max": _reduced(np.max), "reduce_min": _reduced(np.min),
    "reduce_prod": _reduced(np.prod), "reduce_log_sum_exp": _reduced(_log_sum_exp), "scatter_nd": _scatter_nd, "gather_nd": _gather_nd,
    "slice_update": _slice_update, "scatter_along_axis": _scatter_along_axis, "topk": _top_k, "constexpr_affine_dequantize": _affine_dequantized,
    "constexpr_blockwise_shift_scale": _shift_scale, "constexpr_lut_to_dense": _looked_up,
    "identity": lambda x: x, "cumsum": _cumsum,
    "reduce_argmax": lambda x, axis=-1, keep_dims=False, output_dtype=None: np.argmax(x, axis=int(axis), keepdims=bool(keep_dims)),
    "reduce_argmin": lambda x, axis=-1, keep_dims=False, output_dtype=None: np.argmin(x, axis=int(axis), keepdims=bool(keep_dims)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-wide(x))),
    "softplus": lambda x: np.logaddexp(0, wide(x)),
    "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: np.clip(wide(x) * wide(alpha) + wide(beta), 0, 1),
}  # fmt: skip
