"""Distances, tolerances and the shares of culprits, on graphs small enough to know the answer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.codegen.export.emitting import canonical
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.tools.agreement.blame import blame
from trustformers_ir.tools.agreement.metrics import distance
from trustformers_ir.tools.agreement.tolerance import FACTOR, YARDSTICK, tolerances
from trustformers_ir.tools.agreement.values import all_values, result_ids

ONE = np.ones(3)


@pytest.mark.parametrize("dtype", [DType.f16, DType.bf16, DType.f32, DType.f64])
def test_ulps_count_the_numbers_in_between(dtype: DType) -> None:
    step = float(np.finfo(np.float32).eps) if dtype is DType.f32 else {DType.f16: 2.0**-10, DType.bf16: 2.0**-7, DType.f64: 2.0**-52}[dtype]
    assert distance(ONE, ONE + 5 * step, dtype).ulp == 5
    assert distance(-ONE, ONE, dtype).ulp > 1000
    assert distance(np.array([-0.0]), np.array([0.0]), dtype).ulp == 0
    tiny = {DType.f16: 2.0**-24, DType.bf16: 2.0**-133, DType.f32: 2.0**-149, DType.f64: 2.0**-1074}[dtype]
    assert distance(np.array([-tiny]), np.array([2 * tiny]), dtype).ulp == 3


def test_what_is_no_number() -> None:
    bad = np.array([1.0, np.nan, np.inf])
    same = distance(bad, bad, DType.f32)
    assert (same.ulp, same.absolute, same.relative) == (0, 0, 0)
    for other in ([1.0, 0.0, np.inf], [1.0, np.nan, -np.inf], [np.nan, np.nan, np.inf], [1.0, np.nan, 5.0]):
        assert math.isinf(distance(bad, np.array(other), DType.f32).relative)
    assert distance(np.array([1e6, 1.0]), np.array([np.inf, 1.0]), DType.f16).relative == 0  # the truth is beyond f16
    assert math.isinf(distance(np.array([1, 2]), np.array([1, 3]), DType.i64).relative)
    assert math.isinf(distance(ONE, np.ones(4), DType.f32).relative)


def test_divergence_of_logits() -> None:
    a, b = np.array([[0.0, 0.0], [math.log(3), 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0]])
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distance(a, b, DType.f32, logits=True).kl == pytest.approx(want)
    assert distance(a, a + 7, DType.f32, logits=True).kl == pytest.approx(0, abs=1e-12)  # a shift is no other distribution
    assert distance(a, b, DType.f32).kl is None


def chain(depth: int, dtype: DType = DType.f32) -> Any:
    def f(x: Any, w: Any) -> Any:
        for _ in range(depth):
            x = x @ w
        return x

    return tfir.trace(f, dtype["n", 64], dtype[64, 64])


def test_tolerances_derive_from_dtype_and_depth() -> None:
    (one,) = tolerances(chain(1), {"n": 3})
    (four,) = tolerances(chain(4), {"n": 3})
    assert one == pytest.approx(FACTOR * math.sqrt(65) * 2.0**-24)
    assert four == pytest.approx(2 * one)
    narrow = [tolerances(chain(1, d), {"n": 3})[0] for d in (DType.f64, DType.f32, DType.f16, DType.bf16)]
    assert narrow == sorted(narrow) and narrow[0] == YARDSTICK
    assert narrow[2] == pytest.approx(FACTOR * 2.0**-11, rel=1e-3)  # sums are kept in f32, results rounded once
    assert tolerances(chain(1), {"n": 3}, least=2.0**-8)[0] == pytest.approx(FACTOR * 2.0**-8, rel=1e-3)
    assert tolerances(tfir.trace(lambda x: x + 1, tfir.i32["n"]), {"n": 3}) == [0.0]


def test_an_output_has_the_depth_of_its_own_path() -> None:
    module = tfir.trace(lambda x, w: (x @ w, x @ w @ w @ w), tfir.f32["n", 64], tfir.f32[64, 64])
    near, far = tolerances(module, {"n": 3})
    assert near == pytest.approx(tolerances(chain(1), {"n": 3})[0]) and far == pytest.approx(near * math.sqrt(3))


STEPS: dict[str, Any] = {"exp": np.exp, "tanh": np.tanh, "sqrt": np.sqrt}


def faulty(amounts: dict[str, float], reveal: tuple[str, ...] = tuple(STEPS)) -> list[Any]:
    """Culprits of ``sqrt(tanh(exp(x)))`` when the ops named are off by so much of their results; ``reveal``: whose results are shown."""
    module = canonical(clone_module(tfir.trace(lambda x: x.exp().tanh().sqrt(), tfir.f32["n"])))
    arrays = {"x": np.linspace(-1, 1, 9, dtype=np.float32)}
    now, shown = arrays["x"].astype(np.float64), {}
    for (name, step), result in zip(STEPS.items(), result_ids(module), strict=True):
        now = step(now) * (1 + amounts.get(name, 0.0))
        if name in reveal:
            shown[result] = now
    return blame(module, arrays, shown, [now], 1e-6)


def test_the_op_that_brings_an_error_in_has_all_of_it() -> None:
    culprits = faulty({"exp": 1e-2})
    assert [c.operation for c in culprits] == ["exp"] and culprits[0].share == pytest.approx(1) and culprits[0].error == pytest.approx(1e-2)
    assert Path(__file__).name in culprits[0].source


def test_the_larger_of_two_comes_first() -> None:
    culprits = faulty({"exp": 1e-3, "tanh": 4e-3})
    assert [c.operation for c in culprits] == ["tanh", "exp"]
    assert culprits[0].share > culprits[1].share > 0 and culprits[0].share > 0.8


def test_what_is_not_shown_is_computed_from_what_is() -> None:
    """Only the result of tanh is known: the error of exp shows there."""
    culprits = faulty({"exp": 1e-2}, reveal=("tanh",))
    assert [c.operation for c in culprits] == ["tanh"] and culprits[0].share == pytest.approx(1)


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert faulty({}) == []


def test_masks_are_replaced_not_added_to() -> None:
    module = canonical(clone_module(tfir.trace(lambda x: F.where(x > 0, x, -2 * x), tfir.f32["n"])))
    arrays = {"x": np.linspace(-1, 1, 8, dtype=np.float32)}
    values, _ = all_values(module, arrays)
    (mask,) = (name for name, v in result_ids(module).items() if v.type.dtype is DType.bool)
    x = arrays["x"].astype(np.float64)
    flipped = x < 0
    known = {name: values[v] for name, v in result_ids(module).items() if name != mask and v is not module.main.outputs[0]} | {mask: flipped}
    (first, *_) = blame(module, arrays, known, [np.where(flipped, x, -2 * x)], 1e-6)
    assert f"{first.number}:{first.operation}.0" == mask and first.share == pytest.approx(1)
