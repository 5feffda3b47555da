"""Quantization recipes: what ``compile(quantize=…)`` and ``tfc --quantize`` take, by name or as an object.

    compile(model, quantize="int8")                                                     each row of an activation has a scale of its own
    compile(model, quantize=Int8(activations="static", method="entropy", calibration=texts))
    compile(model, quantize="fp8", target="cuda:sm_90")                                 8-bit floats, in activations of f32, f16 and bf16
    compile(model, quantize="bf16")                                                     weights in 16 bits, everything else in f32
    compile(model, quantize="int4{group=64}", dtype="bf16")                             weights in 4 bits, everything else in bf16
    tfc compile MODEL -o OUT --quantize "int8{activations=static,method=entropy}" --calibrate texts.txt
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trustformers_ir.ir.block_formats import Format
from trustformers_ir.ir.diagnostics import Code, Collector, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.passes.calibration import METHODS, Ranges
from trustformers_ir.passes.compare_products import CompareBlocks, CompareF8, CompareInt8, CompareNarrow
from trustformers_ir.passes.manager import Pass
from trustformers_ir.passes.narrow_weights import NarrowWeights
from trustformers_ir.passes.options import IN_PYTHON, nearest, options_text, parse_options
from trustformers_ir.passes.quantize_blocks import QuantizeBlocks
from trustformers_ir.passes.quantize_f8 import QuantizeF8
from trustformers_ir.passes.quantize_int8 import QuantizeInt8, Sensitive
from trustformers_ir.passes.smoothing import Smoothing

ACTIVATIONS = ("dynamic", "static")
SMOOTH = ("auto", "on", "off")


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What examples showed, by the name of a product: between which values its activation lies, and by what it is divided to be smooth."""

    ranges: Ranges | None = None
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict)


NOTHING = Calibrated()


