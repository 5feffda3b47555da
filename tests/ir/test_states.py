"""Functions with states: text, rules, copies, and what a cache holds by the reference semantics."""

from __future__ import annotations

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.text import parse_module
from trustformers_ir.ir.verifier import verify_module

TEXT = """module @m {
  symbol b : [1, inf]
  symbol c : [1, inf]
  func @main(%x: f32[b, 2, 1, 4], %at: i64[b], %cache: f32[b, 2, c, 4]) -> (i64[b], f32[b, 2, c, 4]) states 1 {
    %0 = cache_write(%cache, %x, %at) : f32[b, 2, c, 4]
    return %at, %0
  }
}
"""


def test_text_keeps_states() -> None:
    module = parse_module(TEXT)
    assert module.main.states == 1
    assert str(module) == TEXT
    assert clone_module(module).main.states == 1
    assert list(module.main.next_states.items()) == [(module.main.args[2], module.main.outputs[1])]


@pytest.mark.parametrize(("count", "what"), [(3, "3 states, 3 arguments and 2 results"), (2, "'at' is i64[b], its next value")])
def test_states_that_do_not_fit(count: int, what: str) -> None:
    text = TEXT.replace("states 1", f"states {count}")
    if count == 2:
        text = text.replace("-> (i64[b],", "-> (f32[b],").replace("return %at", "%1 = cast(%at) {dtype = f32} : f32[b]\n    return %1")
    with pytest.raises(CompilerError) as caught:
        parse_module(text)
    assert what in str(caught.value) and "V14" in str(caught.value)


@pytest.mark.parametrize("count", ["0", "-1", "x", "9999999999"])
def test_numbers_of_states_that_are_none(count: str) -> None:
    with pytest.raises(CompilerError):
        parse_module(TEXT.replace("states 1", f"states {count}"))


def test_the_verifier_looks_at_states() -> None:
    module: Module = parse_module(TEXT)
    module.main.states = 4
    assert [v.rule for v in verify_module(module)] == ["V14"]


@pytest.mark.parametrize("start", [[4, 0], [0, -1], [0, 5]])
def test_places_outside_of_a_cache(start: list[int]) -> None:
    module, cache = parse_module(TEXT), np.zeros((2, 2, 4, 4), np.float32)
    x = np.ones((2, 2, 1, 4), np.float32)
    with pytest.raises(CompilerError) as caught:
        tfir.evaluate(module, x, np.array(start), cache)
    assert set(caught.value.codes) == {Code.INDEX_OUT_OF_RANGE}
