"""ONNX's own conformance cases through the compiled path. The default suite runs a part of them, ``-m long`` all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("onnx")

from trustformers_ir.tools.onnx_scoreboard.__main__ import run_all, summary, table
from trustformers_ir.tools.onnx_scoreboard.cases import Case, model_cases, node_cases
from trustformers_ir.tools.onnx_scoreboard.judge import Status, run

BAR = 98.0  # percent of the deterministic cases of nodes
EVERY = 20  # of the cases of an op beyond the first
#: why a case may be refused
REASONS = ("holds strings", "ImageDecoder is not compiled")


def part() -> Iterator[Case]:
    """The first case of each op, and every twentieth of the others."""
    seen: dict[str, int] = {}
    for case in node_cases():
        number = seen[case.op] = seen.get(case.op, -1) + 1
        if number % EVERY == 0:
            yield case


def test_a_part_of_the_node_cases() -> None:
    with np.errstate(all="ignore"):
        outcomes = [run(case) for case in part()]
    bad = [o for o in outcomes if o.status in (Status.WRONG, Status.FAILED, Status.CRASHED)]
    assert not bad, table(bad)
    refused = [o for o in outcomes if o.status is Status.REFUSED]
    assert all(any(reason in o.detail for reason in REASONS) for o in refused), table(refused)
    assert sum(o.status is Status.PASSED for o in outcomes) >= 200


@pytest.mark.long
def test_all_node_cases() -> None:
    outcomes = run_all(list(node_cases()), os.cpu_count() or 1, ["--suite", "node"], tell=False)
    assert not [o for o in outcomes if o.status in (Status.WRONG, Status.FAILED, Status.CRASHED)], table(outcomes)
    counted = [o for o in outcomes if o.status is not Status.RANDOM]
    passed = sum(o.status is Status.PASSED for o in counted)
    assert 100 * passed >= BAR * len(counted), summary(outcomes)
    refused = [o for o in outcomes if o.status is Status.REFUSED]
    assert all(any(reason in o.detail for reason in REASONS) for o in refused), table(refused)


@pytest.mark.long
def test_all_model_cases() -> None:
    outcomes = run_all(list(model_cases()), os.cpu_count() or 1, ["--suite", "models"], tell=False)
    assert outcomes
    left = [o for o in outcomes if o.status is not Status.PASSED]
    allowed = (*REASONS, "Gradient is not compiled")
    assert all(o.status is Status.REFUSED and any(reason in o.detail for reason in allowed) for o in left), table(left)
