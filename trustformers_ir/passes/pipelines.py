"""The passes of each target, in order. This is the list to read first."""

from __future__ import annotations

from dataclasses import replace

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
from trustformers_ir.passes.quantize_activations import QuantizeActivations
from trustformers_ir.passes.read_blocks import ReadBlocks
from trustformers_ir.passes.widen_f8 import WidenF8

#: Bytes of a panel of gate and a panel of up that stay in L2 together while the rows go by; beyond, two kernels are faster. Measured for
#: silu(x W) * (x V) in f32 with panels of 48 on 2 threads, two kernels / one in turn, medians (bests), ms, with 128 rows and with 512:
#: 1024 terms x 2816 columns 4.29 (4.10) / 4.19 (3.92), 15.4 (15.1) / 14.3 (13.7); 1536 x 4096 8.1 (7.7) / 7.9 (7.3), 32.0 (30.5) / 30.1 (28.7);
#: 2048 x 5632 14.9 (14.4) / 15.0 (14.2), 116 (72) / 115 (69); 3072 x 8192 65.5 (58.2) / 68.2 (61.2), 246 (119) / 256 (123).
TWIN_BYTES = 768 << 10


def cpu(panel: int = 48, quantize: Pass | None = None, activations: bool = True) -> list[Pass]:
    """From any front end's module to regions for the CPU. ``panel`` is the width of packed weights that the target's micro-kernel reads;
    ``quantize`` is the pass of a recipe, or one that looks at what such a pass would do; without ``activations`` those of products by weights in
    blocks stay in f32."""
    return [
        ReadBlocks(),
        Canonicalize(),
        ConstantFold(),
        Cse(),
        Decompose(),
        Canonicalize(),  # what decomposition left behind
        FoldWeights(),
        MergeLinears(),
        *([] if quantize is None else [quantize]),  # products are merged and weights folded; nothing is packed yet
        WidenF8(),
        NarrowWeights(),
        *([QuantizeActivations()] if activations else []),
        PackWeights(width=panel),
        Dce(),  # weights in the form that nothing reads any more
        Fuse(twin_bytes=TWIN_BYTES),
    ]


def gpu(quantize: Pass | None = None) -> list[Pass]:
    """The same for GPUs, which read weights where they lie and multiply matrices of 16 bits as they are. What scores and norms are made of is
    computed where it is read: arithmetic is cheap beside memory there."""
    passes = [p for p in cpu(quantize=quantize, activations=False) if not isinstance(p, (PackWeights, NarrowWeights, WidenF8))]
    return [replace(p, scores=True, sums=True) if isinstance(p, Fuse) else p for p in passes]
