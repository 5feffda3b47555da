"""8-bit floats in compiled code: every code, every number of 16 bits and every tie of f32, on CPUs and through Triton's interpreter; and products of
matrices for every range of rows."""

from __future__ import annotations

import numpy as np
import pytest
from lowering_harness import compile_modules
from triton_harness import interpret_modules

from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.triton.emit import emit
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.target import TARGETS
from trustformers_ir.ir import ops
from trustformers_ir.ir.conformance import make_case
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schema import Sample
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager

F8, F16, BF16, F32 = DType.f8e4m3, DType.f16, DType.bf16, DType.f32


def ties() -> np.ndarray:
    """Where two codes are equally near, and the neighbours of these places."""
    grid = np.arange(127, dtype=np.uint8).view(F8.numpy).astype(np.float32)
    middle = (grid[1:] + grid[:-1]) / 2
    found = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9)), np.float32([464, 465, 1e9, np.inf])])
    return np.concatenate([found, -found, np.float32([np.nan, 0, 1e-30])]).astype(np.float32)


def every(dtype: DType) -> np.ndarray:
    if dtype is F32:
        return ties()
    return np.arange(2**dtype.bits).astype(np.uint8 if dtype is F8 else np.uint16).view(dtype.numpy)


def module_of(source: DType, target: DType) -> Module:
    return make_case(Sample(ops.Cast(target), (source["n"],))).module()


def bits(x: np.ndarray) -> list[int]:
    wide = x.view(np.uint8 if x.dtype.itemsize == 1 else np.uint16 if x.dtype.itemsize == 2 else np.uint32)
    return np.where(np.isnan(x.astype(np.float32)), 0x7F, wide).tolist()


@pytest.mark.parametrize("where", ["cpu", "triton"])
@pytest.mark.parametrize(("source", "target"), [(F8, F16), (F8, BF16), (F8, F32), (F16, F8), (BF16, F8), (F32, F8)], ids=str)
def test_casts(where: str, source: DType, target: DType) -> None:
    x = every(source)
    make = compile_modules if where == "cpu" else interpret_modules
    (run,) = make([module_of(source, target)])
    (got,) = run([x], {"n": len(x)})
    with np.errstate(all="ignore"):
        wide = x.astype(np.float32)
        want = (np.clip(wide, -448, 448) if target is F8 else wide).astype(target.numpy)
    assert bits(got) == bits(want)


@pytest.mark.parametrize("rows", [1, 7, 40, 300])
def test_products_of_every_range_of_rows(rows: int) -> None:
    n, k = 96, 160
    low, high = {"q": -448, "weight": -448, "scale": 1e-3, "weight_scale": 1e-3}, {"q": 448, "weight": 448, "scale": 2e-3, "weight_scale": 2e-3}
    types = (F8["m", k], F32["m", 1], F8[n, k], F32[n], F32[n])
    case = make_case(Sample(ops.LinearF8(), types, low, high), dims={"m": rows})
    module = case.module()
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module], BlockMachine(cores=4))
    (got,), (want,) = run(case.inputs, case.dims), case.expected()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * float(np.abs(want).max()))


def test_each_chip_has_the_functions_of_its_own_floats() -> None:
    module = module_of(F32, F8)
    PassManager(pipelines.gpu()).run(module)
    (run,) = interpret_modules([module])
    text = {name: module_text([emit(run.emitted[0].kernel, "k")], TARGETS[name]) for name in ("cuda:sm_80", "cuda:sm_90", "rocm:gfx942")}
    assert "tl.float8e4nv" in text["cuda:sm_90"] and "float8" not in text["cuda:sm_80"] and "float8" not in text["rocm:gfx942"]
