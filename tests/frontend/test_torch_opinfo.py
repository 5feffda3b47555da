"""torch's own samples of its ops, by the reference evaluator and by native code: a part of them, ``-m long`` all.

And that the scoreboard sees what is wrong.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import trustformers_ir as tfir
from trustformers_ir.frontend.torch_export.read import load_torch
from trustformers_ir.frontend.torch_export.registry import ATEN
from trustformers_ir.tools.torch_scoreboard.__main__ import run_all
from trustformers_ir.tools.torch_scoreboard.freedom import may_differ
from trustformers_ir.tools.torch_scoreboard.judge import WAYS, Status, judged, run
from trustformers_ir.tools.torch_scoreboard.known import KNOWN
from trustformers_ir.tools.torch_scoreboard.precise import apart, rounds
from trustformers_ir.tools.torch_scoreboard.report import report
from trustformers_ir.tools.torch_scoreboard.samples import DTYPES, Sample, Unit, units

# Ops with rules that are long, each at one of its dtypes.
CHOSEN = (
    "add", "div.trunc_rounding", "where", "clamp", "cumsum", "sort", "topk", "index_put", "scatter_reduce.amax", "masked_scatter", "gather", "unfold",
    "as_strided", "bucketize", "var_mean", "linalg.vector_norm", "einsum", "nn.functional.conv_transpose2d", "nn.functional.max_pool2d",
    "nn.functional.scaled_dot_product_attention", "nn.functional.group_norm", "nn.functional.pad.circular", "roll", "diagonal_scatter", "fft.rfft",
)  # fmt: skip
# What was wrong once.
MENDED = {("addmm", "bfloat16"), ("baddbmm", "float16"), ("lerp", "float16"), ("nn.functional.bilinear", "float16"), ("square", "bool")}
EVERY = 41  # of all ops and dtypes; five dtypes follow each other, so that they take turns


def part() -> list[Unit]:
    every = units()
    rows = {u.op: [v for v in every if v.op == u.op] for u in every if u.op in CHOSEN}
    taken = [*(found[len(op) % len(found)] for op, found in rows.items()), *(u for u in every if (u.op, u.dtype) in MENDED), *every[::EVERY]]
    return [*{(u.op, u.dtype): u for u in taken}.values()]


def test_a_part_of_the_samples() -> None:
    outcomes = run(part(), 2)
    wrong = [o for o in outcomes if not o.ok and (o.op, o.dtype) not in KNOWN]
    assert not wrong, report(wrong)
    assert {o.dtype for o in outcomes} == set(DTYPES)
    for way in WAYS:
        assert sum(o.of(way, Status.AGREES) for o in outcomes) >= 0.75 * sum(o.samples for o in outcomes), report(outcomes)
        assert all(sum(o.counts[way].values()) == o.samples for o in outcomes)  # none is lost


def test_whole_numbers_between_whole_numbers() -> None:
    sample = Sample(("linspace", "int64"), 0, torch.linspace, ([torch.tensor(4.9), torch.tensor(-7.6), 50], {"dtype": torch.int64}))
    assert [(way, verdict.status) for _, way, verdict in judged([sample])] == [(way, Status.AGREES) for way in WAYS]


def test_products_with_a_bias_keep_weights_in_16_bits() -> None:
    torch.manual_seed(0)

    class Conv1D(torch.nn.Module):  # of GPT-2
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = torch.nn.Parameter(torch.randn(32, 48)), torch.nn.Parameter(torch.randn(48))

        def forward(self, x: Any) -> Any:
            return torch.addmm(self.bias, x, self.weight)

    model = Conv1D().eval().to(torch.bfloat16)
    module = load_torch(model, (torch.randn(4, 32, dtype=torch.bfloat16),), ("batch",))
    assert [w.type.dtype.name for w in module.weights.values()] == ["bf16"] * 2
    assert "linear" in [o.op.mnemonic for o in module.walk()] and "cast" not in [o.op.mnemonic for o in module.walk()]
    x = torch.randn(7, 32, dtype=torch.bfloat16)
    torch.testing.assert_close(tfir.compile(model, (x,), dynamic=("batch",))(x), model(x))


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_samples(dtype: str) -> None:
    outcomes = run_all([dtype], jobs=os.cpu_count() or 1, tell=False)
    wrong = [o for o in outcomes if not o.ok and (o.op, o.dtype) not in KNOWN]
    assert not wrong, report(wrong)
    for way in WAYS:
        assert all(sum(o.counts[way].values()) == o.samples for o in outcomes)
        assert sum(o.of(way, Status.AGREES) for o in outcomes) >= 0.75 * sum(o.samples for o in outcomes), report(outcomes)


# --- the scoreboard itself ---------------------------------------------------------------------------------------------------------


def test_a_wrong_rule_is_seen_and_its_samples_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    build = ATEN["erf.default"]

    def wrong(c: Any, x: Any) -> Any:
        return build(c, x) * 1.0001

    monkeypatch.setitem(ATEN, "erf.default", wrong)
    relu, erf = sorted(run(units(("float32",), ("erf", "nn.functional.relu")), 3), key=lambda o: o.bad)
    assert relu.ok and relu.of("reference", Status.AGREES) == relu.of("native", Status.AGREES) == relu.samples
    assert {text.partition(":")[0] for text in erf.bad} == set(WAYS) and "sample 0 (['float32[20, 20]']" in erf.bad[0], erf.bad


def test_what_is_refused_is_told_apart_from_what_is_beside_it() -> None:
    agrees, nothing = run(units(("float32",), ("nonzero", "cos")), 4)
    assert agrees.of("native", Status.AGREES) == agrees.samples
    assert nothing.of("native", Status.REFUSED) == nothing.samples
    assert all(why.startswith("TFC3021 aten.nonzero") for why in nothing.reasons["native"])


def test_a_result_may_be_as_near_to_64_bits_as_eager_is_and_no_further() -> None:
    eager, exact = torch.tensor([1.0, 2.0]), torch.tensor([1.0001, 2.0], dtype=torch.float64)
    assert not apart(torch.tensor([1.00015, 2.0]), eager, exact)
    assert "1 of 2, at [0]" in apart(torch.tensor([1.0003, 2.0]), eager, exact)
    assert apart(torch.tensor([1.00002, 2.0]), eager)
    assert not apart(torch.tensor([float("nan"), -float("inf")]), torch.tensor([float("nan"), -float("inf")]), exact)
    assert apart(torch.tensor([float("inf"), 2.0]), torch.tensor([float("nan"), 2.0]), exact)
    assert apart(torch.tensor([1, 2]), torch.tensor([1, 3]), exact)  # integers exactly


def test_a_sum_of_products_may_be_off_by_what_its_additions_round() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(8, 1000) * 9, torch.randn(1000, 8) * 9
    exact = a.double() @ b.double()
    chain = torch.zeros(8, 8)
    for k in range(1000):  # in order, as our kernels add up
        chain = chain + a[:, k : k + 1] * b[k : k + 1]
    sample = Sample(("mm", "float32"), 0, torch.mm, ([a, b], {}))
    assert rounds(sample, 0, chain, exact)
    assert not rounds(sample, 0, chain * (1 + 1e-4), exact)
    assert not rounds(Sample(("cumsum", "float32"), 0, torch.mm, ([a, b], {})), 0, chain, exact)
    assert not rounds(sample, 0, (a.half() @ b.half()), exact)


def test_only_equal_elements_may_stand_for_each_other() -> None:
    x = torch.tensor([3.0, 1.0, 3.0, 2.0])
    sorting, stable = (Sample(("sort", "float32"), 0, torch.sort, ([x], kwargs)) for kwargs in ({}, {"stable": True}))
    mine, eager = torch.tensor([1, 3, 2, 0]), torch.tensor([1, 3, 0, 2])
    assert may_differ(sorting, mine, eager) and not may_differ(stable, mine, eager)
    assert not may_differ(sorting, torch.tensor([3, 1, 2, 0]), eager)
    assert not may_differ(sorting, torch.tensor([1, 3, 0, 0]), eager)  # one of them twice
    assert not may_differ(sorting, torch.tensor([1, 3, 0, 4]), eager)
    assert not may_differ(Sample(("cummax", "float32"), 0, torch.cummax, ([x, 0], {})), mine, eager)
