"""``tfc tune``: the search, its decisions and what it writes. No test depends on how fast anything is: where times decide, they are made up."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_harness import RANDOM, artifact_bytes, tfc

import trustformers_ir as tfir
from trustformers_ir import tuner
from trustformers_ir.codegen.build import find_target
from trustformers_ir.codegen.lower.schedules import MachineShape, heuristic
from trustformers_ir.ir.abi import Entry, KernelInfo, Manifest, TargetInfo
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import (
    HEURISTIC,
    TABLE,
    AttentionChoice,
    Choice,
    Chosen,
    ScheduleKey,
    ScheduleTable,
    TileChoice,
    TunedEntry,
    default_place,
    key_row,
    read_table,
)
from trustformers_ir.tuner import Neighbours, Search, Tuned, neighbours

MACHINE = MachineShape()
DENSE, HEADS = ScheduleKey("linear", DType.f32, 96, 64, None, 48), ScheduleKey("attention", DType.f32, 32, 32)
BEST = TileChoice(6, 48, 256, 0)  # two moves away from the heuristic's

Speed = Callable[[ScheduleKey, Choice], float]


class Model:
    """A model of a kernel for each of some choices, ``first`` those of the heuristic, whose times are what ``speed`` says; a whole call takes
    ``hidden`` longer."""

    def __init__(
        self, speed: Speed, hidden: Callable[[ScheduleTable], float] = lambda table: 0.0, first: Mapping[ScheduleKey, Choice] | None = None
    ) -> None:
        self.speed, self.hidden = speed, hidden
        self.first = first or {k: heuristic(MACHINE, k) for k in (DENSE, HEADS)}
        self.now = 0.0
        self.open = 0

    def build(self, table: ScheduleTable) -> Any:
        chosen = {k: Chosen(k, table.choices.get(k, c), TABLE if k in table.choices else HEURISTIC) for k, c in self.first.items()}
        model = self

        def seconds() -> list[float]:
            return [model.speed(k, c.choice) for k, c in chosen.items()]

        class Exe:
            threads = 2
            compiled = SimpleNamespace(report={"schedules": {"kernels": {f"k{n}": key_row(c) for n, c in enumerate(chosen.values())}}})
            kernels = tuple(KernelInfo(f"k{n}", k.template, "", 0, 0) for n, k in enumerate(chosen))
            entry = Entry("main", "tfir_entry_main", (), (), 0, 0, kernels)
            manifest = Manifest("toy", TargetInfo("cpu", "t", "c", ()), (), (entry,), (), (), "0.1.0")

            def __call__(self, **inputs: Any) -> None:
                model.now += sum(seconds()) + model.hidden(table)

            def profile(self, **inputs: Any) -> Any:
                self(**inputs)
                return SimpleNamespace(rows=[SimpleNamespace(seconds=s) for s in seconds()], dims={"seq": 8})

            def close(self) -> None:
                model.open -= 1

        self.open += 1
        return Exe()

    def search(self, monkeypatch: pytest.MonkeyPatch, budget: float = 100.0, around: Neighbours | None = None, **options: Any) -> Tuned:
        monkeypatch.setattr(tuner, "time", SimpleNamespace(perf_counter=lambda: self.now))
        found = Search(self.build, around or functools.partial(neighbours, MACHINE), "here", {}, budget, **options).run()
        assert not self.open, "every build is closed"
        return found


def steps(key: ScheduleKey, choice: Choice) -> float:
    """The nearer to ``BEST``, the faster; attention is best as it is."""
    if isinstance(choice, AttentionChoice):
        return 0.01 if choice == heuristic(MACHINE, HEADS) else 0.02
    off = (choice.rows != BEST.rows) + (choice.columns != BEST.columns) + (choice.block != BEST.block) + (choice.ahead != BEST.ahead)
    return 0.05 * (1 + 0.1 * off)


def test_the_search_goes_on_from_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Model(steps).search(monkeypatch)
    assert found.table.choices == {DENSE: BEST}
    dense, heads = found.findings
    assert (dense.key, dense.better, dense.won, dense.calls) == (DENSE, True, 1.0, 1) and dense.ratio < 0.85
    assert (heads.key, heads.better, heads.fastest) == (HEADS, False, heuristic(MACHINE, HEADS)) and heads.tried > 3
    assert found.ratio < 1 and found.after < found.before
    assert found.table.entries[0].measured.endswith("of the time: toy, seq 8, 2 threads")


def test_a_small_gain_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    best = heuristic(MACHINE, DENSE)
    found = Model(lambda key, choice: 0.05 if choice in (best, heuristic(MACHINE, HEADS)) else 0.0495).search(monkeypatch)
    assert not found.table.entries and not [f for f in found.findings if f.better] and found.ratio == 1


def test_luck_in_the_heats_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that was fast for a while is not in the final."""
    model = Model(steps)
    first = heuristic(MACHINE, DENSE)

    def lucky(key: ScheduleKey, choice: Choice) -> float:
        return 0.02 if choice == first and model.now > 60 else steps(key, choice)

    model.speed = lucky
    monkeypatch.setattr(tuner, "HEAT_ROUNDS", 1000)  # the first heat takes all the time there is for heats
    found = model.search(monkeypatch)
    assert not found.table.entries and found.findings[0].ratio > 1 and found.findings[0].fastest != first


