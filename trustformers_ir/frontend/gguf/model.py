"""GGUF files to a module: metadata become the config of a family of ``models/``, tensors its parameters.

Weights in blocks keep their blocks (``Weight.blocks``): a pass puts products by them in place of products by numbers (``passes/read_blocks.py``).
Where nothing does, they are numbers: what the format says that the blocks mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES, GgufArchitecture, architecture_of, fits
from trustformers_ir.frontend.gguf.config import FITS, NO_PARAMETERS, read_config
from trustformers_ir.frontend.gguf.container import GgufFile, GgufTensor, open_gguf
from trustformers_ir.frontend.gguf.embedding import read_settings
from trustformers_ir.frontend.stored import Stored, compare, described, traced
from trustformers_ir.ir.block_formats import Blocks
from trustformers_ir.ir.block_layouts import split
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameters, Scope
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.models.registry import find_family


def load_gguf(source: str | Path | GgufFile, *, dtype: DType | None = None, generation: CacheForm | None = None) -> Module:
    """The module of a GGUF file, or of the several files of which it is the first, by path or opened. ``dtype`` is what the model computes in
    (f32). ``generation``: a language model can also write text. Raises ``CompilerError`` with all problems."""
    file = source if isinstance(source, GgufFile) else open_gguf(source)
    architecture = _architecture(file)
    family = find_family(architecture.model_type)
    problems = Collector()
    config = read_config(file, architecture, family, problems)
    settings = read_settings(file, architecture.name) if architecture.encodes else None
    tensors = _tensors(file, architecture, config, problems)
    problems.check()
    stored = {name: t.stored for name, t in tensors.items()}
    parameters = Parameters(available=stored)
    model = family.architectures[architecture.architecture](config, Scope(parameters, dtype=dtype or DType.f32))
    compare(parameters, stored, family, file.path, FITS, problems)
    problems.check()
    weights = {p.name: tensors[p.name].weight(p.name) for p in parameters}
    metadata = described(family, architecture.architecture, model)
    if settings is not None:
        model, metadata = settings.added_to(model), metadata | settings.metadata
    return traced(model, weights, file.path.stem, metadata, generation)


def _architecture(file: GgufFile) -> GgufArchitecture:
    name = file.metadata.get("general.architecture")
    where = Where(file=str(file.path))
    if not isinstance(name, str):
        raise CompilerError.of(Code.GGUF_METADATA, "general.architecture is missing, or no text", where, "is it the file of a model?")
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, 1)
        help = (f"did you mean '{near[0]}'? " if near else "") + f"known are: {', '.join(ARCHITECTURES)}"
        raise CompilerError.of(Code.UNKNOWN_MODEL_TYPE, f"no architecture is registered for general.architecture '{name}'", where, help)
    return architecture_of(name, file)


# --- tensors to weights --------------------------------------------------------------------------------------------------


class _Tensor:
    """A tensor as the parameter that it is: ``order`` is that of its rows here, by their places in the file; ``raised``: 1 was added to it."""

    def __init__(self, tensor: GgufTensor, order: Callable[[], np.ndarray] | None, turned: bool, raised: bool) -> None:
        self.tensor, self.order, self.turned, self.raised = tensor, order, turned, raised
        shape = tuple(reversed(tensor.shape)) if turned else tensor.shape
        self.stored = Stored(tensor.name, TensorType(shape, tensor.kind.dtype or DType.f32), tensor.file, self.values)

    def rows(self, array: np.ndarray) -> np.ndarray:
        return array if self.order is None else array[self.order()]

    def values(self) -> np.ndarray:
        found = self.blocks().values() if self.tensor.kind.dtype is None else self.rows(self.tensor.array())
        found = found - found.dtype.type(1) if self.raised else found
        return found.T if self.turned else found

    def blocks(self) -> Blocks:
        kind = self.tensor.kind
        assert kind.format is not None
        return Blocks(kind.format, self.tensor.shape, self.planes, turned=self.turned)

    def planes(self) -> dict[str, np.ndarray]:
        assert self.tensor.kind.format is not None
        found = split(self.tensor.kind.format, self.tensor.blocks())
        return {name: self.rows(plane.reshape(*self.tensor.shape[:-1], -1)) for name, plane in found.items()}

    def weight(self, name: str) -> Weight:
        if self.tensor.kind.dtype is None:
            return Weight(name, self.stored.type, self.values, blocks=self.blocks())
        as_it_lies = self.order is None and not self.raised
        return Weight(name, self.stored.type, self.values() if as_it_lies else self.values)


def _tensors(file: GgufFile, architecture: GgufArchitecture, config: Any, problems: Collector) -> dict[str, _Tensor]:
    """All tensors by the names of the parameters that they are."""
    heads = getattr(config, "num_attention_heads", 0)
    key_heads = getattr(config, "num_key_value_heads", getattr(config, "num_kv_heads", 0))
    out: dict[str, _Tensor] = {}
    for tensor in file.values():
        if tensor.name in NO_PARAMETERS:
            continue
        name = architecture.parameter(tensor.name) or tensor.name
        readable = tensor.kind.dtype is not None or tensor.kind.format is not None
        raised = fits(name, architecture.raised)
        if not readable or (tensor.kind.dtype is None and (raised or len(tensor.shape) not in (2, 3))):
            what = f"is {tensor}, which is not read" + ("" if readable else " yet")
            problems.add(Code.WEIGHT_DTYPE, f"the weight '{tensor.name}' {what}", tensor.where, "convert it to q8_0, q4_0, q4_1, q4_k, q6_k or f16")
            continue
        rows, order, whole = tensor.shape[0] if tensor.shape else 0, None, 1
        if fits(name, architecture.paired):
            count = key_heads if ".k_proj." in name else heads
            order, whole = functools.partial(paired_rows, rows, count), 2 * count
        elif fits(name, architecture.parted):
            order, whole = functools.partial(parted_rows, rows, heads, key_heads), heads + 2 * key_heads
        if not whole or rows % whole:
            problems.add(Code.WEIGHT_SHAPE, f"the weight '{tensor.name}' is {tensor}, no whole heads", tensor.where, FITS)
            continue
        out[name] = _Tensor(tensor, order, fits(name, architecture.columns) and len(tensor.shape) == 2, raised)
    return out


def paired_rows(rows: int, heads: int) -> np.ndarray:
    """Where, in a file, the rows stand that turn as pairs (i, i + half) of each head here: the file has the members of a pair side by side."""
    found: np.ndarray = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return found


def parted_rows(rows: int, heads: int, key_heads: int) -> np.ndarray:
    """Where, in a file, the rows of each group of heads stand, its queries, its key and its value: the file has all queries, all keys, all values."""
    each = np.arange(rows).reshape(heads + 2 * key_heads, -1)
    queries = each[:heads].reshape(key_heads, heads // key_heads, -1)
    keys, values = each[heads : heads + key_heads, None], each[heads + key_heads :, None]
    return np.concatenate([queries, keys, values], axis=1).reshape(-1)
