"""The passes of each target, in order. This is the list to read first."""

from __future__ import annotations

from trustformers_ir.passes.decompose import Decompose
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import Pass
from trustformers_ir.passes.pack_weights import PackWeights


def cpu(panel: int = 48) -> list[Pass]:
    """From any front end's module to regions for the CPU. ``panel`` is the width of packed weights that the target's micro-kernel reads."""
    return [
        Decompose(),
        PackWeights(width=panel),
        Fuse(),
    ]
