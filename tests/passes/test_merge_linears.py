"""One product for queries, keys and values: when it is made, and that every bit stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.passes.merge_linears import MergeLinears

RNG = np.random.default_rng(0)
f32 = tfir.f32
WIDE = 320  # so wide that a bias is a weight, and not written into the graph


def weight(*shape: int) -> Any:
    return F.tensor(RNG.standard_normal(shape).astype(np.float32))


def heads(x: Any, count: int) -> Any:
    return x.reshape(x.shape[0], x.shape[1], count, x.shape[2] // count).transpose(1, 2)


def merged(module: Module) -> PassLog:
    before = clone_module(module)
    log = PassManager([MergeLinears()], verify=True).run(module).passes[0].log
    arrays = draw_inputs(before, draw_dims(before, np.random.default_rng(0)), np.random.default_rng(0))
    np.testing.assert_array_equal(evaluate(before, **arrays), evaluate(module, **arrays))
    return log


def products(module: Module) -> list[int]:
    return [o.result.type.shape[-1] for o in module.main.body if isinstance(o.op, ops.Linear)]  # type: ignore[misc]


@pytest.mark.parametrize("bias", [False, True])
def test_queries_keys_and_values(bias: bool) -> None:
    def attend(x: Any) -> Any:
        q, k, v = (F.linear(x, weight(WIDE, 48), weight(WIDE) if bias else None) for _ in range(3))
        return F.attention(heads(q, 4), heads(k, 4), heads(v, 4))

    module = tfir.trace(attend, f32["b", "s", 48])
    assert merged(module).counts["attention with one projection"] == 1
    assert products(module) == [3 * WIDE]


def test_grouped_queries_have_narrower_keys() -> None:
    def attend(x: Any) -> Any:
        return F.attention(heads(F.linear(x, weight(64, 48)), 4), heads(F.linear(x, weight(32, 48)), 2), heads(F.linear(x, weight(32, 48)), 2))

    module = tfir.trace(attend, f32["b", "s", 48])
    merged(module)
    assert products(module) == [128]


def test_rotary_embeddings_stand_between() -> None:
    def attend(x: Any, cos: Any, sin: Any) -> Any:
        q, k, v = (heads(F.linear(x, weight(n, 48)), n // 16) for n in (64, 32, 32))
        return F.attention(F.rope(q, cos, sin), F.rope(k, cos, sin), v, causal=True)

    module = tfir.trace(attend, f32["b", "s", 48], f32["s", 8], f32["s", 8])
    merged(module)
    assert products(module) == [128]
    labels = [set(k.label.split("+")) for k in tfir.compile(module).manifest.entries[0].kernels]
    views = {"slice", "reshape", "transpose"}
    assert labels == [{"linear"}, views | {"rope"}, views | {"rope"}, views | {"attention"}]


def test_across_two_inputs_keys_and_values_share() -> None:
    def attend(x: Any, y: Any) -> Any:
        q, k, v = F.linear(x, weight(48, 48)), F.linear(y, weight(48, 48)), F.linear(y, weight(48, 48))
        return F.attention(heads(q, 4), heads(k, 4), heads(v, 4))

    module = tfir.trace(attend, f32["b", "s", 48], f32["b", "t", 48])
    merged(module)
    assert sorted(products(module)) == [48, 96]


REFUSED = {
    "no two of them are products of the same value": lambda x: F.attention(heads(x, 4), heads(x, 4), heads(F.linear(x, weight(48, 48)), 4)),
    "one has a bias and another has none": lambda x: F.attention(
        heads(F.linear(x, weight(48, 48), weight(48)), 4), heads(F.linear(x, weight(48, 48)), 4), heads(x, 4)
    ),
    "a weight is computed": lambda x: F.attention(
        heads(F.linear(x, weight(48, 48).tanh()), 4), heads(F.linear(x, weight(48, 48)), 4), heads(x, 4)
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_left_alone(reason: str) -> None:
    log = merged(tfir.trace(REFUSED[reason], f32["b", "s", 48]))
    assert ("merged", f"projections of an attention: {reason}") in log.misses


def test_a_projection_that_something_else_reads_stays() -> None:
    def attend(x: Any) -> Any:
        q, k = F.linear(x, weight(48, 48)), F.linear(x, weight(48, 48))
        return F.attention(heads(q, 4), heads(k, 4), heads(x, 4)).sum() + q.sum()

    module = tfir.trace(attend, f32["b", "s", 48])
    merged(module)
    assert products(module) == [48, 48]


def test_compiled_it_is_one_kernel_and_no_copy() -> None:
    exe = tfir.compile("random:bert?hidden_size=96&num_hidden_layers=1&vocab_size=50")
    labels = [k.label for k in exe.manifest.entries[0].kernels]
    assert labels.count("linear") == 1 and not any(label.startswith("slice+reshape+transpose") and "attention" not in label for label in labels)
