"""Weights in 8 and 4 bits: what they are rounded to, and how they lie in the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="pip install coremltools")

from export_harness import listed, text_models

import trustformers_ir as tfir
from trustformers_ir.codegen.export.coreml.evaluate import Package
from trustformers_ir.codegen.export.coreml.numpy_ops import NUMPY
from trustformers_ir.codegen.export.coreml.weights import WEIGHTS_KEY, WeightForm, coded, rounded_module
from trustformers_ir.codegen.export.coreml.write import write_coreml
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter

SHAPES = ((64, 96), (99, 32), (33, 17), (16, 3, 5, 5), (4, 24, 48), (2, 700))
FORMS = list(WeightForm)
#: the root of the mean square of what is rounded off, relative to that of normal numbers: no more than a tenth above what is best
ERROR = {WeightForm.INT8: 0.012, WeightForm.INT4: 0.115, WeightForm.PALETTE4: 0.107}
OPS = {
    WeightForm.INT8: "constexpr_affine_dequantize", WeightForm.INT4: "constexpr_blockwise_shift_scale", WeightForm.PALETTE4: "constexpr_lut_to_dense",
}  # fmt: skip


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding(form: WeightForm, shape: tuple[int, ...]) -> None:
    """Little is lost, the evaluator makes the same numbers of the codes, scales and palettes are numbers of f16, and it is the same each time."""
    x = normal(shape)
    found, again = coded(form, x), coded(form, x)
    assert np.sqrt(np.mean((found.numbers - x) ** 2) / np.mean(x**2)) < ERROR[form]
    np.testing.assert_array_equal(NUMPY[found.op](**found.operands), found.numbers)
    for name, array in found.operands.items():
        assert np.asarray(array).tobytes() == np.asarray(again.operands[name]).tobytes()
        if name in ("scale", "lut"):
            np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))
        elif name == found.packed:
            low = -8 if form is WeightForm.INT4 else 0
            assert array.shape == shape and low <= array.min() and array.max() <= low + 15


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9, 3e4])
def test_matrices_of_one_number(form: WeightForm, value: float) -> None:
    x = np.full((32, 64), value, np.float32)
    x[0, :8] = -value
    assert np.abs(coded(form, x).numbers - x).max() <= max(abs(value) * 1e-3, 1e-6) + (abs(value) / 13 if form is WeightForm.INT4 else 0)


def test_palettes_fit_what_is_there() -> None:
    """Sixteen numbers come back as they are; centres stand where their own numbers have their mean."""
    few = np.random.default_rng(1).choice(np.linspace(-4, 3.5, 16), (64, 64)).astype(np.float32)
    np.testing.assert_array_equal(coded(WeightForm.PALETTE4, few).numbers, few)
    x = normal((32, 64))
    found = coded(WeightForm.PALETTE4, x)
    for n in range(16):
        mine = x[found.operands["indices"] == n]
        assert mine.size and abs(mine.mean() - found.operands["lut"].reshape(-1)[n]) < 1e-4


def test_a_number_for_each_block() -> None:
    """With an offset, and blocks on two axes, as others may write it."""
    data, scale, offset = np.arange(24).reshape(4, 6), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[0, 1], [2, 3]])
    want = [[scale[i // 2, j // 3] * (data[i, j] - offset[i // 2, j // 3]) for j in range(6)] for i in range(4)]
    np.testing.assert_array_equal(NUMPY["constexpr_blockwise_shift_scale"](data=data, scale=scale, offset=offset), want)
    indices, lut = np.arange(24).reshape(4, 6) % 4, np.arange(16, dtype=np.float32).reshape(2, 2, 4, 1)
    want = [[lut[i // 2, j // 3, indices[i, j], 0] for j in range(6)] for i in range(4)]
    np.testing.assert_array_equal(NUMPY["constexpr_lut_to_dense"](indices=indices, lut=lut), want)


LLAMA = text_models(1)["llama"]


def blobs(path: Path) -> list[bytes]:
    """What lies in a file of weights: 64 bytes say of each of what type it is, how long, and where."""
    raw = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    found, at = [], 64
    for _ in range(struct.unpack_from("<I", raw)[0]):
        sentinel, _, size, offset = struct.unpack_from("<IIQQ", raw, at)
        assert sentinel == 0xDEADBEEF
        found.append(raw[offset : offset + size])
        at = -(-(offset + size) // 64) * 64
    return found


@pytest.mark.parametrize("form", FORMS)
def test_the_file(form: WeightForm, tmp_path: Path) -> None:
    """Read without coremltools: two codes in a byte, the first in the low bits. Embeddings have codes too; vectors have none."""
    path, module = tmp_path / "m.mlpackage", tfir.api.to_module(LLAMA)
    made = tfir.export(LLAMA, str(path), quantize=form.value)
    matrices = [w for w in module.weights.values() if w.type.rank == 2]
    assert made.kinds[form.value] == len(matrices)  # type: ignore[union-attr]
    package = Package(path)
    assert package.metadata[WEIGHTS_KEY] == form.value
    assert sum(op.op_type == OPS[form] for op in package.program.functions["main"].operations) == len(matrices)
    stored = blobs(path)
    for w in matrices:
        found = coded(form, np.asarray(w.data))
        if found.packed is None:
            want = found.operands["quantized_data"].tobytes()
        else:
            low, high = found.operands[found.packed].reshape(-1, 2).astype(np.uint8).T & 15
            want = (low | high << 4).astype(np.uint8).tobytes()
        assert want in stored
        assert found.operands["lut" if form is WeightForm.PALETTE4 else "scale"].astype(np.float16).tobytes() in stored


def test_what_weights_are_rounded_to() -> None:
    """Matrices of some size alone; the graph that was given stays as it is."""
    module = tfir.api.to_module(LLAMA)
    found = rounded_module(module, WeightForm.INT4)
    for name, w in module.weights.items():
        same = np.array_equal(np.asarray(w.data), np.asarray(found.weights[name].data))
        assert same == (w.type.rank < 2)


def test_weights_that_overflow_stay_in_f32(tmp_path: Path) -> None:
    """A product whose sums are beyond f16 keeps f32, with its codes; a table that it shares is read there by others, too."""
    path = tmp_path / "m.mlpackage"
    w = {"table": normal((64, 64)) * 50.0}

    def f(ids: Any, x: Any) -> Any:
        table = Parameter("table", (64, 64))
        return F.linear(x * 3e4, table) * 1e-5 + F.embedding(ids, table) + F.linear(x, table)

    module = tfir.trace(f, DType.i32["n"], tfir.f32["n", 64], weights=w)
    made = write_coreml(str(path), module, weights=WeightForm.INT4)
    assert made.wide and made.kinds["int4"] == 1
    ids, x = np.arange(5, dtype=np.int32), normal((5, 64), 1) * 50
    (got,) = Package(path).run({"ids": ids, "x": x}).values()
    (want,) = listed(tfir.evaluate(rounded_module(module, WeightForm.INT4), ids, x))
    assert np.isfinite(got).all() and np.abs(got - want).max() <= 3e-3 * np.abs(want).max()
