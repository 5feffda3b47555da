"""Tensors in files of any format: what a front end knows of each, how they fit the parameters of an architecture, and the module they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from trustformers_ir.frontend.generation import add_generation
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, Where
from trustformers_ir.ir.parameters import Parameter, Parameters
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.models.family import Family, Model

MAX_REPORTED = 100  # problems of one kind; the rest is counted


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, under the name that it has there. ``array`` gives its values."""

    name: str
    type: TensorType
    file: str
    array: Callable[[], np.ndarray]

    @property
    def where(self) -> Where:
        return Where(file=self.file, tensor=self.name)


def described(family: Family, architecture: str, model: Model) -> dict[str, str]:
    """What a module says of itself."""
    defaults = {f"default.{name}": str(value) for name, value in model.defaults.items()}
    return {"model_type": family.model_type, "architecture": architecture, **defaults}


def traced(model: Model, weights: Mapping[str, Weight], name: str, metadata: Mapping[str, str], generation: CacheForm | None = None) -> Module:
    """The module of a model, named after a file or folder. ``generation``: a language model can also write text, and keeps what it has read so."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")
    name = name if name and not name[0].isdigit() else f"model_{name}".rstrip("_")
    module = trace(model, facts=model.facts, weights=weights, name=name, **model.inputs)
    module.metadata.update(metadata)
    if generation is not None:
        add_generation(module, model, weights, generation)
    return module


def compare(
    parameters: Parameters, stored: Mapping[str, Stored], family: Family, place: Path, help: str, problems: Collector
) -> tuple[str, ...]:
    """Reports all that does not fit; the names that may be ignored. ``place`` is the file or folder, ``help`` what may be the reason."""
    extra = [name for name in stored if name not in parameters]
    ignored = tuple(sorted(stored[n].name for n in extra if family.is_ignorable(n, parameters)))
    unexpected = [n for n in extra if not family.is_ignorable(n, parameters)]
    missing = [p for p in parameters if p.name not in stored]
    prefix = f"{family.prefix}." if any(s.name.startswith(f"{family.prefix}.") for s in stored.values()) else ""
    found = sorted({s.file for s in stored.values()})
    where = Where(file=found[0] if len(found) == 1 else str(place))
    for p in missing[:MAX_REPORTED]:
        _report_missing(p, prefix, unexpected, stored, where, help, problems)
    _report_rest(Code.WEIGHT_MISSING, len(missing), where, problems)
    for name in unexpected[:MAX_REPORTED]:
        s = stored[name]
        message = f"the weight '{s.name}', {s.type}, has no place in the architecture"
        problems.add(Code.WEIGHT_UNEXPECTED, message, s.where, help)
    _report_rest(Code.WEIGHT_UNEXPECTED, len(unexpected), where, problems)
    shapes = [p for p in parameters if p.name in stored and stored[p.name].type.shape != p.shape]
    for p in shapes[:MAX_REPORTED]:
        s = stored[p.name]
        message = f"the weight '{s.name}' has shape {list(s.type.shape)}, the config implies {list(p.shape)}"
        problems.add(Code.WEIGHT_SHAPE, message, s.where, help)
    _report_rest(Code.WEIGHT_SHAPE, len(shapes), where, problems)
    dtypes = [p for p in parameters if p.name in stored and not stored[p.name].type.dtype.is_float]
    for p in dtypes[:MAX_REPORTED]:
        s = stored[p.name]
        message = f"the weight '{s.name}' is stored as {s.type.dtype}, which cannot stand for {p.dtype}"
        problems.add(Code.WEIGHT_DTYPE, message, s.where, "quantized checkpoints are not read yet: give f16, bf16, f32 or f64 weights")
    _report_rest(Code.WEIGHT_DTYPE, len(dtypes), where, problems)
    return ignored


def _report_missing(
    p: Parameter, prefix: str, unexpected: list[str], stored: Mapping[str, Stored], place: Where, help: str, problems: Collector
) -> None:
    near = get_close_matches(p.name, unexpected[:MAX_REPORTED], 1, 0.85)
    help = f"'{stored[near[0]].name}' is there: was it renamed?" if near else help
    where = Where(file=place.file, tensor=prefix + p.name)
    problems.add(Code.WEIGHT_MISSING, f"the weight '{prefix}{p.name}', {p.type}, is missing", where, help)


def _report_rest(code: Code, count: int, place: Where, problems: Collector) -> None:
    if count > MAX_REPORTED:
        problems.add(code, f"… and {count - MAX_REPORTED} more: {code.title}", place)
