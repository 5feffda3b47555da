"""Element types narrower than ours: every rounding to them, compiled, next to ml_dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.frontend.onnx.elements import BY_NAME, ML_NAMES, held

onnx = pytest.importorskip("onnx")
ml_dtypes = pytest.importorskip("ml_dtypes")
helper = onnx.helper
FLOATS = [name for name in ML_NAMES if name.startswith("float")]
SOURCES = {"float16": np.float16, "float": np.float32, "double": np.float64}


def cast(source: str, target: str, **attributes: Any) -> Any:
    node = helper.make_node("Cast", ["x"], ["y"], to=BY_NAME[target].code, **attributes)
    ports = [helper.make_tensor_value_info(name, BY_NAME[kind].code, ["n"]) for name, kind in (("x", source), ("y", target))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    return tfir.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)]))


def values(dtype: Any, small: np.dtype[Any]) -> np.ndarray:
    """Every number of the small type, what lies between neighbours, a bit to either side of it, and numbers of all sizes."""
    exact = np.arange(256, dtype=np.uint8).view(small).astype(np.float64) if small.itemsize == 1 else np.zeros(0)
    exact = np.unique(exact[np.isfinite(exact)])
    ties = (exact[1:] + exact[:-1]) / 2
    rng = np.random.default_rng(0)
    wide = np.concatenate([exact, ties, np.ldexp(rng.uniform(-2, 2, 4000), rng.integers(-30, 20, 4000)), [0.0, -0.0, 1e9, -1e9]])
    with np.errstate(all="ignore"):
        x = wide.astype(dtype)
        return np.concatenate([x, np.nextafter(x, dtype(np.inf)), np.nextafter(x, dtype(-np.inf)), np.array([np.inf, -np.inf, np.nan], dtype)])


def nearest(x: np.ndarray, small: np.dtype[Any]) -> np.ndarray:
    """The nearest numbers of a small type, ties to even codes, NaN or infinity beyond the largest; in f64. (ml_dtypes itself rounds f64 twice.)"""
    x = x.astype(np.float64)
    codes = np.arange(128 if ml_dtypes.finfo(small).bits == 8 else 8, dtype=np.uint8).view(small).astype(np.float64)
    codes = codes[np.isfinite(codes)]
    codes = np.append(codes, 2 * codes[-1] - codes[-2])  # the first number beyond
    middle = (codes[1:] + codes[:-1]) / 2
    size = np.abs(x)
    below = np.searchsorted(middle, size)
    tie = np.isin(size, middle)
    place = np.where(tie, below + below % 2, below)
    beyond = (place >= len(codes) - 1) | np.isinf(size)
    over = np.inf if small.name == "float8_e5m2" else np.nan
    return np.where(np.isnan(x), np.nan, np.sign(x) * np.where(beyond, over, codes[np.minimum(place, len(codes) - 1)]))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", FLOATS)
def test_every_rounding_to_small_floats(source: str, target: str) -> None:
    small = np.dtype(getattr(ml_dtypes, ML_NAMES[target]))
    x = values(SOURCES[source], small)
    if target == "float8e8m0":
        positive = np.isfinite(x) & (x >= 2.0**-126 if source != "float16" else x > 0)
        x = x[positive & (x < 2.0**100)]
        x = x[x == x.astype(np.float32)]  # ml_dtypes rounds to f32 first
        got = cast(source, target, round_mode="nearest")(x)
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(got, x.astype(np.float64).astype(small).astype(np.float32))
        return
    most = float(ml_dtypes.finfo(small).max)
    got = cast(source, target)(x)
    assert got.dtype == np.float32
    limited = np.where(np.isnan(x), np.nan, np.clip(x.astype(np.float64), -most, most))
    wanted = nearest(limited, small)
    if target == "float4e2m1":
        wanted = np.where(np.isnan(x), 0.0, wanted)
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    if target != "float4e2m1":  # which has nothing beyond its largest number
        np.testing.assert_array_equal(cast(source, target, saturate=0)(x), nearest(x, small).astype(np.float32))
        if source != "double":
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(nearest(x, small), x.astype(small).astype(np.float64))


@pytest.mark.parametrize("target", ["int4", "uint4", "int2", "uint2"])
def test_whole_numbers_of_few_bits(target: str) -> None:
    element = BY_NAME[target]
    small = np.dtype(getattr(ml_dtypes, ML_NAMES[target]))
    whole = np.arange(-40, 41, dtype=np.int32)
    np.testing.assert_array_equal(cast("int32", target)(whole), held(whole.astype(small)))
    x = np.arange(element.low, element.high + 1).astype(np.float32)
    np.testing.assert_array_equal(cast("float", target)(x), x.astype(element.dtype.numpy))
    stored = np.arange(element.low, element.high + 1).astype(element.dtype.numpy)
    np.testing.assert_array_equal(cast(target, "float16")(stored), stored.astype(np.float16))


def test_packed_tensors_in_files() -> None:
    from trustformers_ir.frontend.onnx.reader import OnnxFile

    for name in ("int4", "uint4", "int2", "uint2", "float4e2m1", "float8e5m2", "bfloat16", "bool", "complex64"):
        element = BY_NAME[name]
        rng = np.random.default_rng(1)
        low, high = (element.low, element.high + 1) if element.narrow_integer else (0, 2)
        array = rng.integers(low, high, (3, 5))
        dtype = getattr(ml_dtypes, ML_NAMES[name]) if name in ML_NAMES else element.dtype.numpy
        tensor = onnx.numpy_helper.from_array(array.astype(dtype), "t")
        found, got = OnnxFile(None).array(tensor)
        assert found is element
        np.testing.assert_array_equal(got, array.astype(element.dtype.numpy))
        listed = helper.make_tensor("t", element.code, (3, 5), array.astype(dtype).reshape(-1))
        np.testing.assert_array_equal(OnnxFile(None).array(listed)[1], array.astype(element.dtype.numpy))
