"""Tensors made of nothing but sizes and numbers."""

from __future__ import annotations

from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, aten, constant, filled
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import SymExpr
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.tensor import Tensor, as_tensor


@aten("full", "full_like", "new_full")
def full(c: Call, *args: Any, **_: Any) -> Tensor:
    value = args[-1] if len(args) > 1 else _.get("fill_value")
    return filled(c, value, c.shape, c.dtype)


@aten("fill.Scalar", "fill.Tensor")
def fill(c: Call, x: Tensor, value: Any) -> Tensor:
    return filled(c, value, c.shape, c.dtype)


@aten("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
@aten("_efficientzerotensor", "zero")
def zeros(c: Call, *_: Any, **__: Any) -> Tensor:
    """``empty`` too: whoever reads what nobody wrote gets zeros."""
    return filled(c, 0, c.shape, c.dtype)


@aten("ones", "ones_like", "new_ones")
def ones(c: Call, *_: Any, **__: Any) -> Tensor:
    return filled(c, 1, c.shape, c.dtype)


@aten("scalar_tensor")
def scalar_tensor(c: Call, value: Any, **_: Any) -> Tensor:
    return as_tensor(value, c.dtype)


@aten("arange", "arange.start", "arange.start_step", "prims.iota.default")
def arange(c: Call, *args: Any, **named: Any) -> Tensor:
    """``start + step * i``, in f64 or i64, as torch computes it."""
    start, step = _progression(c, args, named)
    if c.dtype.is_integer:  # torch makes whole numbers of both first
        start, step = (int(v) if isinstance(v, float) else v for v in (start, step))
    (n,) = c.shape
    numbers = [start, step]
    if all(isinstance(v, (int, SymExpr)) for v in numbers) and not c.dtype.is_float:
        x = F.arange(n)
    elif any(isinstance(v, Tensor) for v in numbers):
        x = F.arange(n).to(DType.f64)
    else:
        x = F.arange(n).to(DType.f64)
    x = x if isinstance(step, int) and step == 1 else x * (step.to(DType.f64) if isinstance(step, Tensor) else step)
    x = x if isinstance(start, int) and start == 0 else x + (start.to(DType.f64) if isinstance(start, Tensor) else start)
    return x.to(c.dtype)


def _progression(c: Call, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    if c.name.startswith("prims"):
        return named.get("start", 0), named.get("step", 1)
    if c.name == "arange.default":
        return 0, 1
    return args[0], (args[2] if len(args) > 2 else named.get("step", 1))


@aten("linspace", "linspace.Tensor_Tensor", "linspace.Tensor_Scalar", "linspace.Scalar_Tensor")
def linspace(c: Call, start: Any, end: Any, steps: int, **_: Any) -> Tensor:
    """From the nearer end, as torch has it; of whole numbers where the result is."""
    work = c.dtype if c.dtype.is_float and c.dtype not in HALVES else DType.f64 if not c.dtype.is_float else DType.f32
    a, b = (as_tensor(v.to(c.dtype) if isinstance(v, Tensor) else int(v) if c.dtype.is_integer else v, work) for v in (start, end))
    (n,) = c.shape
    if isinstance(n, int) and n <= 1:
        return filled(c, a.to(c.dtype), c.shape, c.dtype)
    i = F.arange(n)
    step = (b - a) / (as_tensor(n, work) - 1.0)
    whole = i.to(work)
    low, high = a + step * whole, b - step * (as_tensor(n, work) - 1.0 - whole)
    return F.where(i.lt(as_tensor(n, DType.i64) // 2), low, high).to(c.dtype)


@aten("eye", "eye.m")
def eye(c: Call, *_: Any, **__: Any) -> Tensor:
    rows, columns = c.shape
    return F.arange(rows)._emit(ops.OneHot(columns, c.dtype))


@aten("one_hot")
def one_hot(c: Call, ids: Tensor, num_classes: Any = -1) -> Tensor:
    return c.emit(ops.OneHot(c.shape[-1], DType.i64), ids)


__all__ = ["constant"]
