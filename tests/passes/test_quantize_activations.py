"""Products by weights in blocks take 8-bit activations: what the pass writes and leaves alone, and how far results move."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.block_formats import dequantize, quantize
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.core import Block, Function, Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.rounding import fma_f32, round_to
from trustformers_ir.ir.types import Panels
from trustformers_ir.passes.block_planes import BlockPlanes
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.passes.pack_weights import PackWeights
from trustformers_ir.passes.quantize_activations import QuantizeActivations
from trustformers_ir.passes.quantize_blocks import Format, QuantizeBlocks

RNG = np.random.default_rng(3)
SMALL = "random:llama?num_hidden_layers=2&hidden_size=64&intermediate_size=96&num_attention_heads=4&num_key_value_heads=2&vocab_size=99"


def weight(n: int, k: int) -> np.ndarray:
    return RNG.standard_normal((n, k)).astype(np.float32)


def run(module: Module, format: Format = Format.Q4_1) -> PassLog:
    group = 0 if format is not Format.INT4 else 32
    return PassManager([QuantizeBlocks(format, group, heads=True), QuantizeActivations(), Dce()], verify=True).run(module).passes[1].log


def kinds(module: Module) -> list[str]:
    return [o.op.mnemonic for o in module.walk() if "groups" in o.op.mnemonic or "blocks" in o.op.mnemonic]


def test_products_of_one_activation_share_its_codes() -> None:
    a, b, c = weight(40, 64), weight(24, 64), weight(16, 40)
    module = tfir.trace(lambda x: (F.linear(F.linear(x, F.tensor(a)), F.tensor(c[:, :40])), F.linear(x, F.tensor(b))), tfir.f32["n", 64])
    log = run(module)
    assert log.counts == {"products by 8-bit activations": 2, "activations quantized": 1}  # 40 terms are no whole blocks
    assert kinds(module) == ["quantize_groups", "linear_blocks_int8", "linear_blocks_int8"]


@pytest.mark.parametrize("format", [Format.Q8_0, Format.Q4_0, Format.Q4_1, Format.INT4])
def test_results_move_by_the_rounding_of_the_activation(format: Format) -> None:
    w, bias, x = weight(40, 256), RNG.standard_normal(40).astype(np.float32), RNG.standard_normal((9, 256)).astype(np.float32)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(w), F.tensor(bias)), tfir.f32["n", 256])
    PassManager([QuantizeBlocks(format, 32 if format is Format.INT4 else 0, heads=True)]).run(module)
    want = np.asarray(evaluate(module, x), np.float64)
    PassManager([QuantizeActivations(), PackWeights(), Dce()], verify=True).run(module)
    (product,) = (o for o in module.walk() if isinstance(o.op, ops.LinearBlocksInt8))
    assert product.inputs[4].type.layout == Panels(16, 4) and product.inputs[5].type.layout == Panels(16)
    got = evaluate(module, x)
    assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.01
    np.testing.assert_array_equal(tfir.compile(module)(x), got)


def test_what_stays() -> None:
    w = round_to(weight(40, 64), tfir.DType.bf16)
    module = tfir.trace(lambda x: F.linear(x, F.tensor(w)), tfir.bf16["n", 64])
    log = run(module)
    assert kinds(module) == ["linear_blocks"] and list(log.misses) == [("8-bit activations", "the activation is bf16")]


def test_a_dtype_keeps_activations_as_they_are() -> None:
    """Who says what a model computes in gets that; the default is what other CPU runtimes do."""
    given = {"input_ids": RNG.integers(0, 99, (2, 9)), "attention_mask": np.ones((2, 9), np.int64)}
    default, exact = (tfir.compile(SMALL, quantize="q8_0", dtype=dtype) for dtype in (None, "f32"))
    assert "linear_blocks_int8" in kinds(default.module) and "linear_blocks" not in kinds(default.module)
    assert set(kinds(exact.module)) == {"linear_blocks"}
    a, b = default(**given), exact(**given)
    assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(b) < 0.02


def test_fma_rounds_once() -> None:
    """Against the C library; sums of two f64 that lie halfway between two f32 are where it matters."""
    fmaf = ctypes.CDLL("libm.so.6").fmaf
    fmaf.argtypes, fmaf.restype = [ctypes.c_float] * 3, ctypes.c_float
    a, b, c = (RNG.standard_normal(4000).astype(np.float32) * np.float32(2.0) ** RNG.integers(-60, 60, 4000) for _ in range(3))
    a, b = a.astype(np.float32), b.astype(np.float32)
    c = np.where(RNG.random(4000) < 0.5, -(a * b), c).astype(np.float32)
    a[:4], b[:4], c[:4] = [np.inf, np.nan, 1, 1 + 2**-23], [1, 1, np.inf, 1 + 2**-23], [-np.inf, 1, 1, 2**-60]
    want = np.array([fmaf(x, y, z) for x, y, z in zip(a, b, c, strict=True)], np.float32)
    np.testing.assert_array_equal(fma_f32(a, b, c), want)


@pytest.mark.parametrize("format", [Format.Q8_0, Format.Q4_1, Format.Q4_0])
def test_a_table_that_is_a_weight_as_well_is_packed_once(format: Format) -> None:
    """Tied embeddings: rows are read from the panels of the product, with the same bits."""
    planes = quantize(format, weight(40, 64))
    module, block = Module("tied"), Block()
    module.facts.declare("n")
    module.add_function(Function("main", block))
    build = Builder(module, block)
    held = BlockPlanes("w", format, (40, 64), 32, lambda: dict(planes), ("test",))
    rows = build(ops.EmbeddingBlocks(format, 32), *held.operands(module, build), block.add_arg(tfir.i64["n"], "ids"))
    build.create(ops.Return(), rows, build(ops.LinearBlocks(format, 32), rows, *held.operands(module, build), None))
    ids = np.array([0, 39, 16, 15, 3, 16])
    want, _ = evaluate(module, ids)
    np.testing.assert_array_equal(want, dequantize(format, planes)[ids])
    exe = tfir.compile(module)
    read = [w.name for w in exe.module.weights.values()]
    assert len(read) == len(planes) and all("panels16" in name for name in read)
    got, logits = exe(ids)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(logits, evaluate(exe.module, ids)[1])
