"""Block formats beside the reference implementation of GGML's in Python: the same bytes from the same numbers, and the same numbers back."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from trustformers_ir.ir.block_formats import FORMATS, PLANES, Format, dequantize, pair, quantize, unpair
from trustformers_ir.ir.block_layouts import join, split

FILES = [f for f, row in FORMATS.items() if row.bytes]
QUANTIZED = [f for f in FILES if FORMATS[f].quantize is not None and not f.value.endswith("_k")]  # those: test_k_quants.py


def theirs(format: Format) -> GGMLQuantizationType:
    return GGMLQuantizationType[format.name]


def rows(seed: int = 0) -> np.ndarray:
    """Ordinary rows, with groups of zeros, of one number, of huge and of tiny ones, and ties."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.02, (24, 1024)).astype(np.float32)
    w[0, :32], w[1, :64], w[2] = 0, 0.25, 0
    w[3, 32:64] *= 1e6
    w[4, :32] *= 1e-6
    w[5, :32] = np.arange(-16, 16)
    w[6, :32] = np.tile([-1, 1], 16)
    w[7] = np.round(w[7] * 512) / 8
    w[8, :32] = -0.0
    return w


def random_blocks(format: Format, n: int = 20, count: int = 3) -> np.ndarray:
    """Any bytes at all, but for scales, which are kept finite, and the second zero of mxfp4, which does not come back."""
    row = FORMATS[format]
    cells = np.random.default_rng(1).integers(0, 256, (n, count, row.bytes), np.uint8)
    at = {Format.Q6_K: [209], Format.Q3_K: [109], Format.Q2_K: [81, 83]}.get(format, [1, 3] if "low" in row.planes else [1])
    if format is Format.MXFP4:
        codes = cells[:, :, 1:]
        codes[codes & 15 == 8] ^= 8
        codes[codes >> 4 == 8] ^= 128
        cells[0, :, 0] = [0, 1, 255]
        return cells.reshape(n, -1)
    cells[:, :, at] &= 0xBB  # an exponent of f16 that is not the largest
    return cells.reshape(n, -1)


@pytest.mark.parametrize("format", FILES)
def test_the_table_has_the_sizes_of_files(format: Format) -> None:
    row = FORMATS[format]
    assert (row.block, row.bytes) == gguf.GGML_QUANT_SIZES[theirs(format)]
    assert set(row.planes) <= set(PLANES) and list(row.planes) == [p for p in PLANES if p in row.planes]


@pytest.mark.parametrize("format", QUANTIZED)
@pytest.mark.parametrize("seed", range(3))
def test_quantized_bytes_are_those_of_the_reference(format: Format, seed: int) -> None:
    w = rows(seed)
    blocks = join(format, quantize(format, w))
    assert blocks.tobytes() == quants.quantize(w, theirs(format)).tobytes()


@pytest.mark.parametrize("format", FILES)
def test_numbers_are_those_of_the_reference(format: Format) -> None:
    """Every bit of every number, from any bytes."""
    blocks = random_blocks(format)
    planes = split(format, blocks)
    row = FORMATS[format]
    shapes = row.shapes(len(blocks), blocks.shape[1] // row.bytes * row.block)
    assert {name: (p.shape, p.dtype) for name, p in planes.items()} == {n: (shapes[n], row.planes[n].dtype.numpy) for n in shapes}
    want = quants.dequantize(blocks, theirs(format))
    assert dequantize(format, planes).tobytes() == want.tobytes()


@pytest.mark.parametrize("format", FILES)
def test_planes_go_back_to_the_same_blocks(format: Format) -> None:
    blocks = random_blocks(format)
    assert join(format, split(format, blocks)).tobytes() == blocks.tobytes()


@pytest.mark.parametrize("group", [2, 32, 128, 256])
def test_pairs_go_back(group: int) -> None:
    codes = np.random.default_rng(2).integers(0, 16, (3, 512), np.uint8)
    packed = pair(codes, group)
    assert packed[1, 0] == codes[1, 0] | codes[1, group // 2] << 4
    assert np.array_equal(unpair(packed, group), codes)


@pytest.mark.parametrize("format", [Format.INT4, Format.INT4_ZERO])
@pytest.mark.parametrize("group", [32, 128])
def test_plain_groups_round_to_the_nearest(format: Format, group: int) -> None:
    """No number moves by more than half a step, but where an end of the codes is nearer to zero than the element: q4_0's trade."""
    w = rows()
    planes = quantize(format, w, group)
    step = np.repeat(np.abs(planes["scale"].astype(np.float32)), group, axis=1)
    moved = np.abs(dequantize(format, planes, group) - w)
    assert (moved <= step * (1.01 if format is Format.INT4 else 0.52) + 1e-6).all()
    assert (dequantize(format, planes, group)[w == 0] == 0).all()


def test_what_has_no_quantizer_says_so() -> None:
    with pytest.raises(ValueError, match="nothing is quantized to iq4_nl yet"):
        quantize(Format.IQ4_NL, np.zeros((1, 256), np.float32))


@pytest.mark.parametrize(("format", "bits"), [(Format.Q8_0, 8.5), (Format.Q4_0, 4.5), (Format.Q4_1, 5.0), (Format.Q4_K, 4.625), (Format.INT4, 4.125)])
def test_bits_of_a_weight(format: Format, bits: float) -> None:
    assert FORMATS[format].bits_per_weight(128) == bits
