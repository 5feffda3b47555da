"""Weights in panels: which products are packed, and that the results keep their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Block, Function, Module, Weight
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.types import Panels, TensorType
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.passes.pack_weights import PackWeights

SMALL = "random:bert?hidden_size=32&num_hidden_layers=1&num_attention_heads=4&intermediate_size=80&vocab_size=50&max_position_embeddings=16"


def packed(module: Module, **options: Any) -> PassLog:
    return PassManager([FoldWeights(), PackWeights(**options)], verify=True).run(module).passes[1].log


def test_a_model_keeps_its_bits() -> None:
    module = tfir.api.to_module(SMALL)
    before = clone_module(module)
    log = packed(module)
    assert log.counts["weights packed"] == 7
    ids = np.array([[1, 2, 3, 4]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for a, b in zip(evaluate(before, **inputs), evaluate(module, **inputs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("width", "expected"), [(48, {32: 6, 48: 1}), (16, {16: 7})])
def test_narrow_matrices_get_narrow_panels(width: int, expected: dict[int, int]) -> None:
    module = tfir.api.to_module(SMALL)
    packed(module, width=width)
    found = [o.inputs[1].type.layout for o in module.main.body if isinstance(o.op, ops.Linear)]
    assert {w: sum(layout == Panels(w) for layout in found) for w in expected} == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matmul_with_a_weight_becomes_a_linear(transposed: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    module = tfir.trace(lambda x, w: x @ (w.transpose(0, 1) if transposed else w), tfir.f32["n", 20], tfir.f32[20, 20])
    bind(module, weight)
    before = clone_module(module)
    packed(module)
    assert [o.op.mnemonic for o in module.main.body if o.op.mnemonic in ("linear", "matmul")] == ["linear"]
    x = np.random.default_rng(1).standard_normal((3, 20)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(before, x), evaluate(module, x))


def bind(module: Module, weight: np.ndarray) -> None:
    """Make the last argument of the module a weight."""
    argument = module.main.args[-1]
    module.add_weight(Weight("w", argument.type, weight))
    first = module.main.body.operations[0]
    argument.replace_all_uses_with(Builder.before(module, first)(ops.WeightOp("w")))
    module.main.body.args.remove(argument)


def test_what_is_computed_is_not_packed() -> None:
    module = tfir.trace(lambda x, y: F.linear(x, y.tanh()), tfir.f32["n", 4], tfir.f32[6, 4])
    log = packed(module)
    assert ("packed", "linear: the right side is computed") in log.misses


def test_casts_and_views_of_weights_are_weights() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    module = tfir.trace(lambda x, w: x.astype(tfir.bf16) @ w.reshape(6, 4).astype(tfir.bf16).transpose(0, 1), tfir.f32["n", 4], tfir.f32[4, 6])
    bind(module, weight)
    before = clone_module(module)
    packed(module)
    assert [o.op.mnemonic for o in module.main.body if o.op.mnemonic not in ("weight", "return")] == ["cast", "linear"]
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(before, x).astype(np.float32), evaluate(module, x).astype(np.float32))


@pytest.mark.parametrize(("rows", "width"), [(20, 32), (100, 48)])
def test_weights_of_bytes_get_panels_four_deep(rows: int, width: int) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (rows, 10), np.int8)
    module = int8_module(weight)
    before = clone_module(module)
    log = packed(module)
    assert log.counts["weights packed"] == 1
    (product,) = (o for o in module.main.body if isinstance(o.op, ops.LinearInt8))
    assert product.inputs[3].type.layout == Panels(width, 4)
    x = np.random.default_rng(1).standard_normal((3, 10)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(before, x), evaluate(module, x))


def int8_module(weight: np.ndarray) -> Module:
    """The codes of an argument by a weight of bytes."""
    n, k = weight.shape
    module = Module("int8", Facts({"n": SymbolFact()}))
    parts = {"w": weight, "scale": np.full(n, 0.5, np.float32), "sum": weight.sum(1, dtype=np.int32)}
    for name, array in parts.items():
        module.add_weight(Weight(name, TensorType(array.shape, DType.from_numpy(array.dtype)), array))
    block = Block()
    x = block.add_arg(tfir.f32["n", k], "x")
    module.add_function(Function("main", block))
    build = Builder(module, block)
    codes = build.create(ops.QuantizeDynamic(), x)
    build.create(ops.Return(), build(ops.LinearInt8(), *codes.results, *(build(ops.WeightOp(name)) for name in parts), None))
    return module


@pytest.mark.parametrize("shape", [(4, 0), (0, 4)])
def test_empty_weights_are_left_alone(shape: tuple[int, int]) -> None:
    n = shape[0]
    exe = tfir.compile(lambda x: x @ F.tensor(np.zeros(shape, np.float32)), tfir.f32["n", n])
    assert exe(np.ones((3, n), np.float32)).tolist() == np.zeros((3, shape[1])).tolist()
