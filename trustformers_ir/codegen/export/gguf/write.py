"""Writes GGUF files with the package ``gguf``, tensor by tensor, and what changes its type some rows at a time: one tensor is in memory, at most, and
the file is there whole or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.gguf.kinds import FileType, kind_of
from trustformers_ir.codegen.export.written import Written
from trustformers_ir.ir.atomic import atomic_output
from trustformers_ir.ir.block_formats import Format, quantize
from trustformers_ir.ir.block_layouts import join
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.gguf_content import Content, ContentTensor, Key
from trustformers_ir.ir.holes import write_array
from trustformers_ir.ir.machine import cpus
from trustformers_ir.ir.progress import note

LARGEST = 65504.0  # of f16, which scales of blocks are
QUANTIZATION_VERSION = 2
PIECE = 1 << 16  # elements that are quantized at once
CONVERTED = 1 << 22  # elements that get another type at once


def write_gguf(path: str | os.PathLike[str], content: Content, asked: FileType | None = None, numbers: str | None = None) -> Written:
    """The content as a file of version 3. Tensors whose type stays keep their bytes. ``asked`` and ``numbers`` as in :func:`kind_of`. Raises
    ``CompilerError`` when the package is missing, or a tensor cannot be written in its type."""
    gguf = _package()
    writer = gguf.GGUFWriter(None, content.architecture)
    kinds = [kind_of(t, content, asked, numbers) for t in content.tensors]
    for name, key in _keys(content, kinds, asked, gguf).items():
        writer.add_key_value(name, key.value, gguf.GGUFValueType(key.type), None if key.element is None else gguf.GGUFValueType(key.element))
        if name == "general.alignment":
            writer.data_alignment = key.value
    for tensor, kind in zip(content.tensors, kinds, strict=True):
        elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        bytes = prod(tensor.shape) // elements * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), bytes, gguf.GGMLQuantizationType[kind])
    with atomic_output(path) as stream:
        writer.fout, writer.state = [stream], type(writer.state).EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for n, (tensor, kind) in enumerate(zip(content.tensors, kinds, strict=True)):
            note("writing tensors", n, len(kinds))
            writer.write_padding(stream, stream.tell())
            for rows in _rows(tensor, kind, gguf):
                write_array(stream, rows)
            writer.write_padding(stream, stream.tell())
        size = stream.tell()
    return Written((os.fspath(path),), size, dict(Counter(kinds).most_common()))


def _searched(format: Format, values: np.ndarray) -> np.ndarray:
    """Blocks of a k-quant. Pieces that stay in a cache are shared by threads: numpy lets them run at once."""
    rows = max(1, PIECE // max(values.shape[1], 1))
    pieces = [values[n : n + rows] for n in range(0, len(values), rows)]
    with ThreadPoolExecutor(cpus()) as threads:
        made = list(threads.map(lambda piece: join(format, quantize(format, piece)), pieces))
    return np.concatenate(made) if made else np.zeros((0, 0), np.uint8)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        help = "install it: pip install 'trustformers_ir[gguf]'"
        raise CompilerError.of(Code.MISSING_DEPENDENCY, "writing GGUF files needs the package gguf, which is not installed", help=help) from None
    return gguf


def _keys(content: Content, kinds: list[str], asked: FileType | None, gguf: Any) -> dict[str, Key]:
    """The keys, with those that say which types the file has."""
    keys = dict(content.keys)
    matrices = [kind for t, kind in zip(content.tensors, kinds, strict=True) if t.is_matrix and t.name != content.head]
    changed = any(t.kind != kind for t, kind in zip(content.tensors, kinds, strict=True))
    if matrices and (changed or "general.file_type" not in keys):
        most = max(matrices, key=matrices.count)
        name = "ALL_F32" if most == "F32" else f"MOSTLY_{most}"
        if asked is not None:
            keys["general.file_type"] = Key.of(asked.number)
        elif name in gguf.LlamaFileType.__members__:
            keys["general.file_type"] = Key.of(int(gguf.LlamaFileType[name]))
    if any(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] > 1 for kind in kinds):
        keys.setdefault("general.quantization_version", Key.of(QUANTIZATION_VERSION))
    return keys


def _rows(tensor: ContentTensor, kind: str, gguf: Any) -> Iterator[np.ndarray]:
    """``u8[rows, bytes]`` of a tensor, all rows; in another type so many at a time as have ``CONVERTED`` elements."""
    raw = tensor.data()
    if kind == tensor.kind or not raw.size:
        yield np.ascontiguousarray(raw)
        return
    count = max(1, CONVERTED // tensor.shape[-1])
    for n in range(0, len(raw), count):
        yield _converted(tensor, raw[n : n + count], kind, gguf)


def _converted(tensor: ContentTensor, raw: np.ndarray, kind: str, gguf: Any) -> np.ndarray:
    """Rows in another type; those of the reference implementation, which the package is, where it can quantize."""
    values = np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[tensor.kind]), np.float32)
    where = Where(tensor=tensor.name)
    if kind not in ("F32", "BF16"):
        most = float(np.abs(values).max(initial=0.0))
        if not most <= LARGEST:
            what = f"'{tensor.name}' holds {'a number that is not finite' if not np.isfinite(most) else f'{most:g}, which is beyond f16'}"
            raise CompilerError.of(Code.CANNOT_EXPORT, f"{what}: it cannot become {kind}", where, "write it as bf16 or f32")
    if kind.endswith("_K"):
        return _searched(Format[kind], values.reshape(len(raw), -1))
    return np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])).view(np.uint8).reshape(len(raw), -1)
