"""Elementwise ops, comparisons and data movement of MIL in numpy: as coremltools' reference says of each. Behind ``numpy_ops.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Run = Callable[..., Any]
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "bool": np.bool_}


def wide(x: Any) -> Any:
    """Numbers of 16 bits as those of 32: inside of an op they are wider, what it makes is rounded."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _one(how: Callable[[Any], Any]) -> Run:
    return lambda x: how(wide(x))


def _two(how: Callable[[Any, Any], Any]) -> Run:
    return lambda x, y: how(wide(x), wide(y))


def _cast(x: Any, dtype: Any) -> Any:
    return np.asarray(x).astype(DTYPES[str(dtype)])


def _log(x: Any, epsilon: Any = 1e-45) -> Any:
    return np.log(wide(x) + wide(epsilon))


def _select(cond: Any, a: Any, b: Any) -> Any:
    return np.where(np.asarray(cond), a, b)


def _reshape(x: Any, shape: Any) -> Any:
    """0 keeps a size."""
    x = np.asarray(x)
    return x.reshape([x.shape[a] if n == 0 else int(n) for a, n in enumerate(np.atleast_1d(shape))])


def _expand_dims(x: Any, axes: Any) -> Any:
    return np.expand_dims(np.asarray(x), tuple(int(a) for a in np.atleast_1d(axes)))


def _squeeze(x: Any, axes: Any = None) -> Any:
    return np.squeeze(np.asarray(x), None if axes is None else tuple(int(a) for a in np.atleast_1d(axes)))


def _concat(values: Sequence[Any], axis: Any, interleave: Any = False) -> Any:
    assert not interleave
    return np.concatenate([np.atleast_1d(v) for v in values], int(axis))


def _slice_by_index(
    x: Any, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> Any:  # fmt: skip
    picks: list[Any] = []
    for a in range(np.ndim(x)):
        step = 1 if stride is None else int(stride[a])
        first = None if begin_mask is not None and begin_mask[a] else int(begin[a])
        after = None if end_mask is not None and end_mask[a] else int(end[a])
        picks.append(int(begin[a]) if squeeze_mask is not None and squeeze_mask[a] else slice(first, after, step))
    return np.asarray(x)[tuple(picks)]


def _slice_by_size(x: Any, begin: Any, size: Any) -> Any:
    return np.asarray(x)[tuple(slice(int(b), None if int(n) == -1 else int(b) + int(n)) for b, n in zip(begin, size, strict=True))]


def _gather(x: Any, indices: Any, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> Any:
    x, indices, axis, batch = np.asarray(x), np.asarray(indices), int(axis), int(batch_dims)
    axis = axis + x.ndim if axis < 0 else axis
    if not batch:
        return np.take(x, indices, axis)
    rows = [np.take(x[at], indices[at], axis - batch) for at in np.ndindex(x.shape[:batch])]
    return np.stack(rows).reshape(*x.shape[:batch], *rows[0].shape)


def _range(start: Any, end: Any, step: Any) -> Any:
    return np.arange(np.asarray(start).item(), np.asarray(end).item(), np.asarray(step).item())


PLAIN: Mapping[str, Run] = {
    "add": _two(np.add), "sub": _two(np.subtract), "mul": _two(np.multiply), "real_div": _two(np.true_divide), "pow": _two(np.power),
    "maximum": _two(np.maximum), "minimum": _two(np.minimum), "less": _two(np.less), "less_equal": _two(np.less_equal),
    "greater": _two(np.greater), "greater_equal": _two(np.greater_equal), "equal": _two(np.equal), "not_equal": _two(np.not_equal),
    "floor_div": _two(np.floor_divide), "mod": _two(np.mod),
    "logical_and": _two(np.logical_and), "logical_or": _two(np.logical_or), "logical_xor": _two(np.logical_xor), "logical_not": _one(np.logical_not),
    "abs": _one(np.abs), "sign": _one(np.sign), "sqrt": _one(np.sqrt), "exp": _one(np.exp), "exp2": _one(np.exp2), "tanh": _one(np.tanh),
    "sin": _one(np.sin), "cos": _one(np.cos), "floor": _one(np.floor), "ceil": _one(np.ceil), "square": _one(np.square),
    "relu": _one(lambda x: np.where(x > 0, x, 0 * x)), "log": _log, "cast": _cast, "select": _select, "reshape": _reshape,
    "expand_dims": _expand_dims, "squeeze": _squeeze, "concat": _concat, "slice_by_index": _slice_by_index, "slice_by_size": _slice_by_size,
    "gather": _gather, "range_1d": _range,
    "transpose": lambda x, perm: np.transpose(np.asarray(x), [int(p) for p in perm]),
    "tile": lambda x, reps: np.tile(np.asarray(x), [int(n) for n in reps]),
    "stack": lambda values, axis: np.stack(list(values), int(axis)),
    "shape": lambda x, output_dtype=None: np.array(np.shape(x), np.int32),
    "fill": lambda shape, value=0.0: np.full([int(n) for n in shape], value),
    "gather_along_axis": lambda x, indices, axis=0, validate_indices=False: np.take_along_axis(np.asarray(x), np.asarray(indices), int(axis)),
}  # fmt: skip
