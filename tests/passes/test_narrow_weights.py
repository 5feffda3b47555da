"""Weights of 16 bits under products in f32: what is rounded and what is not, and that what was 16 bits wide keeps every bit of the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.codegen import build as building
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import Pass, PassLog, PassManager, parse_pipeline
from trustformers_ir.passes.narrow_weights import NarrowWeights, _as_f16
from trustformers_ir.passes.registry import PASSES
from trustformers_ir.passes.weights import converted
from trustformers_ir.runtime.executable import Executable

RNG = np.random.default_rng(3)
HALVES = [DType.bf16, DType.f16]


def run(module: Module, *passes: Pass) -> PassLog:
    """The log of the first."""
    return PassManager([*passes, Dce()], verify=True).run(module).passes[0].log


def compiled(module: Module, skip: type[Pass] | None = None) -> Any:
    """The executable, with a pass of the pipeline left out."""
    copy, target = clone_module(module), building.find_target("cpu")
    passes = [p for p in pipelines.cpu(building.machine_shape(target).panel) if skip is None or not isinstance(p, skip)]
    PassManager(passes, verify=True).run(copy)
    return Executable(building.build(copy, target), 1), copy


def network(dtype: DType, stored: DType, matmul: bool = False) -> Module:
    """Two products and a table that compute in ``dtype``, of weights that are stored as ``stored``."""
    shapes = {"table": (30, 64), "a": (64, 64), "b": (64, 64), "c": (64,)}
    arrays = {name: RNG.standard_normal(shape) / (8 if name in "ab" else 1) for name, shape in shapes.items()}

    def model(ids: Any, table: Any, a: Any, b: Any, c: Any) -> Any:
        table, a, b, c = (w.astype(dtype) for w in (table, a, b, c))
        x = F.layer_norm(F.embedding(ids, table))
        y = F.gelu(x @ a if matmul else F.linear(x, a, c))
        return x + F.linear(y, b, c)

    module = tfir.trace(model, DType.i64["n", "s"], *(stored[a.shape] for a in arrays.values()))
    bound(module, {name: round_to(a, stored) for name, a in arrays.items()})
    return module


def bound(module: Module, arrays: dict[str, np.ndarray]) -> None:
    """Make the arguments of these names weights."""
    first = module.main.body.operations[0]
    for argument, (name, array) in zip(module.main.args[1:], arrays.items(), strict=True):
        module.add_weight(Weight(name, argument.type, array))
        argument.replace_all_uses_with(Builder.before(module, first)(ops.WeightOp(name)))
    del module.main.body.args[1:]


IDS = RNG.integers(0, 30, (3, 7))


@pytest.mark.parametrize("stored", HALVES)
@pytest.mark.parametrize("matmul", [False, True])
def test_what_is_stored_in_16_bits_is_read_so_and_no_bit_changes(stored: DType, matmul: bool) -> None:
    module = network(DType.f32, stored, matmul)
    (wide, before), (narrow, after) = compiled(module, NarrowWeights), compiled(module)
    assert wide.report()["weight_bytes"] > 1.9 * narrow.report()["weight_bytes"]
    assert {w.type.dtype for w in after.weights.values() if len(w.type.shape) == 2 and any(w.name in str(o.op) for o in after.walk())} == {stored}
    np.testing.assert_array_equal(narrow(IDS), wide(IDS))
    np.testing.assert_array_equal(evaluate(after, IDS), evaluate(before, IDS))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("matmul", [False, True])
def test_products_of_16_bit_activations_keep_every_bit(dtype: DType, matmul: bool) -> None:
    module = network(dtype, dtype, matmul)
    (plain, _), (widened, after) = compiled(module, NarrowWeights), compiled(module)
    products = [o for o in after.walk() if isinstance(o.op, ops.Linear)]
    assert [o.inputs[0].type.dtype for o in products] == [DType.f32, DType.f32] and {o.inputs[1].type.dtype for o in products} == {dtype}
    assert widened(IDS).dtype == dtype.numpy
    np.testing.assert_array_equal(widened(IDS).view(np.uint16), plain(IDS).view(np.uint16))


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_of_f32_are_rounded_once(dtype: DType) -> None:
    module = network(DType.f32, DType.f32)
    exact = evaluate(module, IDS)
    assert run(clone_module(module), NarrowWeights()).counts == {}, "nothing is rounded that nobody asked for"
    by_hand = clone_module(module)
    log = run(module, NarrowWeights(dtype))
    assert log.counts == {"products by 16-bit weights": 2, "tables in 16 bits": 1}
    for name in ("table", "a", "b"):
        np.testing.assert_array_equal(module.weights[f"{name}.{dtype}"].data, round_to(by_hand.weights[name].data, dtype))
        by_hand.weights[name].settle(round_to(by_hand.weights[name].data, dtype).astype(np.float32))
    np.testing.assert_array_equal(evaluate(module, IDS), evaluate(by_hand, IDS))
    error = np.linalg.norm(evaluate(module, IDS) - exact) / np.linalg.norm(exact)
    assert 2.0**-14 < error < (2.0**-8 if dtype is DType.bf16 else 2.0**-11)


def test_merged_products_are_read_as_they_were_stored() -> None:
    small = "random:bert?hidden_size=64&num_hidden_layers=1&num_attention_heads=4&intermediate_size=128&vocab_size=50&max_position_embeddings=16"
    module = tfir.api.to_module(small)
    for o in [o for o in module.walk() if isinstance(o.op, ops.WeightOp) and o.result.type.rank == 2]:
        w = module.weights[o.op.name]  # type: ignore[attr-defined]
        stored = module.add_weight(Weight(f"{w.name}.stored", w.type.with_dtype(DType.bf16), round_to(w.data, DType.bf16)))
        build = Builder.before(module, o)
        o.replace_with([build(ops.Cast(DType.f32), build(ops.WeightOp(stored.name)))])
    exe, _ = compiled(module)
    wide, _ = compiled(module, NarrowWeights)
    matrices = [w for w in exe.manifest.weights if len(w.type.shape) == 2 and "position" not in w.name]
    assert any("query" in w.name and "+" in w.name for w in matrices) and {w.type.dtype for w in matrices} == {DType.bf16}
    fed = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}
    for a, b in zip(exe(**fed), wide(**fed), strict=True):
        np.testing.assert_array_equal(a, b)


def products_in(dtype: DType, weight: np.ndarray, **options: Any) -> list[dict[str, Any]]:
    def model(x: Any, w: Any) -> Any:
        return F.linear(x, w).tanh()

    module = tfir.trace(model, tfir.f32["n", weight.shape[1]], DType.f32[weight.shape])
    bound(module, {"inner.weight": weight})
    return run(module, NarrowWeights(dtype, **options)).rows


@pytest.mark.parametrize(
    ("scale", "dtype", "options", "says"),
    [
        (1e6, DType.f16, {}, "f16 ends at 65504"),
        (np.nan, DType.f16, {}, "holds nan"),
        (1e-7, DType.f16, {}, "more than max_error"),
        (1e-7, DType.f16, {"max_error": 1.0}, None),
        (1e-3, DType.f16, {}, None),
        (1e30, DType.bf16, {}, None),
        (1e-30, DType.bf16, {}, None),
        (1.0, DType.bf16, {"keep": ("in*",)}, "keep names it"),
        (0.0, DType.f16, {}, None),
    ],
)
def test_what_f16_cannot_hold_stays(scale: float, dtype: DType, options: dict[str, Any], says: str | None) -> None:
    (row,) = products_in(dtype, (RNG.uniform(0.5, 1, (16, 16)) * scale).astype(np.float32), **options)
    assert row[dtype.name] is (says is None) and (says is None or says in row["reason"])


def test_the_bound_of_the_error_holds() -> None:
    for scale in (1.0, 1e-3, 1e-5, 1e-6, 1e-7):
        w = (RNG.standard_normal((40, 50)) * scale).astype(np.float32)
        largest, bound = _as_f16(w)
        moved = np.linalg.norm(w.astype(np.float16).astype(np.float64) - w) / np.linalg.norm(w.astype(np.float64))
        assert largest == np.abs(w).max() and bound / 10 < moved < bound


@pytest.mark.parametrize("to", [DType.bf16, DType.f16, DType.f32])
@pytest.mark.parametrize("source", [DType.bf16, DType.f16, DType.f32])
def test_conversion_rounds_as_a_cast_does(source: DType, to: DType) -> None:
    bits = RNG.integers(0, 2**32, 200_000, np.uint64).astype(np.uint32).view(np.float32).reshape(-1, 2)
    with np.errstate(all="ignore"):
        x = np.concatenate([bits, (1 + np.arange(-512, 512, dtype=np.float32) * np.float32(2.0**-12)).reshape(-1, 2)]).astype(source.numpy)
        got, want = converted(x, to), round_to(x, to)
        same = np.isnan(got.astype(np.float64)) & np.isnan(want.astype(np.float64))
    assert got.dtype == to.numpy and (same | (got == want)).all()
    assert converted(np.array(1.0, source.numpy), to).shape == ()


def test_options_as_text_and_what_is_wrong_with_them() -> None:
    (made,) = parse_pipeline("narrow_weights{dtype=f16,keep=a.*+b,max_error=0.1}", PASSES)
    assert made == NarrowWeights(DType.f16, ("a.*", "b"), 0.1)
    for wrong in ({"dtype": DType.f32}, {"keep": "a"}, {"max_error": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            NarrowWeights(**wrong)  # type: ignore[arg-type]
