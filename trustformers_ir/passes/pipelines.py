"""The passes of each target, in order. This is the list to read first."""

from __future__ import annotations

from trustformers_ir.passes.canonicalize import Canonicalize
from trustformers_ir.passes.constant_fold import ConstantFold
from trustformers_ir.passes.cse import Cse
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.decompose import Decompose
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import Pass
from trustformers_ir.passes.merge_linears import MergeLinears
from trustformers_ir.passes.narrow_weights import NarrowWeights
from trustformers_ir.passes.pack_weights import PackWeights


def cpu(panel: int = 48, quantize: Pass | None = None) -> list[Pass]:
    """From any front end's module to regions for the CPU. ``panel`` is the width of packed weights that the target's micro-kernel reads;
    ``quantize`` is the pass of a recipe, or one that looks at what such a pass would do."""
    return [
        Canonicalize(),
        ConstantFold(),
        Cse(),
        Decompose(),
        Canonicalize(),  # what decomposition left behind
        FoldWeights(),
        MergeLinears(),
        *([] if quantize is None else [quantize]),  # products are merged and weights folded; nothing is packed yet
        NarrowWeights(),
        PackWeights(width=panel),
        Dce(),  # weights in the form that nothing reads any more
        Fuse(),
    ]


def gpu(quantize: Pass | None = None) -> list[Pass]:
    """The same for GPUs, which read weights where they lie and multiply matrices of 16 bits as they are."""
    return [p for p in cpu(quantize=quantize) if not isinstance(p, (PackWeights, NarrowWeights))]
