"""Every pass by name: what ``tfc opt --passes`` and ``parse_pipeline`` know."""

from __future__ import annotations

from trustformers_ir.passes.canonicalize import Canonicalize
from trustformers_ir.passes.compare_products import CompareBlocks, CompareF8, CompareInt8, CompareNarrow
from trustformers_ir.passes.constant_fold import ConstantFold
from trustformers_ir.passes.cse import Cse
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.decompose import Decompose
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import Pass
from trustformers_ir.passes.merge_linears import MergeLinears
from trustformers_ir.passes.narrow_weights import NarrowWeights
from trustformers_ir.passes.observe_activations import ObserveActivations
from trustformers_ir.passes.pack_weights import PackWeights
from trustformers_ir.passes.quantize_activations import QuantizeActivations
from trustformers_ir.passes.quantize_blocks import QuantizeBlocks
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.quantize_int8 import QuantizeInt8
from trustformers_ir.passes.read_blocks import ReadBlocks
from trustformers_ir.passes.widen_f8 import WidenF8

ALL: tuple[type[Pass], ...] = (
    *(Canonicalize, ConstantFold, Cse, Dce, Decompose, FoldWeights, MergeLinears, QuantizeInt8, QuantizeBlocks, NarrowWeights, PackWeights, Fuse),
    *(ReadBlocks, QuantizeActivations, QuantizeF8, WidenF8),
    *(ObserveActivations, CompareInt8, CompareF8, CompareNarrow, CompareBlocks),  # to look at a quantized model
)

PASSES: dict[str, type[Pass]] = {p.name: p for p in ALL}
