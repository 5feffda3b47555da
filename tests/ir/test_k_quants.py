"""K-quants next to llama.cpp's own quantizer, which is a function of the library that its Python package is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import xllamacpp

from trustformers_ir.ir.block_formats import Format, dequantize, quantize
from trustformers_ir.ir.block_layouts import join, split

FORMATS = (Format.Q2_K, Format.Q3_K, Format.Q4_K, Format.Q5_K, Format.Q6_K)
RNG = np.random.default_rng(0)
ROWS: dict[str, Callable[[], np.ndarray]] = {
    "normal": lambda: RNG.normal(0, 0.02, (48, 1024)),
    "heavy tails": lambda: RNG.standard_t(3, (48, 1024)) * 0.02,
    "uniform": lambda: RNG.uniform(-1, 1, (48, 1024)),
    "not around zero": lambda: RNG.normal(0.05, 0.02, (48, 1024)),
    "above zero": lambda: np.abs(RNG.normal(0, 1, (48, 1024))),
    "below zero": lambda: -np.abs(RNG.normal(0, 1, (48, 1024))),
}


@pytest.fixture(scope="module")
def theirs() -> Callable[[Format, np.ndarray], np.ndarray]:
    """``ggml_quantize_chunk``, from rows to blocks."""
    function = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so")))).ggml_quantize_chunk
    function.restype, pointer, size = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]

    def made(format: Format, rows: np.ndarray) -> np.ndarray:
        kind = gguf.GGMLQuantizationType[format.name]
        elements, bytes = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros(rows.size // elements * bytes, np.uint8)
        assert function(int(kind), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None) == out.size
        return out.reshape(len(rows), -1)

    return made


def off(format: Format, planes: dict[str, np.ndarray], rows: np.ndarray) -> float:
    return float(np.linalg.norm(dequantize(format, planes).astype(np.float64) - rows))


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.value)
def test_no_further_from_the_numbers_than_llama_cpp(format: Format, kind: str, theirs: Callable[[Format, np.ndarray], np.ndarray]) -> None:
    rows = ROWS[kind]().astype(np.float32)
    blocks, planes = theirs(format, rows), quantize(format, rows)
    same = (join(format, planes) == blocks).mean()
    assert off(format, planes, rows) <= 1.0001 * off(format, split(format, blocks), rows)
    if format is not Format.Q6_K:  # there a better step beside the nearest is taken
        assert same > (0.999 if format is Format.Q3_K else 0.95)


@pytest.mark.parametrize("format", FORMATS, ids=lambda f: f.value)
def test_rows_that_are_not_ordinary(format: Format, theirs: Callable[[Format, np.ndarray], np.ndarray]) -> None:
    """Zeros, one number, one element, tiny and huge ones: never worse than llama.cpp, and never something that is no number."""
    rows = np.zeros((8, 512), np.float32)
    rows[1], rows[2, 7], rows[3] = 0.25, -3.0, -0.5
    rows[4], rows[5] = RNG.normal(0, 1e-7, 512), RNG.normal(0, 1e4, 512)
    rows[6, :256], rows[6, 256:] = RNG.normal(0, 1, 256), RNG.normal(0, 1e-3, 256)
    rows[7, ::32] = 1.0
    planes = quantize(format, rows)
    assert np.isfinite(dequantize(format, planes)).all() and not dequantize(format, planes)[0].any()
    blocks = theirs(format, rows)
    for n in range(8):
        mine, other = ({k: p[n : n + 1] for k, p in ps.items()} for ps in (planes, split(format, blocks)))
        assert off(format, mine, rows[n : n + 1]) <= 1.001 * off(format, other, rows[n : n + 1]) + 1e-30, n
