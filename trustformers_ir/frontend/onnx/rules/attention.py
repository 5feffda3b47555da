"""Attention and rotary embeddings in the forms that the compiler has one op for; others are read as the bodies that the specification gives."""

from __future__ import annotations

from trustformers_ir.frontend.onnx.node import Node, onnx_op
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.functional import attention, concat
from trustformers_ir.ir.tensor import Tensor

KNOWN = frozenset({"is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap", "softmax_precision"})


def _heads(n: Node, x: Tensor, count: int) -> Tensor:
    """``[batch, length, heads * features]`` as ``[batch, heads, length, features]``."""
    batch, length, width = x.shape
    return x.reshape(batch, length, count, width // count).transpose(1, 2)


@onnx_op("Attention")
def _attention(n: Node) -> list[Tensor] | None:
    """None for what the op ``attention`` does not say: scores as a result, lengths per batch, a cap on scores, narrow floats, which the specification
    rounds at every step."""
    q, k, v = n.t(0), n.t(1), n.t(2)
    if any(a.name not in KNOWN for a in n.proto.attribute):  # windows, and what later versions add
        return None
    if q.dtype not in (DType.f32, DType.f64) or n.output_used(3) or n.has(6) or n.attr("softcap", 0.0):
        return None
    flat = q.ndim == 3
    if flat:
        heads, key_heads = int(n.attr("q_num_heads")), int(n.attr("kv_num_heads"))
        q, k, v = _heads(n, q, heads), _heads(n, k, key_heads), _heads(n, v, key_heads)
    if q.ndim != 4 or not q.dtype is k.dtype is v.dtype:
        return None
    causal = bool(n.attr("is_causal", 0))
    if causal and not n.same(q.shape[2], k.shape[2]):  # the op aligns at the last query, ONNX at the first one behind the past
        return None
    if n.has(4):
        k, v = concat([n.t(4), k], 2), concat([n.t(5), v], 2)
    mask = bias = None
    if n.has(3):
        given = n.t(3)
        wanted: tuple[Dim, ...] = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        if given.ndim > 4 or not all(n.same(d, 1) or n.same(d, w) for d, w in zip(reversed(given.shape), reversed(wanted), strict=False)):
            return None
        mask, bias = (given, None) if given.dtype is DType.bool else (None, given)
    scale = n.attr("scale", None)
    y = attention(q, k, v, mask, bias, causal=causal, scale=None if scale is None else float(scale))
    if flat:
        batch, count, length, width = y.shape
        y = y.transpose(1, 2).reshape(batch, length, count * width)
    return [y, k, v]
