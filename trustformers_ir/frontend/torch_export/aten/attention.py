"""Scaled dot-product attention, whole."""

from __future__ import annotations

import math
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dims import Dim, product
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor


@aten("scaled_dot_product_attention")
def sdpa(
    c: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p:
        raise Refused("dropout in attention is random", "dropout_p=0.0 at inference: model.eval()")
    return _attend(c, q, k, v, attn_mask, is_causal, scale)


def _attend(c: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """In four axes. torch aligns the causal mask at the first query and key, we at the last: they are one where the lengths are."""
    shape = c.shape
    q, k, v, mask = _four(c, q, k, v, mask)
    if causal and not c.facts.is_equal(q.shape[2], k.shape[2]):
        rows, columns = F.arange(q.shape[2]), F.arange(k.shape[2])
        below = columns.unsqueeze(0).le(rows.unsqueeze(1))
        if mask is None:
            mask = below
        elif mask.dtype is DType.bool:
            mask = mask.logical_and(below)
        else:
            mask = F.where(below, mask, constant(c, -math.inf, mask.dtype))
        causal = False
    visible, bias = (mask, None) if mask is None or mask.dtype is DType.bool else (None, mask)
    return F.attention(q, k, v, visible, bias, causal=causal, scale=scale).reshape(*shape)


def _four(c: Call, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The operands in four axes: missing ones are added, more of them become one batch, and batches of one are repeated."""
    rank = max(4, q.ndim, k.ndim, v.ndim)
    q, k, v = (t.reshape(*([1] * (rank - t.ndim)), *t.shape) if t.ndim < rank else t for t in (q, k, v))
    batch = c.shape[:-3] if len(c.shape) > 3 else ()
    whole: tuple[Dim, ...] = (*([1] * (rank - 3 - len(batch))), *batch)
    heads = c.shape[-3] if len(c.shape) > 2 else 1
    q = q.expand(*whole, heads, *q.shape[-2:])
    k, v = (t.expand(*whole, *t.shape[-3:]) for t in (k, v))
    if rank == 4:
        return q, k, v, mask
    one = product(list(whole))
    if mask is not None and mask.ndim > 3:
        mask = mask.reshape(*([1] * (rank - mask.ndim)), *mask.shape)
        mask = mask.expand(*whole, *mask.shape[-3:]).reshape(one, *mask.shape[-3:])
    q, k, v = (t.reshape(one, *t.shape[-3:]) for t in (q, k, v))
    return q, k, v, mask


@aten("_scaled_dot_product_flash_attention_for_cpu")
def flash_for_cpu(
    c: Call, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Any = None, scale: Any = None
) -> Any:
    out = sdpa(c, q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return out, None
