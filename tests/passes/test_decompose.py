"""Einsums and convolutions as matrix products: the same bits where each product is one rounding, and the reasons where they stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.codegen import build
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.passes import pipelines
from trustformers_ir.passes.decompose import Decompose
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.runtime.executable import Executable

f32 = tfir.f32
SIZES = {"b": "b", "h": 3, "i": "i", "j": 4, "k": 5, "l": 2}


def einsum(equation: str) -> Module:
    terms = equation.split("->")[0].split(",")
    return tfir.trace(lambda *xs: F.einsum(equation, *xs), *(f32[tuple(SIZES[c] for c in term)] for term in terms))


def decomposed(module: Module) -> PassLog:
    return PassManager([Decompose()], verify=True).run(module).passes[0].log


@pytest.mark.parametrize(
    "equation",
    ["ij,jk->ik", "ij,kj->ik", "ij,jk->ki", "bij,bjk->bik", "bihk,bjhk->bhij", "bhij,bjhk->bihk", "ij,bjk->bik", "ijk,ljk->il", "j,j->", "ij,j->i"],
)
def test_two_operands(equation: str) -> None:
    module = einsum(equation)
    before = clone_module(module)
    assert decomposed(module).counts["einsum to matmul"] == 1
    assert "einsum" not in {o.op.mnemonic for o in module.main.body}
    random = np.random.default_rng(0)
    for _ in range(3):
        same_bits(before, module, random)


def same_bits(before: Module, after: Module, random: np.random.Generator) -> None:
    """Inputs drawn for ``before`` give the same bits in both."""
    arrays = draw_inputs(before, draw_dims(before, random), random)
    np.testing.assert_array_equal(evaluate(before, **arrays), evaluate(after, **arrays))


REFUSED = {
    "ij,jk,kl->il": "it has 3 operands",
    "ii->i": "it has 1 operands",
    "ij,kl->ik": "a letter of one operand alone is summed",
    "i,j->ij": "nothing is contracted",
    "jj,jk->k": "a letter repeats in one operand",
}


@pytest.mark.parametrize("equation", REFUSED)
def test_what_is_left_alone(equation: str) -> None:
    log = decomposed(einsum(equation))
    assert ("decomposed", f"einsum {equation}: {REFUSED[equation]}") in log.misses


@pytest.mark.parametrize("equation", [*REFUSED, "bij,bjk->bik", "bihk,bjhk->bhij"])
def test_every_einsum_compiles(equation: str) -> None:
    module = einsum(equation)
    exe = tfir.compile(module)
    random = np.random.default_rng(0)
    arrays = draw_inputs(module, draw_dims(module, random), random)
    np.testing.assert_allclose(exe(**arrays), evaluate(module, **arrays), rtol=1e-5, atol=1e-6)


# --- convolutions ------------------------------------------------------------------------------------------------------------------


def convolution(window: tuple[int, ...], sizes: tuple[Any, ...], bias: bool = True, dtype: DType = f32, facts: Any = None, **options: Any) -> Module:
    """A convolution of 3 channels of the given sizes into 5; its windows touch unless the options say otherwise."""
    apply = F.conv1d if len(window) == 1 else F.conv2d
    stride = options.pop("stride", window[0] if len(window) == 1 else window)
    channels = 3 * options.get("groups", 1)
    outputs = 5 * options.get("groups", 1)
    types = [dtype[("b", channels, *sizes)], dtype[(outputs, 3, *window)], *([dtype[outputs]] if bias else [])]
    known = {name: fact for name, fact in (facts or {}).items() if name in str(sizes)}
    return tfir.trace(lambda x, w, b=None: apply(x, w, b, stride, **options), *types, facts=known)


TOUCHING = {
    "patches": ((4, 4), (8, 8)),
    "oblong patches": ((2, 3), (6, 9)),
    "one patch": ((5, 4), (5, 4)),
    "rows": ((1, 4), (3, 8)),
    "points": ((1, 1), (3, 4)),
    "more than whole patches": ((4, 3), (11, 7)),
    "any size": ((2, 2), ("h", "w")),
    "any multiple": ((2, 4), ("2*h", "4*w")),
    "a line": ((4,), (12,)),
    "a line and more": ((4,), (15,)),
    "any line": ((3,), ("h",)),
}


@pytest.mark.parametrize("name", TOUCHING)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [f32, tfir.bf16, DType.f16, DType.i32, DType.i8])
def test_windows_that_touch(name: str, bias: bool, dtype: DType) -> None:
    window, sizes = TOUCHING[name]
    module = convolution(window, sizes, bias, dtype, {"h": SymbolFact(4), "w": SymbolFact(4)})
    before = clone_module(module)
    assert decomposed(module).counts["convolution to linear"] == 1
    found = [o.op.mnemonic for o in module.main.body]
    assert "linear" in found and not {"conv1d", "conv2d"} & set(found)
    assert module.main.output_types == before.main.output_types
    random = np.random.default_rng(0)
    for _ in range(3):
        same_bits(before, module, random)


def test_random_convolutions() -> None:
    """Windows, sizes, dtypes and biases drawn at random."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        window = tuple(int(random.integers(1, 6)) for _ in range(random.integers(1, 3)))
        sizes = tuple(k * int(random.integers(1, 4)) + int(random.integers(0, k)) for k in window)
        module = convolution(window, sizes, bool(random.integers(2)), [f32, tfir.bf16][seed % 2])
        before = clone_module(module)
        decomposed(module)
        same_bits(before, module, random)


