"""ONNX files: the protobuf, and the bytes of tensors, which are checked before anything is made of them.

The protobuf is parsed by the ``onnx`` package (an optional extra). Tensors beside the file are mapped, not copied; their paths are relative,
stay within the model's folder and pass no symbolic link.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.elements import ELEMENTS, ML_NAMES, STRING, Element, held
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.mapped import map_file

MOST_BYTES = 1 << 31  # of a protobuf message
MOST_RANK = 32
MOST_ELEMENTS = 1 << 48
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


@dataclass
class OnnxFile:
    """A parsed model, and where it lies: None for one that is only in memory."""

    proto: Any
    path: Path | None = None
    _mapped: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "the ONNX model" if self.path is None else str(self.path)

    def fail(self, message: str, tensor: str | None = None, help: str = "export the model again", code: Code = Code.ONNX_FILE) -> CompilerError:
        return CompilerError.of(code, message, Where(file=None if self.path is None else str(self.path), tensor=tensor), help)

    def array(self, tensor: Any) -> tuple[Element, np.ndarray]:
        """The elements of a ``TensorProto``, in the dtype that holds them. Arrays over bytes of files are read-only views."""
        name = tensor.name or None
        if tensor.data_type == STRING:
            message = f"the tensor '{tensor.name}' holds strings"
            raise self.fail(message, name, "strings are not compiled: leave the text processing outside of the model", Code.ONNX_UNSUPPORTED)
        element = ELEMENTS.get(tensor.data_type)
        if element is None:
            raise self.fail(f"the tensor '{tensor.name}' has the unknown element type {tensor.data_type}", name)
        shape = self._shape(tensor)
        count = prod(shape)
        if tensor.HasField("segment"):
            raise self.fail(f"the tensor '{tensor.name}' is a segment of another", name)
        if tensor.data_location == _EXTERNAL:
            raw: Any = self._external(tensor)
        elif tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
        else:
            return element, self._listed(tensor, element, shape, count)
        wanted = -(-count * element.bits // 8)
        if len(raw) != wanted:
            message = f"the tensor '{tensor.name}' of type {element}{list(shape)} has {wanted} bytes, and {len(raw)} are there"
            raise self.fail(message, name)
        if element.packed:
            return element, _unpacked(raw, element, count).reshape(shape)
        if element.small is not None:
            return element, held(raw.view(_small_dtype(element))).reshape(shape)
        found: np.ndarray = raw.view(element.dtype.numpy).reshape(shape)
        return element, found

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        shape = tuple(int(d) for d in tensor.dims)
        if len(shape) > MOST_RANK or any(d < 0 for d in shape) or prod(d for d in shape if d) > MOST_ELEMENTS:
            raise self.fail(f"the tensor '{tensor.name}' has the impossible shape {list(shape)[:40]}", tensor.name or None)
        return shape

    def _listed(self, tensor: Any, element: Element, shape: tuple[int, ...], count: int) -> np.ndarray:
        """Elements in one of the typed fields."""
        name = element.name
        if name == "float":
            given: Any = tensor.float_data
        elif name == "double":
            given = tensor.double_data
        elif name == "int64":
            given = tensor.int64_data
        elif name in ("uint32", "uint64"):
            given = tensor.uint64_data
        elif name.startswith("complex"):
            given = tensor.float_data if name == "complex64" else tensor.double_data
        else:
            given = tensor.int32_data
        per = 2 if element.dtype.is_complex else 1
        wanted = -(-count * element.bits // 8) if element.packed else count * per
        if len(given) != wanted:
            message = f"the tensor '{tensor.name}' of type {element}{list(shape)} has {wanted} entries, and {len(given)} are there"
            raise self.fail(message, tensor.name or None)
        if element.packed:
            return _unpacked(np.array(given, np.int64).astype(np.uint8), element, count).reshape(shape)
        if element.dtype.is_complex:
            flat = np.array(given, np.float64)
            return np.asarray(flat[0::2] + 1j * flat[1::2], element.dtype.numpy).reshape(shape)
        if element.small is not None:
            return held(np.array(given, np.int64).astype(np.uint8).view(_small_dtype(element))).reshape(shape)
        if name in ("float16", "bfloat16"):
            halves: np.ndarray = np.array(given, np.int64).astype(np.uint16).view(element.dtype.numpy).reshape(shape)
            return halves
        if element.dtype is DType.bool:
            flags: np.ndarray = np.array(given, np.int64) != 0
            return flags.reshape(shape)
        if element.dtype.is_integer:
            wide = np.array(given, np.uint64 if name.startswith("uint") and element.bits >= 32 else np.int64)
            return wide.astype(element.dtype.numpy).reshape(shape)
        return np.array(given, element.dtype.numpy).reshape(shape)

    def _external(self, tensor: Any) -> np.ndarray:
        """The bytes of a tensor beside the file, mapped."""
        name = tensor.name or None
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key in entries:
                raise self.fail(f"the tensor '{tensor.name}' says its {entry.key[:40]} twice", name)
            entries[entry.key] = entry.value
        location = entries.get("location", "")
        if self.path is None:
            raise self.fail(f"the tensor '{tensor.name}' lies in '{location[:200]}', and the model in no folder", name, "compile the file")
        data = self._map(location, tensor.name)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else len(data) - offset
        except ValueError:
            raise self.fail(f"offset or length of the tensor '{tensor.name}' is no number", name) from None
        if offset < 0 or length < 0 or offset + length > len(data):
            message = f"the tensor '{tensor.name}' lies at bytes {offset} .. {offset + length} of '{location}', which has {len(data)}"
            raise self.fail(message, name)
        return data[offset : offset + length]

    def _map(self, location: str, tensor: str) -> np.ndarray:
        if location in self._mapped:
            return self._mapped[location]
        assert self.path is not None
        given = Path(location)
        inside = location and "\0" not in location and len(location) < 4096 and not given.is_absolute() and ".." not in given.parts
        if not inside or "\\" in location or ":" in location:
            raise self.fail(f"the tensor '{tensor}' lies in {location[:200]!r}, which is no relative path within the folder of the model", tensor)
        at = self.path.parent.resolve()
        try:
            for part in given.parts:
                at = at / part
                if at.is_symlink():
                    raise self.fail(f"the tensor '{tensor}' lies in '{location}', which is a symbolic link", tensor, "copy the file there")
            size = at.stat().st_size if at.is_file() else None
        except OSError as error:
            raise self.fail(f"'{location[:200]}' could not be read: {error.strerror}", tensor, code=Code.UNREADABLE) from None
        if size is None:
            raise self.fail(f"the tensor '{tensor}' lies in '{location}', which is not there", tensor, "give the file along with the model")
        data = np.zeros(0, np.uint8)
        if size:
            data = np.frombuffer(map_file(at, str(at), "weights", 0, lambda _: self.fail(f"'{location}' is empty", tensor)), np.uint8)
        self._mapped[location] = data
        return data


def _small_dtype(element: Element) -> np.dtype[Any]:
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, ML_NAMES[element.name]))
    return found


def _unpacked(raw: np.ndarray, element: Element, count: int) -> np.ndarray:
    """Elements of fewer than 8 bits, the first in the low bits of a byte."""
    per, mask = 8 // element.bits, (1 << element.bits) - 1
    codes = np.stack([(raw >> (element.bits * i)) & mask for i in range(per)], -1).reshape(-1)[:count]
    if element.small is not None:
        return held(codes.astype(np.uint8).view(_small_dtype(element)))
    if element.dtype.is_signed:
        codes = np.where(codes > element.high, codes.astype(np.int16) - (1 << element.bits), codes)
    return codes.astype(element.dtype.numpy)


def load_onnx(model: Any) -> OnnxFile:
    """The model of a path, of bytes or of a ``ModelProto``. ``CompilerError`` for what is no ONNX model."""
    try:
        import onnx
    except ImportError:
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "reading ONNX needs the package onnx", help="pip install 'trustformers_ir[onnx]'") from None
    if isinstance(model, onnx.ModelProto):
        return _checked(OnnxFile(model))
    path = Path(model)
    file = OnnxFile(None, path)
    try:
        if path.stat().st_size >= MOST_BYTES:
            message = f"the file has {path.stat().st_size} bytes; a protobuf message has less than {MOST_BYTES}"
            raise file.fail(message, help="store the weights beside it")
        content = path.read_bytes()
    except OSError as error:
        raise file.fail(f"the file could not be read: {error.strerror}", code=Code.UNREADABLE) from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # DecodeError of whichever protobuf package is installed
        raise file.fail(f"the file is no ONNX model: {str(error)[:200]}", help="is it complete?") from None
    file.proto = proto
    return _checked(file)


def _checked(file: OnnxFile) -> OnnxFile:
    proto = file.proto
    if not proto.HasField("graph") or not proto.opset_import:
        raise file.fail("the file is no ONNX model: there is no graph, or no opset")
    depth = _depth(proto.graph, 0)
    if depth > 64:
        raise file.fail("graphs within graphs, more than 64 deep")
    return file


def _depth(graph: Any, at: int) -> int:
    if at > 64:
        return at
    return max((_depth(g, at + 1) for node in graph.node for g in subgraphs(node)), default=at)


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs among the attributes of a node."""
    for a in node.attribute:
        if a.HasField("g"):
            yield a.g
        yield from a.graphs


def not_text(message: Any) -> str | None:
    """The name of a field that should hold text and does not: protobuf hands it out as bytes."""
    for about, value in message.ListFields():
        for one in value if isinstance(value, Iterable) and not isinstance(value, (str, bytes)) else [value]:
            if about.type == about.TYPE_STRING and isinstance(one, bytes):
                return str(about.name)
            found = not_text(one) if hasattr(one, "ListFields") else None
            if found is not None:
                return found
    return None


def external_files(path: Path) -> list[str]:
    """The names of the files beside a model in which tensors of it lie, relative to its folder, sorted."""
    found: set[str] = set()
    waiting: list[Any] = [load_onnx(path).proto]
    while waiting:
        message = waiting.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            if message.data_location == _EXTERNAL:
                found |= {entry.value for entry in message.external_data if entry.key == "location"}
            continue
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                waiting += [value] if hasattr(value, "DESCRIPTOR") else value
    return sorted(found)
