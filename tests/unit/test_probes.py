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
from trustformers_ir.ir.probes import draw_dims, draw_inputs, make_probes


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


def test_probes_of_verify() -> None:
    """Each edge once, the same for the same seed, all of them inputs that the module takes."""
    module = lookup(7)
    probes = make_probes(module, 2, 5)
    assert [p.name for p in probes] == ["seeded 0", "seeded 1", "long", "smallest", "padding", "first ids", "last ids"]
    by_name = {p.name: p for p in probes}
    for p in probes:
        evaluate(module, *p.arrays.values())
    assert by_name["smallest"].arrays["ids"].shape == (1, 3)
    mask = by_name["padding"].arrays["attention_mask"]
    assert len(mask) > 1 and not mask[0].any() and mask[1:, 0].all()
    assert (by_name["last ids"].arrays["ids"] == 6).all() and not by_name["first ids"].arrays["ids"].any()
    for p, again in zip(probes, make_probes(module, 2, 5), strict=True):
        assert all(np.array_equal(p.arrays[name], again.arrays[name]) for name in p.arrays)
    assert any(not np.array_equal(p.arrays["a"], q.arrays["a"]) for p, q in zip(probes, make_probes(module, 2, 6), strict=True))


def test_the_longest_text_of_a_table_of_positions() -> None:
    module = Module("m")
    module.facts.declare("batch")
    module.facts.declare("seq", SymbolFact(low=1, high=200))
    block = Block([DType.f32["batch", "seq"]], ["x"])
    Builder(module, block).create(Return(), block.args[0])
    module.add_function(Function("main", block))
    (longest,) = (p for p in make_probes(module, 1, 0) if p.name == "longest")
    assert longest.arrays["x"].shape == (1, 200)
