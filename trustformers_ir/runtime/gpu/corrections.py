"""Triton's interpreter where it computes what hardware does: it rounds bf16 by cutting bits off, computes with bf16 as if they were integers, takes
what a comparison gives for what it compared, looks for maxima without NaN being one, and knows nothing of libdevice. Versions before 3.9, which the
code for GPUs itself can be made with, also round ``fma`` twice there.

Triton is imported when the first of these is asked for, not before.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@functools.cache
def _patches() -> tuple[tuple[Any, str, Any], ...]:
    """Class, name of the method, and what stands in for it."""
    import ml_dtypes
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

    binary, cast, reduce = InterpreterBuilder.binary_op, InterpreterBuilder.cast_impl, ReduceOps.apply_impl
    combines: dict[str, Callable[..., np.ndarray]] = {"maximum": np.max, "minimum": np.min, "product": np.prod}

    def as_numbers(handle: Any) -> np.ndarray:
        data: np.ndarray = handle.data
        return data.view(ml_dtypes.bfloat16).astype(np.float32) if handle.dtype.scalar == tl.bfloat16 else data

    def cast_rounded(self: Any, src: Any, to: Any) -> Any:
        old, new = src.dtype.scalar, to.scalar
        if tl.bfloat16 in (old, new) and old != new:
            data = as_numbers(src)
            with np.errstate(all="ignore"):
                if new == tl.bfloat16:
                    return TensorHandle(np.ascontiguousarray(data.astype(np.float32).astype(ml_dtypes.bfloat16)).view(np.uint16), new)
                return TensorHandle(data.astype(interpreter._get_np_dtype(new)), new)
        with np.errstate(all="ignore"):
            return cast(self, src, to)

    def compared(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar == rhs.dtype.scalar == tl.bfloat16:
            out = binary(self, *(TensorHandle(as_numbers(h).astype(np.float32), tl.float32) for h in (lhs, rhs)), op)
            return TensorHandle(out.data, tl.int1) if out.data.dtype == np.bool_ else cast_rounded(self, out, tl.bfloat16)
        out = binary(self, lhs, rhs, op)
        return TensorHandle(out.data, tl.int1) if out.data.dtype == np.bool_ else out

    def fp_to_fp(self: Any, src: Any, to: Any, rounding: Any) -> Any:
        return cast_rounded(self, src, to)

    def dot_of_numbers(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        x, y = (h.data.astype(np.int32) if h.dtype.scalar.is_int() else as_numbers(h).astype(np.float32) for h in (a, b))
        with np.errstate(all="ignore"):
            return TensorHandle(np.matmul(x, y, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    def reduced(self: Any, input: Any) -> Any:
        name = getattr(getattr(self.combine_fn, "fn", self.combine_fn), "__name__", "")
        if name in combines:
            (x,) = input
            with np.errstate(all="ignore"):
                data = combines[name](x.handle.data, axis=self.axis, keepdims=self.keep_dims)
            return self.to_tensor(np.asarray(data, x.handle.data.dtype), x.dtype)
        return reduce(self, input)

    return (
        (InterpreterBuilder, "binary_op", compared),
        (InterpreterBuilder, "cast_impl", cast_rounded),
        (InterpreterBuilder, "create_fp_to_fp", fp_to_fp),
        (InterpreterBuilder, "create_dot", dot_of_numbers),
        (ReduceOps, "apply_impl", reduced),
    )


@contextlib.contextmanager
def corrected() -> Iterator[None]:
    """Inside, the interpreter computes as hardware does."""
    old = [(where, name, getattr(where, name)) for where, name, _ in _patches()]
    for where, name, new in _patches():
        setattr(where, name, new)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        for where, name, was in old:
            setattr(where, name, was)


class Libdevice:
    """The functions of libdevice, by the C library."""

    _NUMPY = {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        known: dict[str, Any] = {"pow": np.power, "atan2": np.arctan2, "erf": np.vectorize(math.erf, otypes=[np.float64]), **self._NUMPY}
        return _elementwise(known.get(name) or getattr(np, name))


def _elementwise(f: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl
    from triton.runtime import interpreter

    def call(*args: Any) -> Any:
        tensors = [a if isinstance(a, tl.core.tensor) else interpreter.interpreter_semantic.to_tensor(a) for a in args]
        data = np.broadcast_arrays(*(t.handle.data for t in tensors))
        with np.errstate(all="ignore"):
            out = np.asarray(f(*data)).astype(data[0].dtype)
        like = max(tensors, key=lambda t: t.handle.data.ndim)
        return tl.core.tensor(interpreter.TensorHandle(out, like.dtype.scalar), like.type)

    return call
