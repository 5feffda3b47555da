"""The pointwise definition of every op that has one; importing this package fills the table ``definer.RULES``."""

from trustformers_ir.codegen.lower.definitions import blocks, blocks_int8, contract, elementwise, index, nn, quantized, quantized_f8, reduce, shape

__all__ = ["blocks", "blocks_int8", "contract", "elementwise", "index", "nn", "quantized", "quantized_f8", "reduce", "shape"]
