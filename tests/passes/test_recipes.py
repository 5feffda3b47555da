"""Quantization recipes by name and as objects, and everything wrong with one at once."""

from __future__ import annotations

from typing import Any

import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.passes.recipes import find_recipe


def test_a_name_an_object_and_nothing() -> None:
    assert find_recipe(None) is None
    assert find_recipe("int8") == tfir.Int8() == find_recipe(tfir.Int8())
    recipe = find_recipe("int8{activations=static, method=percentile, percentile=99.9, keep=a.*+b, heads=true}", ["a text"])
    assert recipe == tfir.Int8(("a.*", "b"), heads=True, activations="static", method="percentile", percentile=99.9)
    assert recipe is not None and recipe.static and recipe.calibration == ["a text"]


TEXTS = [
    *("int8", "int8{keep=a.*+b,heads=true,min_size=4,max_error=0.1,activations=static,method=entropy}"),
    *("q4_0{keep=a}", "int4{keep=a,heads=true,max_error=0.3,group=64,zeros=true}"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_recipe_prints_as_what_is_read(text: str) -> None:
    assert str(find_recipe(text)) == text


def test_the_pass_has_the_options_of_the_recipe() -> None:
    made = tfir.Int8(("a",), True, 8, 0.2).quantizer()
    assert (made.keep, made.heads, made.min_size, made.max_error, made.ranges) == (("a",), True, 8, 0.2, None)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(tfir.CompilerError) as info:
        tfir.Int8("a", 1, 0, float("nan"), "sometimes", "median", 40)  # type: ignore[arg-type]
    assert info.value.codes == (Code.RECIPE_OPTION,) * 7
    for name in ("keep", "heads", "min_size", "max_error", "activations", "method", "percentile"):
        assert f"int8: {name} is " in str(info.value)


WRONG: list[tuple[Any, Any, Code, str]] = [
    ("int9", None, Code.UNKNOWN_RECIPE, "did you mean 'int8'"),
    ("nf4", None, Code.UNKNOWN_RECIPE, "the recipes are int8, fp8, bf16, f16, q8_0, q4_0, q4_1, q4_k, q5_k, q6_k, int4"),
    ("", None, Code.UNKNOWN_RECIPE, "the recipes are int8, fp8, bf16"),
    ("q4_2", None, Code.UNKNOWN_RECIPE, "did you mean 'q4_"),
    ("int4{group=7}", None, Code.RECIPE_OPTION, "group is 7, not an even number"),
    ("q4_0{group=64}", None, Code.RECIPE_OPTION, "no option 'group'"),
    ("q4_0", ["a text"], Code.RECIPE_OPTION, "nothing is learnt from it"),
    ("int8{", None, Code.UNKNOWN_RECIPE, "did you mean 'int8'"),
    (8, None, Code.UNKNOWN_RECIPE, "quantize is 8"),
    ("int8{keeps=a}", None, Code.RECIPE_OPTION, "did you mean 'keep'"),
    ("int8{heads=maybe}", None, Code.RECIPE_OPTION, "takes true or false"),
    ("int8{calibration=x}", None, Code.RECIPE_OPTION, "no option 'calibration'"),
    ("int8{method=entropy}", None, Code.RECIPE_OPTION, "dynamic activations need none"),
    ("int8", ["a text"], Code.RECIPE_OPTION, "dynamic activations need none"),
    (None, ["a text"], Code.USAGE, "calibration data without a recipe"),
]


@pytest.mark.parametrize(("quantize", "calibration", "code", "says"), WRONG)
def test_what_is_no_recipe(quantize: Any, calibration: Any, code: Code, says: str) -> None:
    with pytest.raises(tfir.CompilerError, match=says) as info:
        find_recipe(quantize, calibration)
    assert set(info.value.codes) == {code}
