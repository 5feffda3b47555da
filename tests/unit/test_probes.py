"""Made-up inputs: within the facts of the dims, and within the tables that they index."""

from __future__ import annotations

import numpy as np
import pytest

from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops import Embedding, Reshape, Return
from trustformers_ir.ir.probes import draw_dims, draw_inputs, tolerance_of


def lookup(rows: int) -> Module:
    """Two tables, one of them indexed through a reshape."""
    module = Module("lookup")
    module.facts.declare("batch")
    module.facts.declare("seq", SymbolFact(low=2, high=9, divisor=3))
    ids, types = DType.i64["batch", "seq"], DType.i64["batch", "seq"]
    block = Block(
        [DType.f32[rows, 4], DType.f32[1, 4], ids, types, DType.i64["batch", "seq"]], ["a", "b", "ids", "types", "attention_mask"]
    )
    build = Builder(module, block)
    a, b, i, t, mask = block.args
    flat = build(Reshape((module.facts.declare("batch") * module.facts.declare("seq"),)), i)
    build.create(Return(), build(Embedding(), a, flat), build(Embedding(), b, t), mask)
    module.add_function(Function("main", block))
    return module


@pytest.mark.parametrize("seed", range(20))
def test_indices_stay_inside_their_tables(seed: int) -> None:
    module, random = lookup(7), np.random.default_rng(seed)
    dims = draw_dims(module, random)
    arrays = draw_inputs(module, dims, random)
    evaluate(module, *arrays.values())  # raises for an index out of range
    mask = arrays["attention_mask"]
    assert mask[:, 0].all() and (np.diff(mask, axis=1) <= 0).all()


def test_dims_fit_their_facts() -> None:
    module = lookup(7)
    drawn = [draw_dims(module, np.random.default_rng(seed)) for seed in range(50)]
    assert {d["seq"] for d in drawn} == {3, 6, 9}
    assert {d["batch"] for d in drawn} >= {1, 2, 12}
    assert draw_dims(module, np.random.default_rng(0), {"batch": 40, "other": 1})["batch"] == 40


def test_tolerances_grow_as_dtypes_shrink() -> None:
    assert (
        tolerance_of(DType.i32)
        == 0
        < tolerance_of(DType.f64)
        < tolerance_of(DType.f32)
        < tolerance_of(DType.f16)
        < tolerance_of(DType.bf16)
    )
