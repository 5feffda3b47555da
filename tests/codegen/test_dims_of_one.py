"""Dims that can be one number alone, however they are written: what they are broadcast to is right, and no memory beside them is read."""

from __future__ import annotations

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import SymbolFact, maximum, symbol
from trustformers_ir.ir.tensor import Tensor

ONE = 1 - maximum(1 - symbol("s"), 0)  # for s of 1 or more


def last_row() -> Module:
    """A slice whose size is 1, but not written so."""

    def f(x: Tensor) -> Tensor:
        return x + x[symbol("s") - ONE :] * 2

    return trace(f, tfir.f32["s", 4])


def single() -> Module:
    """An input whose size is a symbol of one value."""
    return trace(lambda y, x: x + y, tfir.f32["s", 4], tfir.f32["b", 4], facts={"b": SymbolFact(1, 1)})


@pytest.mark.parametrize("make", [last_row, single])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_they_are_broadcast(make: object, rows: int) -> None:
    assert callable(make)
    module = make()
    arrays = [np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), np.ones((1, 4), np.float32)][: len(module.main.args)]
    np.testing.assert_array_equal(tfir.compile(module)(*arrays), tfir.evaluate(module, *arrays))


def test_they_are_written_as_numbers() -> None:
    module = last_row()
    assert "f32[1, 4]" in str(module)
    assert str(tfir.parse(str(module))) == str(module)
