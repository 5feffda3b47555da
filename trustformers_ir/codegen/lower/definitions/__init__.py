"""The pointwise definition of every op that has one; importing this package fills the table ``definer.RULES``."""

from trustformers_ir.codegen.lower.definitions import blocks, blocks_int8, contract, elementwise, index, nn, quantized, reduce, shape

__all__ = ["blocks", "blocks_int8", "contract", "elementwise", "index", "nn", "quantized", "reduce", "shape"]
