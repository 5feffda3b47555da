"""Models with random weights: ``random:bert?hidden_size=96&num_hidden_layers=2``. For tests and benchmarks of shapes that nobody has trained.

The fields are those of a config.json; the others have the values of the family's published base model, or of its size that ``preset`` names:
``random:vit?preset=large``. Besides, ``seed`` (0), ``architecture`` (the one without a task) and ``dtype`` (f32; how the weights are stored) are
understood. Equal texts give equal weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from trustformers_ir.frontend.stored import described, traced
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter, Parameters, Scope
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.models.cached import CacheForm
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import Model
from trustformers_ir.models.registry import FAMILIES, find_family

PREFIX = "random:"
MAX_BYTES = 64 << 30
_OWN = ("preset", "seed", "architecture", "dtype")


@dataclass(frozen=True)
class RandomModel:
    """A model before it is traced, and a weight for each of its parameters. ``config`` is what the family read."""

    model_type: str
    config: Any
    architecture: str
    model: Model
    weights: Mapping[str, Weight]


def random_model(spec: str, dtype: DType | None = None, generation: CacheForm | None = None) -> Module:
    """The module of ``random:<model_type>[?field=value&…]``. ``dtype`` is what the model computes in (f32). ``generation``: a language model can also
    write text."""
    made = untraced_model(spec, dtype)
    about = described(find_family(made.model_type), made.architecture, made.model)
    return traced(made.model, made.weights, f"random_{made.model_type}", about, generation)


def untraced_model(spec: str, dtype: DType | None = None, missing: str | None = None) -> RandomModel:
    """What ``random_model`` traces. The arrays of the weights are made when they are first asked for. ``missing`` is the architecture of a text that
    names none (the one without a task)."""
    model_type, fields = _parsed(spec)
    family = find_family(model_type, code=Code.RANDOM_MODEL)
    own = {name: fields.pop(name) for name in _OWN if name in fields}
    problems = Collector()
    settings = Fields(own, problems, code=Code.RANDOM_MODEL)
    preset = family.presets.get(settings.choice("preset", ("base", *family.presets), "base"), {})
    reader = Fields({"model_type": model_type, **family.base, **preset, **family.settings(fields)}, problems, code=Code.RANDOM_MODEL)
    config = family.read_config(reader)
    for name in fields:
        if family.aliases.get(name, name) not in reader.asked:
            near = get_close_matches(name, [*sorted(reader.asked), *family.aliases, *_OWN], 1)
            help = f"did you mean '{near[0]}'?" if near else f"the fields are {', '.join(sorted(reader.asked))}"
            problems.add(Code.RANDOM_MODEL, f"a {model_type} has no field '{name}'", help=help)
    seed = settings.whole("seed", 0, low=0)
    architecture = settings.choice("architecture", family.architectures, missing or family.backbone)
    stored = DType.parse(settings.choice("dtype", ("f16", "bf16", "f32", "f64"), "f32"))
    problems.check()
    parameters = Parameters()
    model = family.architectures[architecture](config, Scope(parameters, dtype=dtype or DType.f32))
    size = sum(math.prod(p.shape) for p in parameters) * stored.itemsize
    if size > MAX_BYTES:
        raise CompilerError.of(Code.RANDOM_MODEL, f"the model has {size >> 30} GiB of weights, more than the {MAX_BYTES >> 30} that are allowed")
    weights = {p.name: Weight(p.name, p.type.with_dtype(stored), _filled(p, seed, stored)) for p in parameters}
    return RandomModel(model_type, config, architecture, model, weights)


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    model_type, question, query = spec.removeprefix(PREFIX).partition("?")
    help = f"{PREFIX}<model_type>?hidden_size=96&num_hidden_layers=2; the model types are {', '.join(sorted(FAMILIES))}"
    if not model_type:
        raise CompilerError.of(Code.RANDOM_MODEL, f"'{spec}' names no model_type", help=help)
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(question), max_num_fields=1000)
    except ValueError as error:
        raise CompilerError.of(Code.RANDOM_MODEL, f"'{spec}' is not of the form {PREFIX}<model_type>?field=value: {error}", help=help) from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise CompilerError.of(Code.RANDOM_MODEL, f"the field '{name}' is given twice in '{spec}'", help=help)
        fields[name] = _value(value)
    return model_type, fields


def _value(text: str) -> Any:
    """A number, true, false, a list or an object; everything else is text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float, list, dict)) else text


def _scale(shape: tuple[int, ...]) -> float:
    """One over the root of the number of terms of a product: of ``[outputs, inputs…]``, or of a table in a batch of one, ``[1, rows, features]``."""
    if len(shape) < 2:
        return 0.05
    return 1 / math.sqrt((math.prod(shape[1:]) if shape[0] > 1 else shape[-1]) or 1)


def _filled(parameter: Parameter, seed: int, dtype: DType) -> Any:
    """A function giving the array, made when it is first asked for: scales near 1, matrices that keep the variance, the rest small."""

    @functools.cache
    def make() -> np.ndarray:
        digest = hashlib.sha256(f"{seed}:{parameter.name}".encode()).digest()
        random = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        values = random.standard_normal(parameter.shape, np.float32)
        values *= np.float32(_scale(parameter.shape))
        if len(parameter.shape) == 1 and parameter.name.endswith(".weight"):
            values += np.float32(1)
        values.setflags(write=False)
        return round_to(values, dtype)

    return make
