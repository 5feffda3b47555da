"""Linear algebra of small matrices."""

from __future__ import annotations

from trustformers_ir.ir import ops
from trustformers_ir.ir.functional import arange, where
from trustformers_ir.ir.tensor import Tensor


def determinant(x: Tensor) -> Tensor:
    """The determinants of matrices ``[…, n, n]`` of a constant size: Gaussian elimination, the largest element of a column as its pivot."""
    n = int(x.shape[-1])  # type: ignore[arg-type]
    *lead, _, _ = x.shape
    out = None
    for step in range(n):
        size = n - step
        column = x.narrow(-1, 0, 1).reshape(*lead, size)
        at = column.abs()._emit(ops.ArgMax(len(lead), True))
        hit = arange(size) == at
        zero = column * 0.0
        pivot = where(hit, column, zero).sum(-1, True)
        sign = where(at == 0, pivot * 0.0 + 1.0, pivot * 0.0 - 1.0)
        factor = (pivot * sign).reshape(*lead) if lead else (pivot * sign).reshape()
        out = factor if out is None else out * factor
        if size == 1:
            break
        row = where(hit.unsqueeze(-1), x, x * 0.0).sum(-2, True)
        first = x.narrow(-2, 0, 1)
        x = where(hit.unsqueeze(-1), first, x).narrow(-2, 1, size - 1)  # the first row goes where the pivot's was
        scale = x.narrow(-1, 0, 1) / where(pivot == 0.0, pivot * 0.0 + 1.0, pivot).unsqueeze(-1)
        x = (x - scale * row).narrow(-1, 1, size - 1)
    assert out is not None
    return out
