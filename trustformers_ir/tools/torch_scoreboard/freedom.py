"""Where torch does not say what has to come out: random numbers, memory that nobody wrote, and which of equal elements is meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trustformers_ir.tools.torch_scoreboard.precise import apart, as_eager
from trustformers_ir.tools.torch_scoreboard.samples import Sample

#: ops whose indices may name any of several equal elements, unless they are asked to be stable
AMONG_EQUALS = frozenset({"sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode"})


def is_open(sample: Sample, once: Sequence[Any]) -> bool:
    """Whether torch gives other numbers the next time, or says that they may be any. ``once``: what it gave."""
    import torch
    import torch.utils._pytree as pytree

    if "empty" in sample.unit[0]:
        return True
    again = [x for x in pytree.tree_leaves(as_eager(sample, seed=1)) if isinstance(x, torch.Tensor)]
    return any(bool(apart(a, b)) for a, b in zip(again, once, strict=True))


def may_differ(sample: Sample, a: Any, b: Any) -> bool:
    """Whether ``a`` are indices of elements that are equal to those at eager's ``b``, and each of them once where eager's are."""
    import torch

    (x, *_), settings = sample.arguments
    if sample.unit[0].partition(".")[0] not in AMONG_EQUALS or settings.get("stable") or a.dtype is not torch.int64 or not a.numel():
        return False
    for axis in range(max(x.ndim, 1)):
        source = x if x.ndim else x.unsqueeze(0)
        ours, theirs = (i if i.ndim == source.ndim else i.unsqueeze(min(axis, i.ndim)) for i in (a, b))
        if ours.ndim != source.ndim or any(n > m for d, (n, m) in enumerate(zip(ours.shape, source.shape, strict=True)) if d != axis):
            continue
        if not all(bool(((i >= 0) & (i < source.shape[axis])).all()) for i in (ours, theirs)):
            continue
        same = not apart(source.gather(axis, ours), source.gather(axis, theirs))
        if same and _once(ours, axis) == _once(theirs, axis):
            return True
    return False


def _once(indices: Any, axis: int) -> bool:
    return bool((indices.sort(axis)[0].diff(dim=axis) > 0).all())
