"""How ops are read: one file per family. Importing this package fills the table of :mod:`trustformers_ir.frontend.onnx.node`."""

from trustformers_ir.frontend.onnx.rules import (
    contract,
    control,
    elementwise,
    ml,
    norm,
    pooling,
    quantize,
    recurrent,
    reduction,
    resample,
    sample,
    select,
    sequence,
    shape,
    signal,
    training,
)

__all__ = [
    "contract",
    "control",
    "elementwise",
    "ml",
    "norm",
    "pooling",
    "quantize",
    "recurrent",
    "reduction",
    "resample",
    "sample",
    "select",
    "sequence",
    "shape",
    "signal",
    "training",
]
