"""The scripts for measurements on GPUs, tried on Triton's interpreter: what we and the peers compute, and what is made of times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="pip install triton")
pytest.importorskip("torch", reason="pip install torch")
pytest.importorskip("transformers", reason="pip install transformers")

from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.tools.bench.bars import Verdict
from trustformers_ir.tools.bench.gpu import attention, bert_large, contest, decode, norms, w4a16
from trustformers_ir.tools.bench.gpu.__main__ import SCRIPTS
from trustformers_ir.tools.bench.gpu.work import COPY, MATRIX, OURS, Call, Place, Work

PEERS = {bert_large: 1, attention: 1, norms: 1, decode: 1, w4a16: 2}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__.rpartition(".")[2])
def test_what_a_script_compares_is_the_same_work(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """We and every peer are as near to the reference as the work says."""
    contest.run(script.works, options=["--small", "--json"])
    told = json.loads(capsys.readouterr().out)
    works = list(script.works(True))
    assert [line["work"] for line in told["lines"]] == [str(w) for w in works for _ in range(1 + PEERS[script])]
    assert {line["verdict"] for line in told["lines"]} == {"met"}
    assert all(line["figure"] <= w.bound for w in works for line in told["lines"] if line["work"] == str(w))


def test_a_wrong_result_is_a_miss(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = norms.Rows("softmax", 5, 96)
    monkeypatch.setattr(norms.Rows, "peers", lambda self, place, tensors: {"NaN": lambda: tensors[0] * float("nan"), "half": lambda: tensors[0] / 2})
    with pytest.raises(SystemExit):
        contest.run(lambda small: [rows], options=["--small"])
    verdicts = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert verdicts == ["met", "missed", "missed"]


def test_the_step_of_the_peer_is_one_graph() -> None:
    """Where torch.compile gave up in the middle it would be slow, and say nothing."""
    import torch

    class Whole(Place):
        def compiled(self, function: Any, graphs: bool = True) -> Any:
            return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    step = decode.Step(decode.SMALL, 37)
    module, arrays = contest.drawn(step)
    peers, _ = contest.peers_of(step, Whole(True, {}), arrays)
    wanted = contest.reference(module, arrays)
    assert contest.distance(contest.results(peers["torch.compile"]()), wanted) < step.bound


def by_name(contestants: Mapping[str, Call], cold: bool = False) -> dict[str, float]:
    """A clock that says 2 ms for ours and 3 ms for everybody else, after a call of each."""
    for call in contestants.values():
        call()
    return {name: 2e-3 if name == OURS else 3e-3 for name in contestants}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__.rpartition(".")[2])
def test_figures_are_made_of_times(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and the peers are called with tensors; every goal has its line. Peers without quantized weights are close enough to be no mistake."""
    monkeypatch.setattr(contest, "timed", by_name)
    work: Work = list(script.works(True))[-1]
    lines = list(contest.timed_lines(work, Place(True, {COPY: 1e9, MATRIX: 1e12})))
    assert [line.bar for line in lines] == [g.bar for g in work.goals]
    assert not any(line.figure.note for line in lines)
    for goal, line in zip(work.goals, lines, strict=True):
        if not goal.limit:
            assert line.figure.value == 1.5


def test_shares_of_limits_are_of_what_a_call_must_move() -> None:
    """x is read and the norm written, 2 bytes for each element, and a weight of one row is read."""
    rows = norms.Rows("rms norm", 1000, 512)
    module, _ = contest.drawn(rows)
    exe = contest.tfir.compile(rows.module(), target="triton:interpreter")
    moved = rows.traffic(exe, module)
    assert moved == 2 * (2 * 1000 * 512 + 512)
    (figure,) = rows.figures({OURS: 1e-3, "peer": 2e-3}, moved, {COPY: 4e9, MATRIX: 1e12})
    assert figure.value == moved / 4e6 and rows.goals[0].bar.verdict(figure.value) is Verdict.MISSED
    assert figure.ours == "1.000 ms" and figure.peer == "2.000 ms peer"


def test_a_step_reads_every_weight_but_the_table_of_tokens() -> None:
    step = decode.Step(decode.SMALL, 37)
    module, arrays = contest.drawn(step)
    exe = contest.tfir.compile(step.module(), target="triton:interpreter")
    s = decode.SMALL
    layer = s.width * (2 * s.heads + 2 * s.key_heads) * s.features + 3 * s.width * s.inner + 2 * s.width
    weights = 2 * (s.layers * layer + s.width + s.vocabulary * s.width + s.width)
    cache = 2 * s.layers * 2 * s.key_heads * s.features * (37 + 1)
    assert step.traffic(exe, module) == weights + cache + 2 * s.vocabulary + arrays[0].nbytes + arrays[1].nbytes


def test_the_table_of_attention_counts_what_is_computed() -> None:
    """Every row is a module that the passes of GPUs take; a causal mask hides nearly half."""
    rows = [w for w in attention.works(small=False) if isinstance(w, attention.Attention)]
    for work in rows:
        PassManager(pipelines.gpu()).run(work.module())
    plain, causal = (next(w for w in rows if w.causal is c and w.keys == 16384 and w.queries > 1) for c in (False, True))
    assert plain.flops == 4 * 32 * 16384**2 * 64 and 0.5 < causal.flops / plain.flops < 0.501
    assert [len(w.goals) for w in (plain, causal, rows[0], rows[-2])] == [2, 2, 1, 1]


def test_distance_is_in_units_of_the_largest_number() -> None:
    a, b = np.array([1.0, 8.0], np.float32), np.array([1.0, 6.0], np.float32)
    assert contest.distance([a], [a]) == 0 and contest.distance([b, a], [a, a]) == 0.25
