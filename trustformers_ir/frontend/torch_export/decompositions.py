"""Which ops torch takes apart before we see them: all that it can and that we have no function for."""

from __future__ import annotations

import functools
from typing import Any

from trustformers_ir.frontend.torch_export import aten
from trustformers_ir.frontend.torch_export.registry import ATEN, REFUSED

assert aten.FAMILIES  # fills the table

# What torch would take apart into less than it says: these stay whole although other frontends of torch take them apart.
KEPT = frozenset({"_assert_async.msg", "_assert_scalar.default", "_assert_tensor_metadata.default"})


@functools.cache
def decompositions() -> dict[Any, Any]:
    """Overload -> how torch writes it with others, without those that we compile as they are or refuse by name."""
    import torch
    from torch._decomp import core_aten_decompositions, get_decompositions, global_decomposition_table

    table = dict(torch.export.default_decompositions())
    every = [op for op in global_decomposition_table["post_autograd"] if isinstance(op, torch._ops.OpOverload)]
    table |= get_decompositions([op for op in every if op.namespace == "aten"])
    table |= core_aten_decompositions()
    return {op: how for op, how in table.items() if not _is_whole(op)}


def _is_whole(op: Any) -> bool:
    name = str(op).removeprefix("aten.")
    return name in ATEN or name in REFUSED or name in KEPT
