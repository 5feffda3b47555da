"""Reads at computed positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.frontend.torch_export.registry import Call, Refused, aten, constant
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.dims import Dim
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor

MASKED = "keep the size: torch.where(mask, x, 0), x.masked_fill(~mask, 0); or multiply by the mask"


@aten("embedding")
def embedding(c: Call, weight: Tensor, ids: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:
    return F.embedding(ids, weight) if weight.dtype.is_float else c.emit(ops.Gather(0), weight, ids)


@aten("index_select")
def index_select(c: Call, x: Tensor, dim: int, index: Tensor) -> Tensor:
    if x.ndim == 0:
        return x
    return x.index_select(dim, index.reshape(c.shape[dim % x.ndim])).reshape(*c.shape)


@aten("gather")
def gather(c: Call, x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    if x.ndim == 0 or index.ndim == 0:
        flat = x.flatten().index_select(0, index.flatten())
        return flat.reshape(*c.shape)
    if any(isinstance(d, int) and d == 0 for d in index.shape):
        return F.zeros(*c.shape, dtype=c.dtype)
    return c.emit(ops.GatherElements(dim % x.ndim), x, index)


@aten("take")
def take(c: Call, x: Tensor, index: Tensor) -> Tensor:
    return x.flatten().index_select(0, index)


@aten("take_along_dim")
def take_along_dim(c: Call, x: Tensor, index: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return x.flatten().gather(0, index.flatten())
    axis = dim % x.ndim
    shape = c.shape
    y = x.expand(*shape[:axis], x.shape[axis], *shape[axis + 1 :])
    return y.gather(axis, index.expand(*shape[:axis], index.shape[axis], *shape[axis + 1 :]))


def positions(c: Call, x: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks are refused: how many elements they choose only the run knows."""
    for index in indices:
        if index is not None and index.dtype in (DType.bool, DType.u8) and not any(isinstance(d, int) and d == 0 for d in index.shape):
            raise Refused("indexing with a mask gives a size that only the run knows", MASKED, dynamic=True)
    return [None if i is None else i.long() for i in indices]


@aten("index.Tensor", "_unsafe_index.Tensor")
def index_tensor(c: Call, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    found = positions(c, x, indices)
    key = tuple(slice(None) if i is None else i for i in found)
    return x[key]


@aten("_unsafe_masked_index")
def masked_index(c: Call, x: Tensor, mask: Tensor, indices: Sequence[Tensor | None], fill: Any) -> Tensor:
    """What torch reads where the mask holds; a position outside counts as 0 where it does not."""
    at = [None if i is None else F.where(mask, i.long(), 0) for i in indices]
    y = x[tuple(slice(None) if i is None else i for i in at)]
    return F.where(mask, y, constant(c, fill, x.dtype))


def together(c: Call, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, list[int], tuple[Dim, ...]]:
    """For writes at ``x[indices]``: x with the indexed axes first, the positions ``[…, m]``, the order of the axes, and their shape."""
    axes = [n for n, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    whole = given[0]
    for i in given[1:]:
        whole = whole + i  # only for its shape
    shape = whole.shape
    at = F.stack([i.expand(*shape) if shape else i for i in given], -1)
    order = [*axes, *(n for n in range(x.ndim) if n not in axes)]
    return x.permute(*order), at, order, shape


@aten("masked_select")
def masked_select(c: Call, x: Tensor, mask: Tensor) -> Tensor:
    raise Refused("how many elements a mask chooses only the run knows", MASKED, dynamic=True)
