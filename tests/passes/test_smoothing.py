"""Outliers of activations move into weights: the same product, nearer to f32 once both are 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Module, Weight
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.passes.recipes import Calibrated
from trustformers_ir.passes.smoothing import ALPHAS, MARGINS, ROWS, Part, Sample, Smoothing, smoothed

f32 = tfir.f32
RNG = np.random.default_rng(17)
K = 64
OUTLIERS = np.ones(K, np.float32)
OUTLIERS[[3, 40]] = 60, 25
FIRST, SECOND, NORM = (RNG.standard_normal(shape).astype(np.float32) for shape in ((96, K), (K, 96), (K,)))
X = RNG.standard_normal((300, K)).astype(np.float32)


def normed(x: Any) -> Any:
    """A block of the kind that has outliers: its norm makes features that are much larger than the others, and the residual sum reads them too."""
    h = F.layer_norm(x, F.tensor(NORM * OUTLIERS), F.tensor(NORM))
    return h + F.linear(F.gelu(F.linear(h, F.tensor(FIRST))), F.tensor(SECOND))


def static(**options: Any) -> tfir.Int8:
    return tfir.Int8(heads=True, activations="static", calibration=[X], **options)


def errors(recipe: tfir.Int8) -> list[float]:
    """Of each product on its own, in order of their names."""
    report = tfir.quantization_error(normed, [X[:100] * np.float32(0.9)], recipe, example_inputs=(f32["n", K],))
    return [p.own.relative for p in sorted(report.products, key=lambda p: p.name)]


@pytest.mark.parametrize(("activations", "gain"), [("static", 0.4), ("dynamic", 0.75)])
def test_outliers_cost_less(activations: str, gain: float) -> None:
    off = tfir.Int8(heads=True, activations=activations, smooth="off", calibration=[X] if activations == "static" else None)
    on = tfir.Int8(heads=True, activations=activations, smooth="on", calibration=[X])
    before, after = errors(off), errors(on)
    assert len(before) == len(after) == 2
    assert max(after) < gain * max(before)
    assert str(on) == f"int8{{heads=true,{'activations=static,' if activations == 'static' else ''}smooth=on}}"


def test_auto_smooths_where_it_can() -> None:
    assert errors(static()) == errors(static(smooth="on"))
    assert not tfir.Int8().smooths and not tfir.Int8().calibrated
    assert not static(method="entropy").smooths and not static(smooth="off").smooths


def test_the_report_has_alpha_and_both_errors() -> None:
    told: Any = tfir.compile(normed, (f32["n", K],), quantize=static()).report()["quantization"]
    first = told["products"][0]["smoothing"]
    assert first["alpha"] in ALPHAS and first["after"] < 0.6 * first["before"]
    report = tfir.quantization_error(normed, X, static(), example_inputs=(f32["n", K],))
    worst = report.products[0].smoothing
    assert worst is not None and f"{worst.before:.3g} -> {worst.after:.3g}, alpha {worst.alpha:g}" in str(report).splitlines()[1]
    plain: Any = tfir.compile(normed, (f32["n", K],), quantize=static(smooth="off")).report()["quantization"]
    assert "smoothing" not in plain["products"][0]


def test_codes_are_made_in_the_kernel_of_the_norm_and_of_the_gelu() -> None:
    exe = tfir.compile(normed, (f32["n", K],), quantize=static(smooth="on"))
    labels = [k.label for k in exe.manifest.entries[0].kernels]
    assert labels == ["layer_norm+mul+quantize_static", "linear_int8+gelu+mul+quantize_static", "linear_int8+add"]
    assert sum(isinstance(o.op, ops.Mul) for o in exe.module.walk()) == 2
    got, want = exe(X), evaluate(exe.module, X)
    assert np.sqrt(np.square(got - want).sum() / np.square(want).sum()) < 1e-3  # an activation beside a step falls to one side or the other
    dynamic = tfir.compile(normed, (f32["n", K],), quantize=tfir.Int8(heads=True, smooth="on", calibration=[X]))
    assert dynamic.manifest.entries[0].kernels[0].label == "layer_norm+mul+quantize_dynamic"


def test_integers_by_hand() -> None:
    factors = np.exp2(RNG.integers(-3, 4, K)).astype(np.float32)
    known = Calibrated(None, {"dense": Smoothing(factors, 0.5, 1.0, 0.5)})
    plain = tfir.Int8(heads=True)
    module, by_hand = dense(FIRST), dense(FIRST * factors)
    PassManager([plain.quantizer(known)], verify=True).run(module)
    PassManager([plain.quantizer()], verify=True).run(by_hand)
    np.testing.assert_array_equal(evaluate(module, X), evaluate(by_hand, X / factors))


def dense(weight: np.ndarray) -> Module:
    """A product by a weight called ``dense.weight``."""
    module = tfir.trace(lambda x, w: F.linear(x, w), f32["n", K], f32[weight.shape])
    argument = module.main.args[-1]
    module.add_weight(Weight("dense.weight", argument.type, weight))
    argument.replace_all_uses_with(Builder.before(module, module.main.body.operations[0])(ops.WeightOp("dense.weight")))
    module.main.body.args.remove(argument)
    return module


# --- choosing ----------------------------------------------------------------------------------------------------------------------


def sampled(x: np.ndarray) -> Sample:
    sample = Sample()
    for start in range(0, len(x), 37):
        sample.see(x[start : start + 37])
    return sample


def test_nothing_is_smoothed_that_does_not_gain() -> None:
    even = np.sign(RNG.standard_normal((64, K))).astype(np.float32)  # every feature as large as every other, in weights as well
    assert smoothed(sampled(even), [lambda: even[:50]], per_row=True) is None
    assert smoothed(Sample(), [lambda: FIRST], per_row=False) is None


@pytest.mark.parametrize("per_row", [True, False])
def test_features_and_weights_of_zeros(per_row: bool) -> None:
    x, w = X * OUTLIERS, FIRST.copy()
    x[:, 5], w[:, 6] = 0, 0
    found = smoothed(sampled(x), [lambda: w], per_row=per_row)
    assert found is not None
    smoothing, range = found
    assert smoothing.factors.dtype == np.float32 and np.isfinite(smoothing.factors).all() and (smoothing.factors > 0).all()
    assert smoothing.factors[[5, 6]].tolist() == [1, 1] and smoothing.factors[3] == smoothing.factors.max()
    assert smoothing.after < smoothing.before
    low, high = (x / smoothing.factors).min(), (x / smoothing.factors).max()
    assert any((range.low, range.high) == pytest.approx((m * low, m * high)) for m in ((1.0,) if per_row else MARGINS))


def test_products_of_one_activation_share_the_factors() -> None:
    found = smoothed(sampled(X * OUTLIERS), [lambda: FIRST, lambda: 100 * FIRST[:10]], per_row=False)
    both = smoothed(sampled(X * OUTLIERS), [lambda: np.concatenate([FIRST, 100 * FIRST[:10]])], per_row=False)
    assert found is not None and both is not None
    np.testing.assert_array_equal(found[0].factors, both[0].factors)


def test_a_sample_is_spread_over_everything_seen() -> None:
    rows = np.arange(20_000, dtype=np.float32).reshape(-1, 1) * np.ones(3, np.float32)
    part = Part()
    sizes = iter(RNG.integers(0, 700, 1000).tolist())
    start = 0
    while start < len(rows):
        size = next(sizes)
        part.see(rows[start : start + size])
        start += size
    kept = part.rows[:, 0]
    assert ROWS / 2 <= len(kept) <= ROWS and set(np.diff(kept)) == {np.diff(kept)[0]} and kept[0] == 0 and kept[-1] > 19_000
    assert part.low is not None and part.high is not None and (part.low[0], part.high[2]) == (0, 19_999)


@pytest.mark.parametrize(("shapes", "halves"), [([(4, 3, 2)], (6, 6)), ([(1, 5, 2), (1, 5, 2)], (5, 5)), ([(3, 2), (3, 2)], (3, 3)), ([(2,)], (1,))])
def test_an_example_is_in_one_half(shapes: list[tuple[int, ...]], halves: tuple[int, ...]) -> None:
    sample = Sample()
    for n, shape in enumerate(shapes):
        sample.see(np.full(shape, n, np.float32))
    assert sorted(len(p.rows) for p in sample.halves if p.low is not None) == sorted(halves)


def test_what_only_fits_the_examples_is_not_chosen() -> None:
    """All rows of an example are alike, and there are few: whatever evens out these is too narrow for others."""
    factors = [smoothed(few, [lambda: FIRST], per_row=False) for few in map(examples, range(10))]
    assert sum(f is not None for f in factors) <= 5
    many = Sample()
    for _ in range(100):
        many.see(RNG.standard_normal((2, K)).astype(np.float32) * OUTLIERS)
    assert smoothed(many, [lambda: FIRST], per_row=False) is not None


def examples(seed: int) -> Sample:
    sample, rng = Sample(), np.random.default_rng(seed)
    for _ in range(2):
        sample.see(np.repeat(rng.standard_normal((1, 1, K)).astype(np.float32), 50, 1))
    return sample


WRONG: list[tuple[Any, Any, Code, str]] = [
    ("int8{smooth=maybe}", None, Code.RECIPE_OPTION, "smooth is 'maybe'"),
    ("int8{activations=static,method=entropy,smooth=on}", [X], Code.RECIPE_OPTION, "it goes with minmax"),
    ("int8{smooth=on}", None, Code.CALIBRATION, "smoothing needs examples"),
    ("int8{smooth=off}", [X], Code.RECIPE_OPTION, "need none"),
]


@pytest.mark.parametrize(("recipe", "examples", "code", "says"), WRONG)
def test_what_is_refused(recipe: Any, examples: Any, code: Code, says: str) -> None:
    with pytest.raises(tfir.CompilerError, match=says) as info:
        tfir.compile(normed, (f32["n", K],), quantize=recipe, calibration=examples)
    assert code in info.value.codes
