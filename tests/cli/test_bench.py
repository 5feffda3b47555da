"""The bench: contestants in processes, turns, bars, the table and its gate. Times come from fakes; nothing here is timed."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.frontend.random_model import random_model
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.tools.bench import contest, contestant, identity, latency, limits, models, table
from trustformers_ir.tools.bench.bars import HEAD, Bar, Figure, Line, Verdict
from trustformers_ir.tools.bench.contest import Outcome, Process
from trustformers_ir.tools.bench.latency import Settings
from trustformers_ir.tools.bench.limits import Limits
from trustformers_ir.tools.bench.rivals.job import Job
from trustformers_ir.tools.bench.rivals.table import F32, INT8, OURS, RIVALS, Rival
from trustformers_ir.tools.cli import main
from trustformers_ir.tools.commands import bench

TINY = "random:bert?preset=tiny"
LIMITS = Limits(2, fma=100.0, vnni=400.0, memory=10.0)


def job(folder: Path, **changes: Any) -> Job:
    inputs = [{"x": np.arange(n, n + 3)} for n in range(2)]
    return replace(Job("m", inputs, inputs[:1], 2, folder, quantize="int8"), **changes)


# -- one contestant --------------------------------------------------------------------------------------------------


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path, make: Any, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a rival made by ``make(job)`` answers."""
    monkeypatch.setattr(Rival, "make", lambda self, job: make(job))
    answers = io.StringIO()
    contestant.serve("eager", job(folder), io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_contestant_gets_ready_runs_and_saves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def make(job: Job) -> Any:
        return lambda inputs: seen.append(int(inputs["x"][0])) or inputs["x"] * 2

    ready, ran, saved = serve(monkeypatch, tmp_path, make, {"run": 3}, {"save": str(tmp_path / "o.npz")})
    assert ready["ready"] >= 0 and ready["memory"] > 1 << 20
    assert len(ran["seconds"]) == 3 and ran["first"] >= 0
    assert seen == [0, 0, 0, 0, 0, 0, 1]  # once to get ready, once after the pause, three timed; then every set of inputs
    with np.load(saved["saved"]) as outputs:
        assert [outputs[k].tolist() for k in outputs.files] == [[0, 2, 4], [2, 4, 6]]


def test_a_contestant_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(job: Job) -> Any:
        raise ImportError("No module named 'abacus'", name="abacus")

    def broken(job: Job) -> Any:
        raise RuntimeError("no C++ compiler")

    assert serve(monkeypatch, tmp_path, absent, {"run": 1}) == [{"missing": "abacus"}]
    assert serve(monkeypatch, tmp_path, broken, {"run": 1}) == [{"failed": "RuntimeError: no C++ compiler"}]


def test_jobs_travel_in_a_folder(tmp_path: Path) -> None:
    written = job(tmp_path, inputs=[{"a.b": np.float32([[n]])} for n in range(11)])
    contestant.write_job(written, tmp_path)
    read = contestant.read_job(tmp_path)
    assert [i["a.b"].item() for i in read.inputs] == list(range(11)) and read.inputs[0]["a.b"].dtype == np.float32
    assert len(read.calibration) == 1 and replace(read, inputs=(), calibration=()) == replace(written, inputs=(), calibration=())


def test_a_process_that_ends_leaves_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "inputs.npz").write_bytes(b"")
    outcome = Process(OURS, tmp_path, 1).outcome
    assert "ended with code 1" in outcome.failure and "Error" in outcome.failure and not outcome.missing


# -- turns -----------------------------------------------------------------------------------------------------------


class Fake:
    """A process that takes ``seconds`` per call, in ``turns`` turns, then breaks."""

    log: list[str] = []

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.outcome = Outcome(name, failure="no such thing" if name == "eager" else "")
        self.turns = 4 if name == "inductor" else 1 << 30

    def ask(self, **request: Any) -> dict[str, Any]:
        if "save" in request:
            np.savez(request["save"], np.ones(2))
            return {"saved": request["save"]}
        self.turns -= 1
        if self.turns < 0:
            return {"failed": "out of memory"}
        self.log.append(self.outcome.name)
        seconds = {OURS: 0.02, "openvino": 0.05}.get(self.outcome.name, 0.2)
        return {"first": 2 * seconds, "seconds": [seconds] * request["run"]}

    def dismiss(self) -> None:
        pass

    def close(self) -> None:
        self.log.append(f"close {self.outcome.name}")


