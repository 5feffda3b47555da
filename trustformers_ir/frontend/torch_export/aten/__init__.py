"""What each ATen op is in ours, one file per family. Importing this package fills ``registry.ATEN``."""

from trustformers_ir.frontend.torch_export.aten import (
    attention,
    complex,
    contract,
    create,
    elementwise,
    index,
    layers,
    movement,
    pooling,
    positions,
    reduce,
    refused,
    scatter,
)

FAMILIES = (
    attention, complex, contract, create, elementwise, index, layers, movement, pooling, positions, reduce, refused, scatter,
)  # fmt: skip
