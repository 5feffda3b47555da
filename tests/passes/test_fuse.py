"""What goes into which region, and that regions compute what the graph computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trustformers_ir.frontend.trace import trace
from trustformers_ir.ir import functional as F
from trustformers_ir.ir import ops
from trustformers_ir.ir.builder import Builder
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Block, Function, Module, Value
from trustformers_ir.ir.dims import Facts, SymbolFact
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import evaluate
from trustformers_ir.ir.ops.data import Literal
from trustformers_ir.ir.ops.region import RegionKind
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.verifier import check_module
from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import PassLog, PassManager
from trustformers_ir.passes.pack_weights import PackWeights

f32 = DType.f32


def fused(module: Module, max_ops: int = 24, twin_bytes: int = 0, scores: bool = False, sums: bool = False) -> PassLog:
    """Fuse in place, check the module and that every output keeps its bits."""
    before = clone_module(module)
    log = PassManager([Fuse(max_ops=max_ops, twin_bytes=twin_bytes, scores=scores, sums=sums)], verify=True).run(module).passes[0].log
    check_module(module)
    random = np.random.default_rng(0)
    for _ in range(2):
        dims = draw_dims(before, random)
        arrays = draw_inputs(before, dims, random)
        expected, found = evaluate(before, **arrays), evaluate(module, **arrays)
        for a, b in zip(_tuple(expected), _tuple(found), strict=True):
            np.testing.assert_array_equal(a, b)
    return log


def _tuple(values: Any) -> tuple[np.ndarray, ...]:
    return values if isinstance(values, tuple) else (values,)


def regions(module: Module) -> list[tuple[str, list[str]]]:
    """Kind and operations of every region, constants left out."""
    out = []
    for o in module.main.body:
        if isinstance(o.op, ops.Fused):
            assert o.body is not None
            out.append((o.op.kind.value, [i.op.mnemonic for i in o.body if i.op.mnemonic not in ("yield", "constant")]))
        else:
            assert isinstance(o.op, (ops.WeightOp, ops.Return)), f"{o} lies outside of the regions"
    return out


def traced(fn: Callable[..., Any], *specs: Any) -> Module:
    return trace(fn, *specs)


def test_a_chain_of_elementwise_operations_is_one_loop() -> None:
    m = traced(lambda x, y: ((x + y) * 2.0).tanh(), f32["n", 8], f32["n", 8])
    fused(m)
    assert regions(m) == [("loop", ["add", "mul", "tanh"])]


def test_a_linear_takes_what_follows_it() -> None:
    m = traced(lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r, f32["n", 8], f32[16, 8], f32[16], f32["n", 16])
    fused(m)
    assert regions(m) == [("contraction", ["linear", "gelu", "add"])]


def test_two_products_that_meet_share_one_sum() -> None:
    m = traced(lambda x, w, v: F.linear(x, w) + F.linear(x, v), f32["n", 8], f32[16, 8], f32[16, 8])
    fused(m)
    assert sorted(regions(m)) == [("contraction", ["linear"]), ("contraction", ["linear", "add"])]


# --- two products of one activation ------------------------------------------------------------------------------------------------


def gated(network: Callable[..., Any], second: int = 48, pack: bool = True) -> Module:
    """Two products of one activation by weights of 48 and ``second`` columns, packed or not, and what the network makes of them."""
    random = np.random.default_rng(0)
    w, v = (random.standard_normal((n, 320)).astype(np.float32) for n in (48, second))
    module = traced(lambda x, y: network(x, y, w, v), f32["n", 320], f32["n", 320])
    if pack:
        PassManager([PackWeights()]).run(module)
    return module


PANELS = 2 * 48 * 320 * 4
GATED: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "gate first": (lambda x, y, w, v: F.silu(F.linear(x, w)) * F.linear(x, v), ["linear", "silu", "linear", "mul"]),
    "up first": (lambda x, y, w, v: F.linear(x, v) * F.silu(F.linear(x, w)), ["linear", "linear", "silu", "mul"]),
    "both bent": (lambda x, y, w, v: F.gelu(F.linear(x, w)) * F.linear(x, v).tanh() + 1, ["linear", "gelu", "linear", "tanh", "mul", "add"]),
    "another product after it": (
        lambda x, y, w, v: F.linear(F.silu(F.linear(x, w)) * F.linear(x, v), v[:, :48]),
        ["linear", "silu", "linear", "mul"],
    ),
    "met late": (lambda x, y, w, v: (F.linear(x, w).exp() + 1) * F.linear(x, v), ["linear", "exp", "add", "linear", "mul"]),
}


@pytest.mark.parametrize("name", GATED)
def test_gate_and_up_are_one_region(name: str) -> None:
    network, expected = GATED[name]
    module = gated(network)
    assert fused(module, twin_bytes=PANELS).counts["second product of a region"] == 1
    assert regions(module)[0] == ("contraction", expected)


APART: dict[str, tuple[Callable[..., Any], dict[str, Any], str | None]] = {
    "two activations": (lambda x, y, w, v: F.silu(F.linear(x, w)) * F.linear(y, v), {}, None),
    "up is a result": (lambda x, y, w, v: (up := F.linear(x, v), F.silu(F.linear(x, w)) * up), {}, None),
    "a norm between": (lambda x, y, w, v: F.silu(F.linear(x, w)) * F.rms_norm(F.linear(x, v)), {}, None),
    "other shapes": (
        lambda x, y, w, v: F.silu(F.linear(x, w)) * F.linear(x, v),
        {"second": 1},
        "linear beside linear: their weights differ in shape, dtype or layout",
    ),
    "not packed": (
        lambda x, y, w, v: F.silu(F.linear(x, w)) * F.linear(x, v),
        {"pack": False},
        "linear beside linear: their weights are not packed",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_products_that_stay_apart(name: str) -> None:
    network, how, reason = APART[name]
    module = gated(network, **how)
    log = fused(module, twin_bytes=PANELS)
    assert not any(operations.count("linear") > 1 for _, operations in regions(module))
    assert reason is None or ("fused", reason) in log.misses


def test_panels_that_do_not_fit_a_cache_stay_apart() -> None:
    network = GATED["gate first"][0]
    log = fused(module := gated(network), twin_bytes=PANELS - 1)
    assert len(regions(module)) == 2
    assert ("fused", f"linear beside linear: a panel of each is {PANELS} bytes, and a cache has room for {PANELS - 1}") in log.misses
    fused(module := gated(network))
    assert len(regions(module)) == 2


@pytest.mark.parametrize("limit", range(2, 7))
def test_a_region_without_room_for_both(limit: int) -> None:
    """Whatever the limit is, no region needs what needs it."""
    module = gated(GATED["both bent"][0])
    fused(module, max_ops=limit, twin_bytes=PANELS)


def test_a_result_with_two_readers_ends_its_region() -> None:
    m = traced(lambda x, w: (h := F.linear(x, w), h.exp() + h.sin()), f32["n", 8], f32[16, 8])
    fused(m)
    assert regions(m) == [("contraction", ["linear"]), ("loop", ["exp", "sin", "add"])]


def test_a_norm_takes_the_sum_before_it() -> None:
    m = traced(lambda x, y, w: F.layer_norm(x + y, w) * 2.0, f32["n", 8], f32["n", 8], f32[8])
    fused(m)
    assert regions(m) == [("reduction", ["add", "layer_norm", "mul"])]


RESIDUALS: dict[str, tuple[Callable[..., Any], list[tuple[str, list[str]]]]] = {
    "read later": (
        lambda x, y, w: (s := x + y, F.linear(F.rms_norm(s), w) + s)[1],
        [("reduction", ["add", "rms_norm"]), ("contraction", ["linear", "add"])],
    ),
    "returned": (lambda x, y, w: (s := x + y, F.layer_norm(s)), [("reduction", ["add", "layer_norm"])]),
    "two norms": (
        lambda x, y, w: (s := x + y, F.layer_norm(s), F.rms_norm(s)),
        [("reduction", ["add", "layer_norm"]), ("reduction", ["rms_norm"])],
    ),
    "read before": (
        lambda x, y, w: (s := x + y, F.softmax(s), F.layer_norm(s)),
        [("loop", ["add"]), ("reduction", ["softmax"]), ("reduction", ["layer_norm"])],
    ),
    "what follows the norm comes after other readers": (
        lambda x, y, w: (s := x + y, n := F.layer_norm(s), s.exp(), n.sin())[2:],
        [("reduction", ["add", "layer_norm"]), ("loop", ["exp"]), ("loop", ["sin"])],
    ),
    "no sum": (
        lambda x, y, w: (s := x * y, F.layer_norm(s)),
        [("loop", ["mul"]), ("reduction", ["layer_norm"])],
    ),
    "a product's": (
        lambda x, y, w: (s := F.linear(x, w) + y, F.layer_norm(s)),
        [("contraction", ["linear", "add"]), ("reduction", ["layer_norm"])],
    ),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_a_norm_hands_out_the_sum_that_it_reads_where_asked(name: str) -> None:
    network, wanted = RESIDUALS[name]
    m = traced(network, f32["n", 8], f32["n", 8], f32[8, 8])
    fused(m, sums=True)
    assert regions(m) == wanted


def test_a_sum_with_other_readers_is_a_region_unless_asked() -> None:
    m = traced(RESIDUALS["returned"][0], f32["n", 8], f32["n", 8], f32[8, 8])
    fused(m)
    assert regions(m) == [("loop", ["add"]), ("reduction", ["layer_norm"])]


def quantized_norm(readers: Callable[[Builder, Value], list[Value]] = lambda b, y: [], static: bool = False, norm: Any = None) -> Module:
    """A norm of a sum, other readers of it, and after them its codes."""
    module = Module("quantized", Facts({"n": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    x, r, w = block.add_arg(f32["n", 4, 24], "x"), block.add_arg(f32["n", 4, 24], "r"), block.add_arg(f32[24], "w")
    y = build(norm or ops.LayerNorm(), build(ops.Add(), x, r), w, *([None] if norm is None else []))
    others = readers(build, y)
    if static:
        constants = (build(ops.Constant(Literal.of(np.asarray(v)))) for v in (np.float32(0.03), np.int32(128)))
        codes = build.create(ops.QuantizeStatic(), y, *constants).results
    else:
        codes = build.create(ops.QuantizeDynamic(), y).results
    build.create(ops.Return(), *codes, *others)
    return module


@pytest.mark.parametrize("norm", [None, ops.RmsNorm()])
def test_a_norm_takes_the_codes_of_its_result(norm: Any) -> None:
    module = quantized_norm(norm=norm)
    fused(module)
    mnemonic = "layer_norm" if norm is None else "rms_norm"
    assert regions(module) == [("reduction", ["add", mnemonic, "quantize_dynamic"])]


@pytest.mark.parametrize("static", [False, True])
def test_readers_of_a_norm_come_after_its_codes(static: bool) -> None:
    """The result of the norm leaves the region beside its codes, which were quantized after another reader."""
    module = quantized_norm(lambda b, y: [b(ops.Tanh(), y)], static)
    fused(module)
    codes = "quantize_static" if static else "quantize_dynamic"
    assert regions(module) == [("reduction", ["add", "layer_norm", codes]), ("loop", ["tanh"])]


def test_codes_of_what_is_no_norm_are_a_region() -> None:
    module = Module("gelu", Facts({"n": SymbolFact()}))
    block = Block()
    module.add_function(Function("main", block))
    build = Builder(module, block)
    codes = build.create(ops.QuantizeDynamic(), build(ops.Gelu(), block.add_arg(f32["n", 24], "x")))
    build.create(ops.Return(), *codes.results)
    log = fused(module)
    assert regions(module) == [("loop", ["gelu"]), ("reduction", ["quantize_dynamic"])]
    assert ("fused", "gelu before quantize_dynamic: it would be computed again in every pass of the reduction") in log.misses


def test_a_norm_does_not_repeat_what_is_dear() -> None:
    m = traced(lambda x: F.softmax(x.exp(), -1), f32["n", 8])
    log = fused(m)
    assert regions(m) == [("loop", ["exp"]), ("reduction", ["softmax"])]
    assert any("computed again" in reason for _, reason in log.misses)


def test_attention_reads_and_writes_through_views() -> None:
    def attend(x: Any, y: Any) -> Any:
        q, k = (t.reshape(t.shape[0], t.shape[1], 2, 4).transpose(1, 2) for t in (x, y))
        return F.attention(q, k, k.tanh()).transpose(1, 2).reshape(x.shape[0], x.shape[1], 8)

    m = traced(attend, f32["b", "s", 8], f32["b", "t", 8])
    fused(m)
    kinds = dict(regions(m))
    assert kinds["attention"] == ["reshape", "transpose", "attention", "transpose", "reshape"]


@pytest.mark.parametrize("scores", [False, True])
def test_attention_computes_what_its_scores_are_made_of_where_asked(scores: bool) -> None:
    """The rotary embedding of queries, not that of keys, which each block of queries would compute again; bias and mask, unless others read them."""

    def model(q: Tensor, k: Tensor, bias: Tensor, cos: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        seen = (ids > 0).reshape(2, 1, 1, 5)
        return F.attention(F.rope(q, cos, cos), F.rope(k, cos, cos), k, seen, bias * 0.5), seen

    m = trace(model, f32[2, 2, 5, 8], f32[2, 2, 5, 8], f32[2, 5, 5], f32[5, 4], DType.i64[2, 5])
    fused(m, scores=scores)
    (attention,) = [names for kind, names in regions(m) if kind == "attention"]
    assert attention == (["rope", "mul", "attention"] if scores else ["attention"])
    assert sum("rope" in names for _, names in regions(m)) == 2


def test_a_transpose_of_the_last_axis_is_not_stored_by_a_product() -> None:
    m = traced(lambda x, w: F.linear(x, w).transpose(0, 1), f32["n", 8], f32[16, 8])
    log = fused(m)
    assert regions(m) == [("contraction", ["linear"]), ("loop", ["transpose"])]
    assert any("last axis" in reason for _, reason in log.misses)


def test_constants_are_copied_into_their_regions_and_vanish_outside() -> None:
    m = traced(lambda x: (x + 1.5, (x.cumsum(0) + 1.5)), f32["n", 3])
    fused(m)
    for o in m.main.body:
        assert not isinstance(o.op, ops.Constant)


def test_a_returned_constant_gets_a_region() -> None:
    m = traced(lambda x: (x, F.arange(x.shape[0])), f32["n"])
    fused(m)
    assert regions(m) == [("loop", ["iota"])]


def test_an_ordered_operation_stays_alone() -> None:
    m = traced(lambda x: (x * 2.0).cumsum(0).exp(), f32["n", 3])
    fused(m)
    assert [names for _, names in regions(m)] == [["mul"], ["cumsum"], ["exp"]]


def test_regions_are_bounded() -> None:
    def chain(x: Any) -> Any:
        for _ in range(20):
            x = x.tanh()
        return x

    m = traced(chain, f32["n"])
    log = fused(m, max_ops=8)
    assert sorted(len(names) for _, names in regions(m)) == [4, 8, 8]
    assert ("fused", "a region has 8 operations") in log.misses


@pytest.mark.parametrize("stop", range(4))
def test_fusion_can_be_bisected(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_STOP_AFTER", str(stop))
    m = traced(lambda x: x.tanh().exp().sin().cos(), f32["n"])
    fused(m)
    assert len(regions(m)) == 4 - stop


def test_weights_stay_outside() -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    m = traced(lambda x: F.linear(x, weight.repeat(8, axis=0)), f32["n", 4])
    PassManager([PackWeights(), Fuse()]).run(m)
    region = next(o for o in m.main.body if isinstance(o.op, ops.Fused))
    assert region.op.kind is RegionKind.CONTRACTION  # type: ignore[attr-defined]