def compete(monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float, calls: int = 0) -> Mapping[str, Outcome]:
    monkeypatch.setattr(contest, "Process", Fake)
    monkeypatch.setattr(contest, "PAUSE", 0.0)
    monkeypatch.setattr(Fake, "log", [])
    return contest.compete([OURS, "eager", "openvino", "inductor"], job(folder), seconds, calls)


def test_contestants_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = compete(monkeypatch, tmp_path, 0.5)
    assert out["eager"].failure == "no such thing" and out["inductor"].failure == "out of memory"
    ours, peer = out[OURS], out["openvino"]
    assert (ours.median, ours.after_pause, peer.median) == (0.02, 0.04, 0.05)
    assert sum(ours.seconds) >= 0.5 and sum(peer.seconds) >= 0.5 and len(ours.first) == len(peer.first) == len(ours.seconds) // 5
    turns = [name for name in Fake.log if name in (OURS, "openvino")]
    assert all(set(turns[i : i + 2]) == {OURS, "openvino"} for i in range(0, len(turns), 2))  # everyone once a round
    assert len([line for line in Fake.log if line.startswith("close")]) == 4


def test_a_number_of_calls_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = compete(monkeypatch, tmp_path, 99.0, calls=6)
    assert len(out[OURS].seconds) == len(out["openvino"].seconds) == 6


def test_results_are_ratios_errors_and_shares_of_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exe = tfir.compile(TINY, threads=1)

    def competing(names: Sequence[str], job: Job, seconds: float, calls: int) -> dict[str, Outcome]:
        assert len(job.inputs) == latency.COMPARED and len(job.calibration) == latency.CALIBRATING
        assert all((i["attention_mask"] == 1).all() and (i["token_type_ids"] == 0).all() for i in job.inputs)
        right = [np.asarray(exe(**i)[0]) for i in job.inputs]
        ours = Outcome(OURS, seconds=[0.002], first=[0.003], outputs=right)
        peer = Outcome("onnxruntime-int8", seconds=[0.004, 0.008, 0.005], outputs=[r + 0.5 for r in right])
        return {OURS: ours, peer.name: peer, "openvino-int8": Outcome("openvino-int8", missing="nncf", failure="the package 'nncf' is not installed")}

    monkeypatch.setattr(latency, "compete", competing)
    result = latency.race(exe, job(tmp_path), {"batch": 2, "seq": 8}, INT8, Settings(1), LIMITS)
    peer, missing = result.entrants["onnxruntime-int8"], result.entrants["openvino-int8"]
    assert result.ours.ratio == 1 and result.ours.error == 0 and peer.ratio == 2.5
    assert peer.error == pytest.approx(0.5) and peer.rms == pytest.approx(0.5)
    products = latency.weight_products(exe.module, result.dims)
    assert 0 < products < result.flops
    assert result.limit == pytest.approx(products / 400e9 + (result.flops - products) / 100e9)
    assert peer.of_limit == pytest.approx(result.limit / 0.005)
    assert "pip install 'trustformers_ir[peers]'" in missing.failure
    assert result.fastest(INT8) is peer and result.fastest(["openvino-int8"]) is None


def test_flops_of_products_with_weights() -> None:
    exe = tfir.compile(TINY, threads=1)
    one, two = (latency.weight_products(exe.module, {"batch": b, "seq": 16}) for b in (1, 2))
    layers, hidden = 2, 128  # of BERT-tiny; the pooler works on one token
    assert one == pytest.approx(layers * 2 * 16 * 12 * hidden**2 + 2 * hidden**2, rel=0.05) and two == 2 * one


# -- bars and the table ----------------------------------------------------------------------------------------------


def test_bars() -> None:
    faster, memory = Bar("the best", 1.2, 1.05), Bar("run", 150e6, unit="MB", at_most=True)
    assert [faster.verdict(f) for f in (1.2, 1.19, 1.04, math.nan)] == [Verdict.MET, Verdict.FLOOR, Verdict.MISSED, Verdict.MISSING]
    assert [memory.verdict(f) for f in (150e6, 151e6)] == [Verdict.MET, Verdict.MISSED]
    assert (faster.text, memory.text, faster.show(math.nan)) == ("≥ 1.20x", "≤ 150 MB", "")
    line = Line("bert", "BERT", faster, Figure(1.1, "10 ms", "11 ms x", 0.8))
    assert line.cells == ("BERT", "≥ 1.20x the best", "1.05x", "10 ms", "11 ms x", "1.10x", "80%", "floor") and len(HEAD) == len(line.cells)


