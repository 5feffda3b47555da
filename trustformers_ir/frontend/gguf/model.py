"""GGUF files to a module: metadata become the config of a family of ``models/``, tensors its parameters.

Weights in blocks keep their blocks (``Weight.blocks``): a pass puts products by them in place of products by numbers (``passes/read_blocks.py``).
Where nothing does, they are numbers: what the format says that the blocks mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from trustformers_ir.frontend.gguf.architectures import ARCHITECTURES, GgufArchitecture
from trustformers_ir.frontend.gguf.container import GgufFile, GgufTensor, open_gguf
from trustformers_ir.frontend.stored import Stored, compare, described, traced
from trustformers_ir.ir.block_formats import Blocks, split
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError, Where
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameters, Scope
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.config import Fields
from trustformers_ir.models.registry import find_family

FACTORS = "rope_freqs.weight"  # by what each frequency is divided
_FITS = "is the file complete, and written by a current converter?"


def load_gguf(source: str | Path | GgufFile, *, dtype: DType | None = None) -> Module:
    """The module of a GGUF file, or of the several files of which it is the first, by path or opened. ``dtype`` is what the model computes in
    (f32). Raises ``CompilerError`` with all problems."""
    file = source if isinstance(source, GgufFile) else open_gguf(source)
    architecture = _architecture(file)
    family = find_family(architecture.model_type)
    problems = Collector()
    raw = _config(file, architecture, problems)
    config = family.read_config(_Keys(raw, problems, file, architecture))
    problems.check()
    config = _with_factors(config, file, problems)
    heads = {name: getattr(config, name, 0) for name in ("num_attention_heads", "num_key_value_heads")}
    tensors = _tensors(file, architecture, heads, problems)
    problems.check()
    stored = {name: t.stored for name, t in tensors.items()}
    parameters = Parameters(available=stored)
    model = family.architectures[architecture.architecture](config, Scope(parameters, dtype=dtype or DType.f32))
    compare(parameters, stored, family, file.path, _FITS, problems)
    problems.check()
    weights = {p.name: tensors[p.name].weight(p.name) for p in parameters}
    return traced(model, weights, file.path.stem, described(family, architecture.architecture, model))


def _architecture(file: GgufFile) -> GgufArchitecture:
    name = file.metadata.get("general.architecture")
    where = Where(file=str(file.path))
    if not isinstance(name, str):
        raise CompilerError.of(Code.GGUF_METADATA, "general.architecture is missing, or no text", where, "is it the file of a model?")
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, 1)
        help = (f"did you mean '{near[0]}'? " if near else "") + f"known are: {', '.join(ARCHITECTURES)}"
        raise CompilerError.of(Code.UNKNOWN_MODEL_TYPE, f"no architecture is registered for general.architecture '{name}'", where, help)
    return ARCHITECTURES[name]


# --- metadata to a config ------------------------------------------------------------------------------------------------


class _Keys(Fields):
    """Fields of a config, reported under the keys that they come from."""

    def __init__(self, raw: Mapping[str, Any], problems: Collector, file: GgufFile, architecture: GgufArchitecture) -> None:
        super().__init__(raw, problems, lambda name: Where(file=str(file.path)), Code.GGUF_METADATA)
        self.architecture = architecture

    def shown(self, name: str) -> str:
        key = self.architecture.fields.get(name)
        return name if key is None else f"{self.architecture.name}.{key}"


def _config(file: GgufFile, architecture: GgufArchitecture, problems: Collector) -> dict[str, Any]:
    """The config of the family, as its ``config.json`` would have it."""
    prefix = architecture.name
    found = {field: file.metadata.get(f"{prefix}.{key}") for field, key in architecture.fields.items()}
    raw: dict[str, Any] = {field: value for field, value in found.items() if value is not None}
    raw |= architecture.settings

    def unsupported(key: str, what: str) -> None:
        problems.add(Code.UNSUPPORTED_CONFIG, f"{prefix}.{key} is {what}, which is not supported", Where(file=str(file.path)), "")

    def value(key: str, missing: Any = None) -> Any:
        return file.metadata.get(f"{prefix}.{key}", missing)

    for key in architecture.refused:
        if value(key, 0) != 0:
            unsupported(key, f"{value(key)!r}")
    for field, array in list(raw.items()):
        if isinstance(array, np.ndarray):  # one number for each layer
            if len(array) == 0 or (array != array[0]).any():
                unsupported(architecture.fields[field], "another one in each layer")
            else:
                raw[field] = array[0].item()
    embedding = file.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2:
        raw.setdefault("vocab_size", embedding.shape[0])
    raw["tie_word_embeddings"] = "output.weight" not in file
    raw["attention_bias"], raw["mlp_bias"] = "blk.0.attn_q.bias" in file, "blk.0.ffn_gate.bias" in file
    features = raw.get("head_dim")
    if features is None and isinstance(raw.get("num_attention_heads"), int) and raw["num_attention_heads"] > 0:
        features = raw.get("hidden_size", 0) // raw["num_attention_heads"]
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, features) != features:
            unsupported(key, f"{value(key)!r} where heads have {features} features")
    kind = value("rope.scaling.type", "none")
    if kind == "linear":
        raw["rope_scaling"] = {"rope_type": "linear", "factor": value("rope.scaling.factor", 1.0)}
    elif kind != "none":
        unsupported("rope.scaling.type", f"{kind!r}")
    return raw


def _with_factors(config: Any, file: GgufFile, problems: Collector) -> Any:
    """The config with the divisors of its rotary frequencies, where the file has some."""
    tensor = file.get(FACTORS)
    if tensor is None or not hasattr(config, "rotary"):
        return config
    if tensor.kind.dtype is not DType.f32 or tensor.shape != (config.rotary.features // 2,):
        problems.add(Code.WEIGHT_SHAPE, f"'{FACTORS}' is {tensor}, not F32[{config.rotary.features // 2}]", tensor.where, _FITS)
        return config
    divisors = tensor.array()
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        problems.add(Code.GGUF_TENSOR, f"'{FACTORS}' holds a number that nothing can be divided by", tensor.where, _FITS)
        return config
    return replace(config, rotary=replace(config.rotary, kind="divided", divisors=tuple(float(d) for d in divisors)))


# --- tensors to weights --------------------------------------------------------------------------------------------------


class _Tensor:
    """A tensor as the parameter that it is: ``order`` is that of its rows here, by their places in the file."""

    def __init__(self, tensor: GgufTensor, order: Callable[[], np.ndarray] | None, turned: bool) -> None:
        self.tensor, self.order, self.turned = tensor, order, turned
        shape = tuple(reversed(tensor.shape)) if turned else tensor.shape
        self.stored = Stored(tensor.name, TensorType(shape, tensor.kind.dtype or DType.f32), tensor.file, self.values)

    def rows(self, array: np.ndarray) -> np.ndarray:
        return array if self.order is None else array[self.order()]

    def values(self) -> np.ndarray:
        found = self.blocks().values() if self.tensor.kind.dtype is None else self.rows(self.tensor.array())
        return found.T if self.turned else found

    def blocks(self) -> Blocks:
        kind = self.tensor.kind
        assert kind.format is not None
        return Blocks(kind.format, (self.tensor.shape[0], self.tensor.shape[1]), self.planes, turned=self.turned)

    def planes(self) -> dict[str, np.ndarray]:
        assert self.tensor.kind.format is not None
        return {name: self.rows(plane) for name, plane in split(self.tensor.kind.format, self.tensor.blocks()).items()}

    def weight(self, name: str) -> Weight:
        if self.tensor.kind.dtype is None:
            return Weight(name, self.stored.type, self.values, blocks=self.blocks())
        simple = self.order is None
        return Weight(name, self.stored.type, self.values() if simple else self.values)


def _tensors(file: GgufFile, architecture: GgufArchitecture, heads: Mapping[str, int], problems: Collector) -> dict[str, _Tensor]:
    """All tensors by the names of the parameters that they are."""
    out: dict[str, _Tensor] = {}
    for tensor in file.values():
        if tensor.name == FACTORS:
            continue
        name = architecture.parameter(tensor.name) or tensor.name
        readable = tensor.kind.dtype is not None or tensor.kind.format is not None
        if not readable or (tensor.kind.dtype is None and len(tensor.shape) != 2):
            what = f"is {tensor}, which is not read" + ("" if readable else " yet")
            problems.add(Code.WEIGHT_DTYPE, f"the weight '{tensor.name}' {what}", tensor.where, "convert it to q8_0, q4_0, q4_1, q4_k, q6_k or f16")
            continue
        order = None
        if architecture.is_paired(name):
            count = heads["num_key_value_heads" if ".k_proj." in name else "num_attention_heads"]
            if not tensor.shape or not count or tensor.shape[0] % (2 * count):
                problems.add(Code.WEIGHT_SHAPE, f"the weight '{tensor.name}' is {tensor}, no whole heads", tensor.where, _FITS)
                continue
            order = functools.partial(paired_rows, tensor.shape[0], count)
        out[name] = _Tensor(tensor, order, architecture.is_turned(name) and len(tensor.shape) == 2)
    return out


def paired_rows(rows: int, heads: int) -> np.ndarray:
    """Where, in a file, the rows stand that turn as pairs (i, i + half) of each head here: the file has the members of a pair side by side."""
    found: np.ndarray = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return found