def test_multiples_are_not_cut() -> None:
    for sizes, cut in (((8, 12), 0), ((8, 13), 1), ((9, 13), 2), (("h", "w"), 1)):
        module = convolution((4, 4), sizes, facts={"h": SymbolFact(4, divisor=4), "w": SymbolFact(4)})
        decomposed(module)
        assert sum(isinstance(o.op, ops.Slice) for o in module.main.body) == cut


STAYS = {
    "conv2d: axis 3 is padded": convolution((4, 4), (8, 8), padding=(0, 1)),
    "conv2d: windows of 3 every 2 along axis 2 do not touch without overlapping": convolution((3, 3), (9, 9), stride=2),
    "conv2d: windows of 2 every 3 along axis 2 do not touch without overlapping": convolution((2, 2), (9, 9), stride=3),
    "conv2d: windows have gaps along axis 2": convolution((2, 1), (9, 9), dilation=2),
    "conv2d: it has 2 groups": convolution((4, 4), (8, 8), groups=2),
    "conv1d: axis 2 is padded": convolution((4,), (8,), padding=(1, 0)),
    "conv1d: windows have gaps along axis 2": convolution((4,), (16,), dilation=3),
}


@pytest.mark.parametrize("reason", STAYS)
def test_convolutions_that_stay(reason: str) -> None:
    module = clone_module(STAYS[reason])
    log = decomposed(module)
    assert ("decomposed", reason) in log.misses
    assert str(module) == str(STAYS[reason])


def test_a_dilated_point_is_a_point() -> None:
    module = convolution((1, 1), (3, 4), dilation=(2, 3))
    assert decomposed(module).counts["convolution to linear"] == 1


@pytest.mark.parametrize("name", ["patches", "oblong patches", "points", "more than whole patches", "a line and more"])
@pytest.mark.parametrize("dtype", [f32, tfir.bf16])
def test_native_results_keep_their_bits(name: str, dtype: DType) -> None:
    """The convolution's own kernel and the matrix product add the same products in the same order."""
    module = convolution(*TOUCHING[name], dtype=dtype)
    random = np.random.default_rng(0)
    arrays = draw_inputs(module, {"b": 3}, random)
    np.testing.assert_array_equal(native(module, True)(**arrays), native(module, False)(**arrays))


def test_native_results_of_a_packed_weight_keep_their_bits() -> None:
    module = random_model("random:vit?num_hidden_layers=0&hidden_size=80&num_attention_heads=1&image_size=[48,33]")
    arrays = draw_inputs(module, {"batch": 3}, np.random.default_rng(0))
    for packed, plain in zip(native(module, True)(**arrays), native(module, False)(**arrays), strict=True):
        np.testing.assert_array_equal(packed, plain)


def native(module: Module, decompose: bool) -> Any:
    """The module compiled with or without this pass."""
    module = clone_module(module)
    target = build.find_target("cpu")
    names = {f.name: [v.name for v in f.outputs] for f in module.functions.values()}
    passes = [p for p in pipelines.cpu(build.machine_shape(target).panel) if decompose or not isinstance(p, Decompose)]
    PassManager(passes).run(module)
    return Executable(build.build(module, target, names), 2)