def test_rows_are_those_of_the_issue() -> None:
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names)
    bars = {row.name: [(b.value, b.floor) for b in row.bars] for row in table.ROWS}
    assert bars["bert"] == [(1.2, 1.05), (1.4, 1.25)] and bars["minilm"] == [(1.4, 1.2)] and bars["minilm-b32"] == [(1.3, 1.15)]
    assert bars["vit"] == [(1.2, 1.05)] and bars["bert-int8"] == [(2.0, 1.6), (1.2, None), (1.0, None)]
    assert {f"bert-s{s}" for s in (8, 32, 77, 200, 512)} | {"bert-b3"} <= set(names)
    assert set(F32) | set(INT8) == set(RIVALS)


def test_products_next_to_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PRODUCTS", {"f32": lambda threads: 10.0, "int8": lambda threads: 0.0})
    monkeypatch.setattr(table.gemm, "seconds", lambda calls: [[2e-9 * 4 * 32 * 16 / r for r in (5.0, 8.0, 9.0)] for _ in calls])
    f32, int8 = table._product(4, 32, 16, table.Context(Settings(1), LIMITS, ()))
    assert f32.value == pytest.approx(0.8) and (f32.ours, f32.peer) == ("8 GOP/s (9)", "10 GOP/s")
    assert math.isnan(int8.value) and "no VNNI" in int8.note


ONE = Bar("the best", 1.2, 1.05)


def rows(*figures: float) -> tuple[table.Row, ...]:
    made = [table.Row(f"r{n}", f"work {n}", (ONE,), lambda _, f=f: [table.Figure(f, "1 ms", "2 ms x", 0.5)], n == 0) for n, f in enumerate(figures)]

    def unbuilt(context: table.Context) -> list[table.Figure]:
        raise CompilerError.of(Code.NOT_BUILT, "int8 is not built yet")

    return (*made, table.Row("later", "work later", (ONE, ONE), unbuilt))


@pytest.fixture
def fake_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS", rows(1.3, 1.1))
    monkeypatch.setattr(limits, "measure", lambda threads: LIMITS)


@pytest.mark.usefixtures("fake_table")
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert "FMA 100 GFLOP/s, VNNI 400 GOP/s, memory 10 GB/s" in out
    first, second, *later = [line for line in out.splitlines() if line.startswith("work ")][1:]
    assert first.endswith("50%       met") and second.endswith("floor") and "int8 is not built yet" in later[-1]


@pytest.mark.usefixtures("fake_table")
def test_each_line_is_printed_when_it_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(context: table.Context) -> list[table.Figure]:
        out = capsys.readouterr().out
        assert [line.split()[:2] for line in out.splitlines()[-2:]] == [["work", "0"], ["work", "1"]]
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "ROWS", (*rows(1.3, 1.1)[:2], table.Row("stops", "work of hours", (ONE,), interrupted)))
    assert main(["bench"]) == 130


@pytest.mark.usefixtures("fake_table")
def test_the_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "--rows", "r1,later"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["threads"] == 2 and told["limits"] == {"threads": 2, "fma": 100.0, "vnni": 400.0, "memory": 10.0}
    first, *later = told["rows"]
    assert first == {
        "row": "r1", "work": "work 1", "against": "the best", "bar": 1.2, "floor": 1.05, "unit": "x", "at_most": False,
        "figure": 1.1, "ours": "1 ms", "peer": "2 ms x", "of_limit": 0.5, "verdict": "floor", "note": "",
    }  # fmt: skip
    assert [(line["figure"], line["verdict"], line["note"]) for line in later] == [(None, "not available", "int8 is not built yet")] * 2


@pytest.mark.usefixtures("fake_table")
@pytest.mark.parametrize(("words", "code"), [("r0", 0), ("r1", 1), ("r0,r1", 1), ("later", 1)])
def test_the_gate_of_the_table(capsys: pytest.CaptureFixture[str], words: str, code: int) -> None:
    assert main(["bench", "--rows", words, "--gate", "1"]) == code
    assert main(["bench", "--rows", "r1", "--gate", "0.9"]) == 0
    assert ("gate: " in capsys.readouterr().err) is (code == 1)