def test_a_whole_call_that_is_not_faster_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Model(steps, lambda table: 0.1 * len(table.entries)).search(monkeypatch)
    assert any(f.better for f in found.findings) and found.ratio > 1 and not found.table.entries


def test_a_budget_that_is_over_at_once_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Model(steps).search(monkeypatch, 1e-9)
    assert 2 <= found.builds <= 4 and len(found.findings) == 2


# --- the command ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table of this machine is kept."""
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    return default_place(find_target("cpu").kind)


def test_a_real_model_is_tuned(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    code, out, err = tfc(capsys, "tune", RANDOM, "--seq", "8", "--budget", "1.5", "--threads", "2", "-o", str(tmp_path / "t.json"))
    assert code == 0, err
    assert "linear+gelu" in out and "attention" in out and "t.json" in err
    table = read_table(tmp_path / "t.json")
    assert table.target == find_target("cpu").kind and not place.exists()
    tfir.compile(RANDOM, schedules=table)  # whatever was found can be compiled with


def test_json_and_int8_for_another_target(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ["tune", RANDOM, "--seq", "8", "--budget", "1", "--target", "cpu:avx2", "--quantize", "int8", "--json"]
    code, out, err = tfc(capsys, *words)
    assert code == 0, err
    told = json.loads(out)
    assert told["target"] == "x86-64-v3-avx2" and told["dims"]["seq"] == 8 and told["builds"] >= 2
    assert {row["template"] for row in told["kernels"]} == {"linear", "linear_int8", "attention"}
    assert all(row["tried"] > 1 and row["ms"] > 0 for row in told["kernels"])


def found_table(kind: str, key: ScheduleKey, *entries: TunedEntry) -> Tuned:
    finding = tuner.Finding(key, "linear", 1, 0.001, TileChoice(8, 48, 128), TileChoice(9, 48, 128), 3, 0.9, 1.0)
    return Tuned(ScheduleTable(kind, entries), (finding,), 0.002, 0.0019, 0.95, 4)


def test_findings_are_added_to_the_table_of_the_machine(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = find_target("cpu").kind
    entry = TunedEntry(DENSE, BEST, "0.90 of the time")
    monkeypatch.setitem(vars(tfir), "tune", lambda model, inputs, **options: found_table(kind, DENSE, entry))
    code, out, err = tfc(capsys, "tune", RANDOM)
    assert code == 0 and "better" in out and f"{place}: 1 entries" in err and "median ratio 0.950" in err
    assert read_table(place).choices == {DENSE: BEST}
    other = TunedEntry(HEADS, AttentionChoice(1, 8))
    monkeypatch.setitem(vars(tfir), "tune", lambda model, inputs, **options: found_table(kind, HEADS, other))
    assert tfc(capsys, "tune", RANDOM)[0] == 0
    assert read_table(place).choices == {DENSE: BEST, HEADS: AttentionChoice(1, 8)}
    monkeypatch.setitem(vars(tfir), "tune", lambda model, inputs, **options: found_table(kind, DENSE))
    assert tfc(capsys, "tune", RANDOM)[0] == 0
    assert read_table(place).choices == {HEADS: AttentionChoice(1, 8)}, "what is no better any more goes"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "TFC6001"),
        (["gone"], "TFC6002"),
        (["m.tfc"], "TFC6001"),
        ([RANDOM, "-o", "no/such/t.json"], "TFC6004"),
        ([RANDOM, "--budget", "0"], "TFC6001"),
        ([RANDOM, "--target", "cpu:avx2,cpu:avx512"], "TFC4003"),
        ([RANDOM, "--target", "cpu:abacus"], "TFC4003"),
        ([RANDOM, "--seq", "17"], "TFC5015"),
    ],
)
def test_bad_requests_of_tune(
    capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.tfc").write_bytes(artifact_bytes())
    status, out, err = tfc(capsys, "tune", *words)
    assert (status, out) == (2, "") and err.startswith(f"error[{code}]: ") and "  help: " in err, err
    assert not place.exists()


def test_a_broken_table_of_the_machine_is_told(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_text("{")
    status, _, err = tfc(capsys, "tune", RANDOM)
    assert status == 2 and err.startswith("error[TFC4012]: it is not JSON") and str(place) in err


def test_compile_takes_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ScheduleTable("haswell-avx2").save(tmp_path / "t.json")
    status, _, err = tfc(capsys, "compile", RANDOM, "-o", str(tmp_path / "m.tfc"), "--schedules", str(tmp_path / "t.json"))
    assert status == 2 and err.startswith("error[TFC4013]: the schedules are for haswell-avx2")
    entry = TunedEntry(ScheduleKey("attention", DType.f32, 16, 16), AttentionChoice(1, 4))
    ScheduleTable(find_target("cpu").kind, (entry,)).save(tmp_path / "t.json")
    status, _, err = tfc(capsys, "compile", RANDOM, "-o", str(tmp_path / "m.tfc"), "--schedules", str(tmp_path / "t.json"))
    assert status == 0 and f"schedules: 1 of 6 from {tmp_path / 't.json'}" in err
