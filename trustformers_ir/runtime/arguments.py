"""What callers hand in, made fit for native code: numpy arrays and torch tensors as they are, numbers and lists where nothing is lost.

torch is never imported here: whoever hands in a tensor has imported it already.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trustformers_ir.ir.abi import Manifest, Port
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType, Kind

Array = Any  # a numpy array or a torch tensor

_DEFAULT = re.compile(r"-?[0-9]{1,9}\Z")
_NUMBERS = {
    Kind.BOOL: (bool,),
    Kind.INT: (int,),
    Kind.UINT: (int,),
    Kind.FLOAT: (int, float),
    Kind.COMPLEX: (int, float, complex),
}


def defaults_of(manifest: Manifest, ports: Iterable[Port]) -> dict[str, int]:
    """Inputs that may be left out, with the number that then fills them: ``default.<name>`` of the metadata."""
    written = {p.name: manifest.metadata.get(f"default.{p.name}", "") for p in ports}
    return {name: int(value) for name, value in written.items() if _DEFAULT.match(value)}


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def ready(value: object, port: Port, devices: Sequence[str] = ("cpu",)) -> Array:
    """``value`` as a C-contiguous, aligned array of native byte order, of the same dtype, in the memory of the CPU, or of another of the
    ``devices`` (torch's names) where it is a tensor: the value itself where it is one already. Numbers and lists become arrays of the port's
    dtype. ``INPUT_DTYPE`` or ``INPUT_SHAPE`` where that loses something."""
    if is_tensor(value):
        return _ready_tensor(value, port, devices)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
    elif isinstance(value, bool | int | float | complex | list | tuple):
        return _from_numbers(value, port)
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
    else:
        message = f"input '{port.name}' is a {type(value).__name__}"
        raise _error(Code.INPUT_DTYPE, port, message, "give a numpy array, a torch tensor, or numbers")
    if array.dtype.kind in "biufc" and not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def address_of(array: Array) -> int:
    """Where the elements of a numpy array or a torch tensor begin."""
    return array.ctypes.data if isinstance(array, np.ndarray) else int(array.data_ptr())


def dtype_of(array: Array) -> DType | None:
    """The dtype of a numpy array or a torch tensor; None when it has no counterpart here."""
    try:
        return DType.parse(str(array.dtype).removeprefix("torch.")) if is_tensor(array) else DType.from_numpy(array.dtype)
    except (KeyError, TypeError):
        return None


def tensor_dtype(dtype: DType) -> Any:
    """The torch dtype of a dtype."""
    return getattr(sys.modules["torch"], "bool" if dtype is DType.bool else _TORCH_NAMES[dtype])


_OWN_NAMES = {DType.bf16: "bfloat16", DType.f8e4m3: "float8_e4m3fn"}  # of dtypes that numpy has not
_TORCH_NAMES = {d: d.numpy.name for d in DType if d not in _OWN_NAMES} | _OWN_NAMES


def _ready_tensor(tensor: Any, port: Port, devices: Sequence[str]) -> Any:
    torch = sys.modules["torch"]
    if tensor.device.type not in devices:
        message = f"input '{port.name}' is a tensor on the device {tensor.device}"
        raise _error(Code.INPUT_DTYPE, port, message, "move it to the CPU: tensor.cpu()")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        message = f"input '{port.name}' is a tensor of the layout {tensor.layout}{', quantized' if tensor.is_quantized else ''}"
        raise _error(Code.INPUT_DTYPE, port, message, "give a dense tensor: tensor.to_dense() or tensor.dequantize()")
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % max(tensor.element_size(), 1) == 0 else tensor.clone()


def _from_numbers(value: Any, port: Port) -> np.ndarray:
    """Numbers, or lists of them, as an array of the port's dtype; every number is kept exactly."""
    dtype = port.type.dtype
    try:
        given = np.asarray(value, dtype=object)
    except ValueError:
        given = np.empty(1, object)
        given[0] = [value]
    numbers = [n.item() if isinstance(n, np.generic) else n for n in given.reshape(-1).tolist()]
    if any(isinstance(n, list | tuple) for n in numbers):
        raise _error(Code.INPUT_SHAPE, port, f"input '{port.name}' is a list whose rows have different lengths", "give an array")
    for number in numbers:
        if type(number) not in _NUMBERS[dtype.kind]:
            kind = type(number).__name__
            message = f"input '{port.name}' holds {kind} where {dtype} is taken"
            raise _error(Code.INPUT_DTYPE, port, message, f"give an array of {dtype}")
        if dtype.is_integer and not dtype.min <= number <= dtype.max:
            raise _lossy(number, port)
    if dtype.is_integer or dtype is DType.bool:
        return np.array(numbers, dtype.numpy).reshape(given.shape)
    try:
        wide = np.array(numbers, np.complex128 if dtype.is_complex else np.float64)
    except OverflowError:
        raise _lossy(max(numbers, key=abs), port) from None
    with np.errstate(over="ignore"):
        out = wide.astype(dtype.numpy)
    back = out.astype(wide.dtype).tolist()
    for number, kept in zip(numbers, back, strict=True):
        if kept != number and not (_is_nan(number) and _is_nan(kept)):
            raise _lossy(number, port)
    return out.reshape(given.shape)


def _is_nan(number: Any) -> bool:
    return number != number and (not isinstance(number, complex) or math.isnan(number.real) == math.isnan(number.imag))


def _lossy(number: object, port: Port) -> CompilerError:
    shown = str(number) if not isinstance(number, int) or abs(number) < 1 << 128 else "a very large number"
    message = f"input '{port.name}' holds {shown}, which is not a number of {port.type.dtype}"
    return _error(Code.INPUT_DTYPE, port, message, "round it first: numpy.asarray(x, dtype)")


def _error(code: Code, port: Port, message: str, help: str) -> CompilerError:
    return CompilerError.of(code, message, Where(tensor=port.name), f"{help}; the input is declared as {port.type}")
