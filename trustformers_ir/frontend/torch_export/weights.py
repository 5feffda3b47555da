"""Parameters, buffers and constants of torch as weights: views of the same memory, one for tensors that are tied."""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.frontend.torch_export.importer import dtype_of
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.tracing import INLINE, Trace
from trustformers_ir.ir.types import TensorType


def as_array(tensor: Any) -> np.ndarray:
    """A tensor as a read-only array: a view of its memory when its elements lie in row-major order, else a copy."""
    import torch

    plain = tensor.detach()
    if plain.device.type != "cpu":
        raise ValueError(f"a tensor on {plain.device}")
    plain = plain.resolve_conj().resolve_neg().contiguous()
    dtype = dtype_of(plain.dtype)
    if dtype in (DType.bf16, DType.f8e4m3):  # numpy's come from ml_dtypes, which torch does not know
        bits = plain.view(torch.int16 if dtype is DType.bf16 else torch.uint8)
        array: np.ndarray = bits.numpy().view(dtype.numpy)
    else:
        array = plain.numpy().view()
    array.flags.writeable = False
    return array


class Weights:
    """The stored tensors of one program, as they are asked for."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.module: Module = trace.module
        self._known: dict[tuple[Any, ...], Weight] = {}
        self._kept: list[Any] = []  # tensors whose memory the keys name

    def value(self, name: str, tensor: Any) -> Tensor:
        """A stored tensor as a value of the graph: written into it when it is small and a number, a weight otherwise."""
        import torch

        if tensor.numel() <= INLINE and not isinstance(tensor, torch.nn.Parameter):
            return Tensor(self.trace, self.trace.constant(as_array(tensor)))
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        weight = self._known.get(key)
        if weight is None:
            array = as_array(tensor)
            weight = Weight(self._unused(name), TensorType(tuple(array.shape), dtype_of(tensor.dtype)), array)
            self._known[key] = weight
            self._kept.append(tensor)
        return Tensor(self.trace, self.trace.stored(weight))

    def _unused(self, name: str) -> str:
        taken = self.module.weights
        chosen, n = name, 1
        while chosen in taken:
            n += 1
            chosen = f"{name}_{n}"
        return chosen
