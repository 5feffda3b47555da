"""Normalizations."""

from __future__ import annotations

from trustformers_ir.frontend.onnx.node import Node, onnx_op, widened
from trustformers_ir.frontend.onnx.values import Refused
from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import layer_norm, rms_norm
from trustformers_ir.ir.tensor import Tensor


def _per_channel(t: Tensor, rank: int) -> Tensor:
    return t.reshape(-1, *(1,) * (rank - 2))


@onnx_op("BatchNormalization")
def _batch_norm(n: Node) -> list[Tensor]:
    """By running statistics, or by those of the batch where the model trains."""
    x = n.t(0)
    wide = widened(x)
    scale, bias, mean, var = (widened(n.t(i)).to(wide.dtype) for i in range(1, 5))
    eps = float(n.attr("epsilon", 1e-5))
    training = bool(n.attr("training_mode", 0)) if n.version >= 14 else False
    if n.version < 9 and not n.attr("spatial", 1):
        raise Refused("batch normalization with spatial = 0")
    if n.version < 7 and not n.attr("is_test", 0):
        raise Refused("batch normalization of a model that trains", "export the model for inference")
    more: list[Tensor] = []
    if training:
        axes = (0, *range(2, x.ndim))
        momentum = float(n.attr("momentum", 0.9))
        now = wide._emit(ops.ReduceMean(axes, False))
        spread = wide._emit(ops.ReduceVar(axes, False, 0))
        more = [(mean * momentum + now * (1 - momentum)).to(n.t(3).dtype), (var * momentum + spread * (1 - momentum)).to(n.t(4).dtype)]
        mean, var = now, spread
    rank = x.ndim
    factor = scale / (var + eps).sqrt()
    y = (wide - _per_channel(mean, rank)) * _per_channel(factor, rank) + _per_channel(bias, rank)
    return [y.to(x.dtype), *more]


@onnx_op("InstanceNormalization")
def _instance_norm(n: Node) -> Tensor:
    x = n.t(0)
    wide = widened(x)
    axes = tuple(range(2, x.ndim))
    mean = wide._emit(ops.ReduceMean(axes, True))
    var = wide._emit(ops.ReduceVar(axes, True, 0))
    scale, bias = (_per_channel(n.t(i).to(wide.dtype), x.ndim) for i in (1, 2))
    return ((wide - mean) / (var + float(n.attr("epsilon", 1e-5))).sqrt() * scale + bias).to(x.dtype)


@onnx_op("GroupNormalization")
def _group_norm(n: Node) -> Tensor:
    x = n.t(0)
    wide = widened(x)
    groups, eps = int(n.attr("num_groups")), float(n.attr("epsilon", 1e-5))
    batch, channels, *rest = wide.shape
    parts = wide.reshape(batch, groups, channels // groups, *rest)
    axes = tuple(range(2, parts.ndim))
    mean = parts._emit(ops.ReduceMean(axes, True))
    var = parts._emit(ops.ReduceVar(axes, True, 0))
    normal = (parts - mean) / (var + eps).sqrt()
    scale, bias = n.t(1).to(wide.dtype), n.t(2).to(wide.dtype)
    if n.version < 21:  # one scale per group
        scale, bias = (t.reshape(1, groups, 1, *(1,) * len(rest)) for t in (scale, bias))
        return (normal * scale + bias).reshape(*x.shape).to(x.dtype)
    y = normal.reshape(*x.shape)
    return (y * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)).to(x.dtype)


@onnx_op("LayerNormalization")
def _layer_norm(n: Node) -> list[Tensor]:
    x = n.t(0)
    axis = n.axis(x.ndim, -1)
    eps = float(n.attr("epsilon", 1e-5))
    axes = tuple(range(axis, x.ndim))
    scale, bias = n.t(1), n.opt(2)
    plain = not n.output_used(1) and not n.output_used(2) and scale.ndim == len(axes) and (bias is None or bias.ndim == len(axes))
    if plain and all(n.same(a, b) for t in (scale, bias) if t is not None for a, b in zip(t.shape, x.shape[axis:], strict=True)):
        return [layer_norm(x, scale, bias, eps)]
    wide = widened(x)
    mean = wide._emit(ops.ReduceMean(axes, True))
    centred = wide - mean
    inverse = ((centred * centred)._emit(ops.ReduceMean(axes, True)) + eps).sqrt().reciprocal()
    y = (centred * inverse).to(x.dtype) * scale
    y = y if bias is None else y + bias
    stash = {1: DType.f32, 16: DType.bf16, 10: DType.f16, 11: DType.f64}.get(int(n.attr("stash_type", 1)), DType.f32)
    return [y, mean.to(stash), inverse.to(stash)]


@onnx_op("RMSNormalization")
def _rms_norm(n: Node) -> Tensor:
    x, scale = n.t(0), n.t(1)
    axis = n.axis(x.ndim, -1)
    eps = float(n.attr("epsilon", 1e-5))
    axes = tuple(range(axis, x.ndim))
    if scale.ndim == len(axes) and all(n.same(a, b) for a, b in zip(scale.shape, x.shape[axis:], strict=True)):
        return rms_norm(x, scale, eps)
    wide = widened(x)
    size = ((wide * wide)._emit(ops.ReduceMean(axes, True)) + eps).sqrt()
    return (wide / size).to(x.dtype) * scale


@onnx_op("MeanVarianceNormalization")
def _mean_variance(n: Node) -> Tensor:
    x = n.t(0)
    wide = widened(x)
    axes = tuple(sorted(n.place(a, x.ndim) for a in n.ints("axes", [0, 2, 3]) or []))
    mean = wide._emit(ops.ReduceMean(axes, True))
    centred = wide - mean
    spread = (centred * centred)._emit(ops.ReduceMean(axes, True)).sqrt()
    return (centred / (spread + 1e-9)).to(x.dtype)
