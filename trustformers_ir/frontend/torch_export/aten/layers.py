"""Layers: norms, dropout. Those that torch's decompositions leave whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim, floordiv
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.tensor import Tensor

TRAINING = "call model.eval() before compiling; functions take training=False"
EPSILON = {DType.f16: 9.765625e-4, DType.bf16: 7.8125e-3, DType.f32: 1.1920928955078125e-07, DType.f64: 2.220446049250313e-16}


def _is_last(c: Call, x: Tensor, shape: Sequence[Any]) -> bool:
    return len(shape) == 1 and x.ndim >= 1


@aten("layer_norm")
def layer_norm(
    c: Call, x: Tensor, shape: Sequence[Any], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, cudnn: bool = True
) -> Tensor:
    return _normed(c, x, shape, weight, bias, eps)


def _normed(c: Call, x: Tensor, shape: Sequence[Any], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Half-precision inputs with parameters of f32 are normed in f32, as torch has it."""
    dtype = x.dtype
    if eps < 0:
        axes = tuple(range(x.ndim - len(shape), x.ndim))
        y = _centred(c, x.float() if dtype in HALVES else x, axes, eps, True)
        y = y if weight is None else y * weight.to(y.dtype)
        return (y if bias is None else y + bias.to(y.dtype)).to(dtype)
    work = DType.f32 if any(p is not None and p.dtype is not dtype for p in (weight, bias)) else dtype
    weight, bias = (None if p is None else p.to(work) for p in (weight, bias))
    if weight is None and bias is None and len(shape) > 1:
        y = x.flatten(x.ndim - len(shape)).to(work)
        return c.emit(ops.LayerNorm(eps), y, None, None).reshape(*x.shape).to(dtype)
    return c.emit(ops.LayerNorm(eps), x.to(work), weight, bias).to(dtype)


def _centred(c: Call, x: Tensor, axes: tuple[int, ...], eps: float, centre: bool) -> Tensor:
    """x by its standard deviation (without ``centre`` by its root mean square), step by step: torch takes an ``eps`` below zero too, which gives NaN
    where the variance is smaller."""
    y = x - c.emit(ops.ReduceMean(axes, True), x) if centre else x
    return y * (c.emit(ops.ReduceMean(axes, True), y.square()) + constant(c, eps, x.dtype)).rsqrt()


@aten("native_layer_norm")
def native_layer_norm(
    c: Call, x: Tensor, shape: Sequence[Any], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    stats = c.results[1]
    wide = x.float() if x.dtype in HALVES else x
    mean = c.emit(ops.ReduceMean(axes, True), wide)
    rstd = (c.emit(ops.ReduceVar(axes, True), wide) + constant(c, eps, wide.dtype)).rsqrt()
    to = stats.dtype if stats is not None else wide.dtype
    return _normed(c, x, shape, weight, bias, eps), mean.to(to), rstd.to(to)


@aten("rms_norm")
def rms_norm(c: Call, x: Tensor, shape: Sequence[Any], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    small = EPSILON[x.dtype] if eps is None else eps
    if small < 0:
        axes = tuple(range(x.ndim - len(shape), x.ndim))
        y = _centred(c, x.float() if x.dtype in HALVES else x, axes, small, False)
        return (y if weight is None else y * weight.to(y.dtype)).to(c.dtype)
    if weight is None and len(shape) > 1:
        y = x.flatten(x.ndim - len(shape))
        return c.emit(ops.RmsNorm(small), y, None).reshape(*x.shape)
    if weight is not None and weight.dtype is not c.dtype:
        return c.emit(ops.RmsNorm(small), x.to(c.dtype), weight.to(c.dtype))
    return c.emit(ops.RmsNorm(small), x, weight).to(c.dtype)


@aten("native_group_norm")
def native_group_norm(
    c: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, channels: Any, area: Any, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    per = floordiv(channels, group)
    dtype = x.dtype
    wide = (x.float() if dtype in HALVES else x).reshape(n, group, per * area)
    mean = c.emit(ops.ReduceMean((2,), True), wide)
    rstd = (c.emit(ops.ReduceVar((2,), True), wide) + constant(c, eps, wide.dtype)).rsqrt()
    y = ((wide - mean) * rstd).reshape(*x.shape)
    y = _scaled(y, weight, bias)
    stats = c.results[1]
    to = stats.dtype if stats is not None else wide.dtype
    return y.to(dtype), mean.reshape(n, group).to(to), rstd.reshape(n, group).to(to)


@aten("group_norm")
def group_norm(
    c: Call, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, cudnn: bool = True
) -> Tensor:
    n, channels, *rest = x.shape
    area: Dim = 1
    for d in rest:
        area = area * d
    wide = (x.float() if x.dtype in HALVES else x).reshape(n, groups, floordiv(channels, groups) * area)
    normed = c.emit(ops.LayerNorm(eps), wide, None, None) if eps >= 0 else _centred(c, wide, (2,), eps, True)
    y = normed.reshape(*x.shape)
    return _scaled(y, weight, bias).to(x.dtype)


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """By a factor and a term for each channel, the second axis."""
    spread = [1] * (y.ndim - 2)
    y = y if weight is None else y * weight.to(y.dtype).reshape(weight.shape[0], *spread)
    return y if bias is None else y + bias.to(y.dtype).reshape(bias.shape[0], *spread)


def _batch_normed(
    c: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    dtype = x.dtype
    work = DType.f32 if dtype in HALVES else dtype
    spread = [1] * (x.ndim - 2)
    scale = (var.to(work) + constant(c, eps, work)).rsqrt()
    scale = scale if weight is None else scale * weight.to(work)
    shift = mean.to(work).neg() * scale
    shift = shift if bias is None else shift + bias.to(work)
    y = x.to(work) * scale.reshape(scale.shape[0], *spread) + shift.reshape(shift.shape[0], *spread)
    return y.to(dtype)


@aten("_native_batch_norm_legit_no_training")
def batch_norm_no_training(
    c: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    stats = c.results[1]
    nothing = F.zeros(0, dtype=stats.dtype if stats is not None else DType.f32)
    return _batch_normed(c, x, weight, bias, mean, var, eps), nothing, nothing


@aten("batch_norm")
def batch_norm(
    c: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    training: bool, momentum: float, eps: float, cudnn: bool,
) -> Tensor:  # fmt: skip
    if training or mean is None or var is None:
        raise Refused("batch norm in training mode takes its statistics from the batch, and writes them down", TRAINING)
    return _batch_normed(c, x, weight, bias, mean, var, eps)


@aten("instance_norm")
def instance_norm(
    c: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn: bool,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        assert mean is not None and var is not None
        return _batch_normed(c, x, weight, bias, mean, var, eps)
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise Refused("instance norm over a number of channels that is no constant", "fix that axis")
    return group_norm(c, x, channels, weight, bias, eps)


@aten("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "dropout_")
def dropout(c: Call, x: Tensor, p: float, train: bool | None) -> Any:
    """The identity at inference."""
    if train and p > 0:
        raise Refused("dropout in training mode is random", TRAINING)
    if c.name == "native_dropout.default":
        return x, F.ones(*x.shape, dtype=DType.bool)
    return x


@aten("bernoulli.p")
def bernoulli(c: Call, x: Tensor, p: float = 0.5, **_: Any) -> Tensor:
    raise Refused("random numbers", "give what is random as an input; dropout is left out by model.eval()")
