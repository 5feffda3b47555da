"""The source, quantized as a file says that it is: what such a file is to compute.

How far rounding weights to 4 bits moves a model is a matter of the recipe, and can be as much as its outputs are large. Whether a *file* is right is
another question, and has a sharp answer: the same recipe makes the same codes of the same weights, so a float64 run of the source with these codes is
what the file computes, but for its roundings. Ranges of activations and factors of smoothing are what calibration found and no source knows: they
are the file's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.codegen.export.quantized import quantized
from trustformers_ir.ir.abi import QUANTIZATION_KEY, RECIPE_KEY
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.dtypes import HALVES, DType
from trustformers_ir.ir.progress import note
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.passes.calibration import Range
from trustformers_ir.passes.recipes import F16, Bf16, Calibrated, Recipe, find_recipe
from trustformers_ir.passes.smoothing import Smoothing

Vectors = Mapping[str, np.ndarray]


def quantized_source(path: str, source: Module, told: Mapping[str, str], smoothing: Vectors, narrow: DType | None) -> Module | None:
    """The graph of the source, canonical, its products quantized as the file at ``path`` tells; None where it tells nothing, or where the source is
    quantized so already. ``smoothing``: the reciprocals of factors, by products. ``narrow``: the narrowest dtype of its weights. ``UNREADABLE``"""
    if RECIPE_KEY not in told or source.metadata.get(RECIPE_KEY) == told[RECIPE_KEY]:
        return None
    note("quantizing the source")
    module = canonical(clone_module(source))
    if narrow in HALVES and not is_narrow(told[RECIPE_KEY]):
        _narrow(module, narrow)
    try:
        recipe = find_recipe(told[RECIPE_KEY])
        assert recipe is not None
        known = _calibrated(recipe, json.loads(told[QUANTIZATION_KEY])["products"], smoothing)
    except (CompilerError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"'{path}' says that it is quantized, and not how: {error}"
        raise CompilerError.of(Code.UNREADABLE, message, Where(file=path), "give --tolerance, and a file without it as the source") from error
    before = set(module.weights)
    quantized(module, recipe.quantizer(known))
    for name, w in module.weights.items():
        if name not in before:
            w.settle(w.data)  # probes read it again and again
    return module


def is_narrow(recipe: str) -> bool:
    """Whether the recipe itself puts weights into 16 bits, where they are factors of f32 arithmetic."""
    return recipe.partition("{")[0].strip() in (F16.name, Bf16.name)


def _narrow(module: Module, dtype: DType) -> None:
    """Weights as a file in 16 bits has them: codes are made of those."""
    for name, w in list(module.weights.items()):
        if w.type.dtype.is_float and w.type.dtype.bits > dtype.bits:

            def rounded(w: Weight = w) -> np.ndarray:
                return round_to(round_to(w.data, dtype), w.type.dtype)

            module.weights[name] = Weight(name, w.type, rounded)


def _calibrated(recipe: Recipe, rows: list[dict[str, Any]], smoothing: Vectors) -> Calibrated:
    """What calibration found when the file was made."""
    ranges = {str(r["name"]): Range(float(r["activation"]["low"]), float(r["activation"]["high"])) for r in rows if "activation" in r}
    smoothings: dict[str, Smoothing] = {}
    shared: dict[bytes, Smoothing] = {}
    for row in rows:
        if "smoothing" not in row:
            continue
        about = row["smoothing"]
        inverse = smoothing.get(about["of"])
        if inverse is None or inverse.dtype != np.float32 or inverse.ndim != 1:
            raise ValueError(f"the factors of '{row['name']}' are not there")
        made = Smoothing(np.float32(1) / inverse, float(about["alpha"]), float(about["before"]), float(about["after"]))
        smoothings[str(row["name"])] = shared.setdefault(inverse.tobytes(), made)
    return Calibrated(ranges if ranges or getattr(recipe, "static", False) else None, smoothings)