class Recipe:
    """What every recipe is: a name, which is also the key of "it is quantized" in the table of its pass, and the passes that do it and look at it."""

    name: ClassVar[str]
    calibration: Any = None

    @property
    def calibrated(self) -> bool:
        """Whether it needs examples."""
        return False

    def quantizer(self, known: Calibrated = NOTHING) -> Pass:
        """The pass; ``known`` is what examples showed."""
        raise NotImplementedError

    def comparison(self, known: Calibrated = NOTHING, *, instead: bool = False) -> Pass:
        """The pass that makes a result of each product as the model and as the recipe computes it, of the latter alone with ``instead``."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name + options_text(self)


@dataclass(frozen=True)
class Int8(Sensitive, Recipe):
    """Products with known weights in 8-bit integers; the fields of :class:`Sensitive` say which stay in f32.

    ``activations``: ``"dynamic"`` finds scale and zero point of each row when it runs, ``"static"`` takes one of each per tensor, found beforehand on
    ``calibration``: texts (where the model has a tokenizer), dicts of input arrays, or paths of ``.npz`` and text files; one of them or a
    list. ``method`` and ``percentile`` say how (``passes/calibration.py``). ``smooth``: whether outliers move into the weights first
    (``passes/smoothing.py``), ``"on"``, ``"off"``, or ``"auto"``: with static activations and minmax; it needs ``calibration`` as well. Raises
    ``CompilerError`` with everything that is wrong.
    """

    activations: str = "dynamic"
    method: str = "minmax"
    percentile: float = 99.99
    smooth: str = "auto"
    calibration: Any = field(default=None, metadata=IN_PYTHON, compare=False, repr=False)

    name = "int8"

    def __post_init__(self) -> None:
        problems = Collector()
        for text in self.problems():
            problems.add(Code.RECIPE_OPTION, f"int8: {text}")
        choices = (("activations", self.activations, ACTIVATIONS), ("method", self.method, METHODS), ("smooth", self.smooth, SMOOTH))
        for what, value, known in choices:
            if value not in known:
                help = f"it is one of {', '.join(known)}"
                problems.add(Code.RECIPE_OPTION, f"int8: {what} is {value!r}", help=nearest(str(value), known, help))
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        if not number or not 50 < self.percentile <= 100:
            problems.add(Code.RECIPE_OPTION, f"int8: percentile is {self.percentile!r}, not a number above 50 and at most 100")
        if self.smooth == "on" and self.method != "minmax":
            problems.add(Code.RECIPE_OPTION, f"int8: smooth is on, and method is {self.method!r}", help="it goes with minmax")
        if self.activations == "dynamic":
            if self.calibration is not None and self.smooth != "on":
                help = 'activations="static" uses it, and smooth="on"'
                problems.add(Code.RECIPE_OPTION, "int8: calibration is given, and dynamic activations need none", help=help)
            if self.method != "minmax":
                help = 'activations="static" uses it'
                problems.add(Code.RECIPE_OPTION, "int8: a method of calibration is chosen, and dynamic activations need none", help=help)
        problems.check()

    @property
    def static(self) -> bool:
        return self.activations == "static"

    @property
    def smooths(self) -> bool:
        """Whether activations are divided; ``auto`` does so where there are examples and nothing is cut off."""
        return self.smooth == "on" or (self.smooth == "auto" and self.static and self.method == "minmax")

    @property
    def calibrated(self) -> bool:
        return self.static or self.smooths

    def quantizer(self, known: Calibrated = NOTHING) -> QuantizeInt8:
        return QuantizeInt8(**self.sensitive, ranges=known.ranges, smoothings=known.smoothings)

    def comparison(self, known: Calibrated = NOTHING, *, instead: bool = False) -> CompareInt8:
        return CompareInt8(**self.sensitive, ranges=known.ranges, smoothings=known.smoothings, instead=instead)


class _WithoutExamples(Recipe):
    """A recipe that needs no examples, and whose options are those of its pass."""

    def __post_init__(self) -> None:
        problems = Collector()
        try:
            self.quantizer()
        except ValueError as error:
            problems.add(Code.RECIPE_OPTION, f"{self.name}: {error}")
        if self.calibration is not None:
            problems.add(Code.RECIPE_OPTION, f"{self.name}: calibration is given, and nothing is learnt from it", help="leave it out")
        problems.check()


@dataclass(frozen=True)
class Fp8(Sensitive, _WithoutExamples):
    """Products with known weights in 8-bit floats (E4M3), each row of an activation with a scale that is found when it runs, each output with one of
    its own (``passes/quantize_f8.py``); the fields of :class:`Sensitive` say which stay as they are. For GPUs that multiply such floats; elsewhere
    the same numbers are computed with wider ones."""

    calibration: Any = field(default=None, metadata=IN_PYTHON, compare=False, repr=False)

    name = "fp8"

    def quantizer(self, known: Calibrated = NOTHING) -> QuantizeF8:
        return QuantizeF8(**self.sensitive)

    def comparison(self, known: Calibrated = NOTHING, *, instead: bool = False) -> CompareF8:
        return CompareF8(**self.sensitive, instead=instead)


@dataclass(frozen=True)
class _Half(_WithoutExamples):
    keep: tuple[str, ...] = ()
    max_error: float = 0.01
    calibration: Any = field(default=None, metadata=IN_PYTHON, compare=False, repr=False)

    dtype: ClassVar[DType]

    def quantizer(self, known: Calibrated = NOTHING) -> NarrowWeights:
        return NarrowWeights(self.dtype, self.keep, self.max_error)

    def comparison(self, known: Calibrated = NOTHING, *, instead: bool = False) -> CompareNarrow:
        return CompareNarrow(self.dtype, self.keep, self.max_error, instead)


@dataclass(frozen=True)
class Bf16(_Half):
    """Weights of products and tables of embeddings in bf16; activations, sums and everything else in f32 (``passes/narrow_weights.py``).

    ``keep`` has patterns of names of products and tables that stay in f32.
    """

    name = "bf16"
    dtype = DType.bf16


@dataclass(frozen=True)
class F16(_Half):
    """The same in f16: three more bits, but a weight that lies beyond its range, or is so small that it would move by more than ``max_error``
    (root mean square, relatively), stays in f32."""

    name = "f16"
    dtype = DType.f16


@dataclass(frozen=True)
class _Blocks(_WithoutExamples):
    keep: tuple[str, ...] = ()
    heads: bool = False
    max_error: float = 0.2
    calibration: Any = field(default=None, metadata=IN_PYTHON, compare=False, repr=False)

    @property
    def layout(self) -> tuple[Format, int]:
        """The format of the weights, and the group where the format does not say it."""
        return Format(self.name), 0

    def quantizer(self, known: Calibrated = NOTHING) -> QuantizeBlocks:
        return QuantizeBlocks(*self.layout, self.keep, self.heads, self.max_error)

    def comparison(self, known: Calibrated = NOTHING, *, instead: bool = False) -> CompareBlocks:
        return CompareBlocks(*self.layout, self.keep, self.heads, self.max_error, instead)


@dataclass(frozen=True)
class Q8_0(_Blocks):
    """Weights of products in 8 bits, a scale in f16 for each 32 (GGML's format); everything else as it is (``passes/quantize_blocks.py``).

    ``keep`` has patterns of names of products that stay as they are; ``heads`` quantizes those that give results of the model, too; a weight that
    would move by more than ``max_error`` (root mean square, relatively) stays.
    """

    name = "q8_0"


@dataclass(frozen=True)
class Q4_0(_Blocks):
    """The same in 4 bits, with a scale for each 32: 4.5 bits of memory for a weight."""

    name = "q4_0"


@dataclass(frozen=True)
class Q4_1(_Blocks):
    """The same in 4 bits, with a scale and a smallest value for each 32: 5 bits."""

    name = "q4_1"


@dataclass(frozen=True)
class Q4_K(_Blocks):
    """The same in 4 bits, with 6-bit scales and smallest values for each 32 under one of each for 256, searched for: 4.625 bits. Matrices whose
    terms are no multiple of 256 stay as they are."""

    name = "q4_k"


@dataclass(frozen=True)
class Q5_K(_Blocks):
    """The same in 5 bits."""

    name = "q5_k"


@dataclass(frozen=True)
class Q6_K(_Blocks):
    """The same in 6 bits, with 8-bit scales for each 16 under one for 256."""

    name = "q6_k"


@dataclass(frozen=True)
class Int4(_Blocks):
    """The same in 4 bits, with a scale for each ``group`` weights: 4.125 bits with 128. ``zeros``: each group has a zero point as well, as in AWQ."""

    group: int = 128
    zeros: bool = False

    name = "int4"

    @property
    def layout(self) -> tuple[Format, int]:
        return Format.INT4_ZERO if self.zeros else Format.INT4, self.group


RECIPES: dict[str, type[Int8 | Fp8 | Bf16 | F16 | Q8_0 | Q4_0 | Q4_1 | Q4_K | Q5_K | Q6_K | Int4]] = {
    kind.name: kind for kind in (Int8, Fp8, Bf16, F16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K, Int4)
}

_RECIPE = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\{([^{}]*)\})?\s*\Z")


def find_recipe(quantize: Any, calibration: Any = None) -> Recipe | None:
    """The recipe that ``quantize`` is or names; None for None. ``calibration`` is added to one that was given as text. Raises ``CompilerError``."""
    if quantize is None:
        if calibration is not None:
            raise CompilerError.of(Code.USAGE, "calibration data without a recipe", help="--quantize 'int8{activations=static}'")
        return None
    if isinstance(quantize, Recipe):
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
