"""Ranges of activations: what is counted, and what each method makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from trustformers_ir.ir import ops
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate_operation
from trustformers_ir.passes.calibration import BINS, Observed, Range, least_divergence

RNG = np.random.default_rng(3)


def observed(*batches: np.ndarray) -> Observed:
    o = Observed()
    for batch in batches:
        o.see(batch)
    return o


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_memory_does_not_grow_and_nothing_is_lost() -> None:
    batches = [np.zeros((2, 3), np.float32), *(normal(40, 50) * np.float32(s) for s in (0.1, 1, 30, 0.01, 1000))]
    o = observed(*batches)
    everything = np.concatenate([b.reshape(-1) for b in batches])
    assert o.counts.shape == (BINS,) and o.counts.sum() == o.values == everything.size
    assert (o.low, o.high) == (everything.min(), everything.max()) and o.reach >= np.abs(everything).max()
    # bins are halves of halves of the first: merging them is the histogram that one look at everything would give
    np.testing.assert_array_equal(o.counts, np.histogram(everything, BINS, (-o.reach, o.reach))[0])


def test_the_order_of_batches_matters_to_resolution_only() -> None:
    a, b = normal(100, 100), 5 * normal(100, 100)
    for method in ("minmax", "percentile"):
        one, other = observed(a, b).range(method), observed(b, a).range(method)
        assert one.high == pytest.approx(other.high, rel=0.01) and one.low == pytest.approx(other.low, rel=0.01)


def test_minmax_is_the_smallest_and_the_largest_and_holds_zero() -> None:
    x = normal(1000)
    assert observed(x).range() == Range(float(x.min()), float(x.max()))
    assert observed(np.abs(x)).range() == Range(0.0, float(np.abs(x).max()))
    assert observed(-np.abs(x)).range() == Range(float(-np.abs(x).max()), 0.0)


@pytest.mark.parametrize("percentile", [99, 99.9, 99.99, 100])
def test_percentiles_are_those_of_numpy_to_a_bin(percentile: float) -> None:
    x = np.concatenate([normal(100_000), np.float32([40, -60])])
    found = observed(x).range("percentile", percentile)
    low, high = np.percentile(x, [100 - percentile, percentile])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 + 2 * 60 / BINS)


def test_entropy_cuts_off_outliers_and_keeps_a_plain_distribution() -> None:
    plain = RNG.uniform(-1, 1, 200_000).astype(np.float32)
    assert observed(plain).range("entropy").high == pytest.approx(1, abs=0.01)
    with_outliers = np.concatenate([normal(200_000), np.float32([100, -90])])
    found = observed(with_outliers).range("entropy")
    assert 3 < found.high < 30 and -30 < found.low < -3


def test_entropy_keeps_the_short_side_of_a_lopsided_activation() -> None:
    x = normal(200_000)
    gelu = x * (x > -3) * 0.5 * (1 + np.tanh(0.8 * x)).astype(np.float32)
    found = observed(gelu.astype(np.float32)).range("entropy")
    assert found.low == pytest.approx(float(gelu.min()), abs=1e-6) and 2 < found.high <= gelu.max()


def test_entropy_does_not_mind_a_heap_at_zero() -> None:
    x = normal(100_000)
    heap = np.where(RNG.random(100_000) < 0.9, np.float32(-1e-5), x)
    assert observed(heap).range("entropy").high == pytest.approx(observed(x[::10]).range("entropy").high, rel=0.2)


def naive_divergence(counts: np.ndarray, half: int) -> float:
    """The definition, one bin at a time."""
    middle, seen = len(counts) // 2, np.flatnonzero(counts)
    start, stop = max(middle - half, int(seen[0])), min(middle + half, int(seen[-1]) + 1)
    inside = counts[start:stop].astype(float)
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    q = np.zeros_like(p)
    for level in range(255):
        bins = [i for i in range(len(p)) if i * 255 // len(p) == level and inside[i] > 0]
        for i in bins:
            q[i] = sum(inside[j] for j in bins) / len(bins)
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * np.log(a / max(b, 0.5 / counts.sum())) for a, b in zip(p, q, strict=True) if a > 0))


def test_entropy_finds_the_least_divergence() -> None:
    x = np.concatenate([normal(20_000), np.float32([12])])
    counts = observed(x).counts
    kept = least_divergence(counts)
    counts[2047], counts[2048] = min(counts[2046:2048]), min(counts[2048:2050])  # zero is told exactly
    tried = [*range(140, 2048, 130), kept]
    best = min(tried, key=lambda half: naive_divergence(counts, half))
    assert naive_divergence(counts, kept) <= naive_divergence(counts, best) * 1.000001


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    o = observed(np.float32([1, np.nan, -2, np.inf, -np.inf]))
    assert (o.lost, o.values, o.low, o.high) == (3, 2, -2, 1)


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 1e38])
def test_scale_and_zero_are_those_of_the_dynamic_op(scale: float) -> None:
    x = (RNG.uniform(-1, 2, (1, 50)) * scale).astype(np.float32)
    types = (DType.u8[1, 50], DType.f32[1, 1], DType.i32[1, 1])
    _, s, z = evaluate_operation(ops.QuantizeDynamic(), [x], types, {}, [DType.f32[1, 50]])
    found = observed(x).range()
    assert (found.scale, found.zero) == (s.item(), z.item())


@pytest.mark.parametrize(("low", "high"), [(0.5, 1), (-1, -0.5), (-np.inf, 0), (0, np.nan)])
def test_a_range_is_finite_and_holds_zero(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="no range around zero"):
        Range(low, high)
