"""Quantization recipes: what ``compile(quantize=…)`` and ``tfc --quantize`` take, by name or as an object.

    compile(model, quantize="int8")                                                     each row of an activation has a scale of its own
    compile(model, quantize=Int8(activations="static", method="entropy", calibration=texts))
    tfc compile MODEL -o OUT --quantize "int8{activations=static,method=entropy}" --calibrate texts.txt
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.passes.calibration import METHODS, Ranges
from trustformers_ir.passes.options import IN_PYTHON, nearest, options_text, parse_options
from trustformers_ir.passes.quantize_int8 import QuantizeInt8, Sensitive

ACTIVATIONS = ("dynamic", "static")


@dataclass(frozen=True)
class Int8(Sensitive):
    """Products with known weights in 8-bit integers; the fields of :class:`Sensitive` say which stay in f32.

    ``activations``: ``"dynamic"`` finds scale and zero point of each row when it runs, ``"static"`` takes one of each per tensor, found beforehand on
    ``calibration``: texts (where the model has a tokenizer), dicts of input arrays, or paths of ``.npz`` and text files; one of them or a
    list. ``method`` and ``percentile`` say how (``passes/calibration.py``). Raises ``CompilerError`` with everything that is wrong.
    """

    activations: str = "dynamic"
    method: str = "minmax"
    percentile: float = 99.99
    calibration: Any = field(default=None, metadata=IN_PYTHON, compare=False, repr=False)

    name = "int8"

    def __post_init__(self) -> None:
        problems = Collector()
        for text in self.problems():
            problems.add(Code.RECIPE_OPTION, f"int8: {text}")
        for what, value, known in (("activations", self.activations, ACTIVATIONS), ("method", self.method, METHODS)):
            if value not in known:
                help = f"it is one of {', '.join(known)}"
                problems.add(Code.RECIPE_OPTION, f"int8: {what} is {value!r}", help=nearest(str(value), known, help))
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        if not number or not 50 < self.percentile <= 100:
            problems.add(Code.RECIPE_OPTION, f"int8: percentile is {self.percentile!r}, not a number above 50 and at most 100")
        if self.activations == "dynamic":
            if self.calibration is not None:
                help = 'activations="static" uses it'
                problems.add(Code.RECIPE_OPTION, "int8: calibration is given, and dynamic activations need none", help=help)
            if self.method != "minmax":
                help = 'activations="static" uses it'
                problems.add(Code.RECIPE_OPTION, "int8: a method of calibration is chosen, and dynamic activations need none", help=help)
        problems.check()

    @property
    def static(self) -> bool:
        return self.activations == "static"

    def quantizer(self, ranges: Ranges | None = None) -> QuantizeInt8:
        """The pass; ``ranges`` are those of static activations."""
        return QuantizeInt8(self.keep, self.heads, self.min_size, self.max_error, ranges)

    def __str__(self) -> str:
        return self.name + options_text(self)


RECIPES: dict[str, type[Int8]] = {Int8.name: Int8}

_RECIPE = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\{([^{}]*)\})?\s*\Z")


def find_recipe(quantize: Any, calibration: Any = None) -> Int8 | None:
    """The recipe that ``quantize`` is or names; None for None. ``calibration`` is added to one that was given as text. Raises ``CompilerError``."""
    if quantize is None:
        if calibration is not None:
            raise CompilerError.of(Code.USAGE, "calibration data without a recipe", help="--quantize 'int8{activations=static}'")
        return None
    if isinstance(quantize, Int8):
        return quantize
    known = f"the recipes are {', '.join(RECIPES)}"
    if not isinstance(quantize, str):
        help = f"a name, or an object such as Int8(); {known}"
        raise CompilerError.of(Code.UNKNOWN_RECIPE, f"quantize is {quantize!r}, which is no recipe", help=help)
    match = _RECIPE.match(quantize)
    kind = RECIPES.get(match[1]) if match else None
    if match is None or kind is None:
        help = f"{known}, with options: int8{{activations=static}}"
        raise CompilerError.of(Code.UNKNOWN_RECIPE, f"there is no quantization recipe '{quantize}'", help=nearest(quantize, RECIPES, help))
    problems = Collector()
    options = parse_options(kind, f"recipe '{kind.name}'", match[2] or "", problems, Code.RECIPE_OPTION)
    try:
        recipe = kind(**options, calibration=calibration)
    except CompilerError as error:
        raise CompilerError(*problems, *error.diagnostics) from None
    problems.check()
    return recipe