@pytest.mark.usefixtures("fake_table")
def test_rows_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--json"]) == 0
    assert [line["row"] for line in json.loads(capsys.readouterr().out)["rows"]] == ["r0"]
    assert main(["bench", "--rows", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["r0", "work", "0", "quick"]
    for words in (["--rows", "nothing"], ["--quantize", "int8"], ["--repeat", "3"]):
        assert main(["bench", *words]) == 2
        assert "help: " in capsys.readouterr().err


# -- one model -------------------------------------------------------------------------------------------------------


def entrants(**failures: str) -> dict[str, latency.Entrant]:
    made = {OURS: latency.Entrant(OURS, 0.01, 0.009, 0.02, 30, 1.0, 10**8, 1.0, 0.8, 0.0, 0.0)}
    made["openvino"] = latency.Entrant("openvino", 0.013, 0.012, 0.02, 30, 1.0, 10**8, 1.3, 0.6, 1e-6, 1e-7)
    return made | {name: latency.Entrant(name, failure=why) for name, why in failures.items()}


@pytest.mark.parametrize(("gate", "failures", "code"), [("1.25", {}, 0), ("1.4", {}, 1), ("1.25", {"eager": "no torch"}, 1)])
def test_the_gate_of_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, gate: str, failures: dict[str, str], code: int
) -> None:
    exe = tfir.compile(TINY, threads=1)
    monkeypatch.setattr(bench, "executable", lambda *_: exe)
    monkeypatch.setattr(limits, "measure", lambda threads: LIMITS)
    monkeypatch.setattr(bench, "race", lambda *_: latency.Result({"batch": 1}, 1e9, 0.008, entrants(**failures)))
    assert main(["bench", str(tmp_path), "--against", "f32", "--gate", gate]) == code
    out, err = capsys.readouterr()
    assert "1.30" in out and all(f"{name}: {why}" in out for name, why in failures.items())
    assert ("gate: " in err) is (code == 1)


def test_names_of_rivals() -> None:
    assert bench._rivals("int8,onnxruntime, int8") == [*INT8, "onnxruntime"]
    with pytest.raises(CompilerError, match="abacus"):
        bench._rivals("abacus")


def test_a_model_is_timed_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measure", lambda threads: LIMITS)
    assert main(["bench", TINY, "--seq", "8", "--seconds", "0.05", "--threads", "1", "--json"]) == 0
    (ours,) = json.loads(capsys.readouterr().out)["results"]
    assert ours["name"] == OURS and ours["max_abs_difference"] == 0 and ours["failure"] is None and ours["peak_bytes"] > 1 << 20


# -- what the rest stands on -----------------------------------------------------------------------------------------


def test_limits_are_measured() -> None:
    assert limits.fma_peak(1, rounds=1) > 0.1
    assert (limits.vnni_peak(1, rounds=1) > 0.1) is ("avx512vnni" in limits.host().features)


def test_free_order_frees_sums_and_little_else() -> None:
    text = "%a = fadd <16 x float> %x, %y\n%b = call <16 x float> @llvm.fma.v16f32(<16 x float> %a)\n%c = call ptr @f(ptr %p)\n"
    freed = identity.free_order(text)
    assert freed == text.replace("= fadd ", "= fadd fast ").replace("= call <16", "= call fast <16")
    ids = np.arange(1, 9)[None]
    constrained = tfir.compile(TINY, threads=1)(ids)[0]
    with identity.unconstrained():
        free = tfir.compile(TINY, threads=1)(ids)[0]
    assert not np.array_equal(free, constrained) and np.allclose(free, constrained, atol=1e-4)


def test_what_has_a_free_order_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_CACHE", "1")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    folder, ids = str(small_checkpoint(tmp_path / "models", monkeypatch)), np.arange(1, 9)[None]
    with identity.unconstrained():
        free = tfir.compile(folder)(ids)[0]
    assert not np.array_equal(tfir.compile(folder)(ids)[0], free)


def test_one_hash_for_all_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "TARGETS", ("cpu:avx2", "cpu:abacus"))
    found, left_out = identity.hashes(TINY, tmp_path)
    assert len(found) == 6 and len(set(found.values())) == 1 and list(left_out) == ["cpu:abacus"]


def small_checkpoint(into: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BERT-base, made tiny."""
    small = {**models.find_family("bert").base, **models.find_family("bert").presets["tiny"]}
    family = replace(models.find_family("bert"), base=small)
    monkeypatch.setattr(models, "find_family", lambda name: family)
    monkeypatch.setattr(models, "random_model", lambda spec: random_model("random:bert?preset=tiny"))
    return models.checkpoint("bert-base", into)


def test_random_checkpoints_are_read_by_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_checkpoint(tmp_path, monkeypatch)
    ids = np.arange(1, 9)[None]
    assert np.array_equal(tfir.compile(str(folder))(ids)[0], tfir.compile(TINY)(ids)[0])
    assert models.checkpoint("bert-base", tmp_path) == folder and [p.name for p in tmp_path.iterdir()] == [folder.name]
