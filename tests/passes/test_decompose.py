"""Einsum as matrix products: the same bits where each product is one rounding, and the reasons where it stays."""

from __future__ import annotations

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.passes.decompose import Decompose
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.tools.probes import draw_dims, draw_inputs

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
        dims = draw_dims(before, random)
        arrays = draw_inputs(before, dims, random)
        np.testing.assert_array_equal(evaluate(before, **arrays), evaluate(module, **arrays))


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
