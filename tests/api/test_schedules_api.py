"""Tuned schedules through the public functions: they are used, told, kept apart in the cache, and change no bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compile_cache import IDS, checkpoint, compiled, kept

import trustformers_ir as tfir
from trustformers_ir.codegen.build import find_target
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.schedule_table import ScheduleTable, TileChoice, TunedEntry, default_place, row_choice, row_key
from trustformers_ir.runtime.executable import Executable

assert checkpoint and kept  # fixtures
TINY = "random:bert?hidden_size=64&num_hidden_layers=1&num_attention_heads=2&intermediate_size=96&vocab_size=50"


@pytest.fixture(autouse=True)
def tables_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables in the cache folder count, which is one of the test's own."""
    monkeypatch.delenv("TFIR_SCHEDULES")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))


def rows(exe: Executable) -> dict[str, dict[str, Any]]:
    told = exe.report()["schedules"]
    assert isinstance(told, dict)
    return told["kernels"]


def other(exe: Executable, target: str = "cpu") -> ScheduleTable:
    """Another register tile for every product."""
    changed = []
    for row in rows(exe).values():
        choice = row_choice(row)
        if isinstance(choice, TileChoice):
            changed.append(TunedEntry(row_key(row), TileChoice(choice.rows - 1, choice.columns, 32, 0)))
    return ScheduleTable(find_target(target).kind, tuple(dict.fromkeys(changed)))


@pytest.mark.parametrize("target", ["cpu", "cpu:avx2"])
def test_a_table_is_used_and_told(tmp_path: Path, target: str) -> None:
    plain = tfir.compile(TINY, target=target)
    assert {row["from"] for row in rows(plain).values()} == {"heuristic"}
    table = other(plain, target)
    table.save(tmp_path / "t.json")
    for given in (table, tmp_path / "t.json", str(tmp_path / "t.json")):
        tuned = tfir.compile(TINY, target=target, schedules=given)
        kinds = {row["template"]: row["from"] for row in rows(tuned).values()}
        assert kinds == {"linear": "table", "attention": "heuristic"}
        assert {row_key(r): row_choice(r) for r in rows(tuned).values() if r["from"] == "table"} == table.choices
        assert tuned.report()["schedules"]["table"] == (None if given is table else str(tmp_path / "t.json"))  # type: ignore[index]
    assert all(map(np.array_equal, plain(IDS), tuned(IDS)))
    assert tuned.compiled.code != plain.compiled.code


def test_every_kernel_of_a_report_has_its_schedule() -> None:
    exe = tfir.compile(TINY)
    symbols = {k["symbol"]: k["label"] for k in exe.report()["entries"]["main"]["kernels"]}  # type: ignore[index]
    assert set(rows(exe)) == {s for s, label in symbols.items() if {"linear", "attention"} & set(label.split("+"))}


def test_an_artifact_remembers_its_schedules(tmp_path: Path) -> None:
    """What ``--emit`` makes again is what was compiled."""
    plain = tfir.compile(TINY)
    tuned = tfir.compile(TINY, schedules=other(plain))
    assert tfir.api.emit(tuned, "kernels") != tfir.api.emit(plain, "kernels")
    tuned.save(tmp_path / "m.tfc")
    assert tfir.api.emit(tfir.load(str(tmp_path / "m.tfc")), "kernels") == tfir.api.emit(tuned, "kernels")


def test_a_family_takes_a_table_for_one_of_its_targets() -> None:
    """Panels of a family are narrower, so entries for the wide ones do not fit its kernels."""
    family = "cpu:avx2,cpu:avx512"
    narrow = other(tfir.compile(TINY, target="cpu:avx2"), "cpu:avx2")
    exe = tfir.compile(TINY, target=family, schedules=narrow)
    by_target = {m.manifest.target.name: m.report["schedules"]["kernels"] for m in exe.family}  # type: ignore[index]
    assert {r["from"] for r in by_target["cpu:avx2"].values()} == {"table", "heuristic"}
    assert {r["from"] for r in by_target["cpu:avx512"].values()} == {"heuristic"}


def test_wrong_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = other(tfir.compile(TINY, target="cpu:avx2"), "cpu:avx2")
    (tmp_path / "broken.json").write_text("{")
    wide = ScheduleTable(find_target("cpu:avx2").kind, (TunedEntry(table.entries[0].key, TileChoice(30, 16, 32)),))
    cases = [
        ({"target": "cpu:avx512", "schedules": table}, Code.SCHEDULE_TARGET),
        ({"schedules": tmp_path / "none.json"}, Code.FILE_NOT_FOUND),
        ({"schedules": tmp_path / "broken.json"}, Code.SCHEDULE_TABLE),
        ({"target": "cpu:avx2", "schedules": wide}, Code.SCHEDULE_TABLE),
        ({"schedules": 8}, Code.USAGE),
    ]
    for options, code in cases:
        with pytest.raises(tfir.CompilerError) as raised:
            tfir.compile(TINY, **options)  # type: ignore[arg-type]
        assert list(raised.value.codes) == [code]
    monkeypatch.setenv("TFIR_SCHEDULES", str(tmp_path / "broken.json"))
    with pytest.raises(tfir.CompilerError, match="not JSON"):
        tfir.compile(TINY)
    monkeypatch.setenv("TFIR_SCHEDULES", "0")
    tfir.compile(TINY).save(tmp_path / "m.tfc")
    with pytest.raises(tfir.CompilerError, match="compiled already"):
        tfir.compile(str(tmp_path / "m.tfc"), schedules=table)


def test_another_table_is_another_entry_of_the_cache(checkpoint: Path, kept: Path) -> None:
    first, plain = compiled(checkpoint)
    table = other(plain)
    second, tuned = compiled(checkpoint, schedules=table)
    assert (first, second) == ("stored", "stored")
    again, found = compiled(checkpoint, schedules=table)
    assert again == "used" and rows(found) == rows(tuned) != rows(plain)
    smaller = ScheduleTable(table.target, table.entries[:1])
    assert compiled(checkpoint, schedules=smaller)[0] == "stored"
    assert compiled(checkpoint)[0] == "used" and rows(compiled(checkpoint)[1]) == rows(plain)
    assert all(map(np.array_equal, plain(IDS), found(IDS)))


def test_the_table_of_the_machine_counts_by_itself(checkpoint: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compiled(checkpoint)[1]
    place = default_place(find_target("cpu").kind)
    place.parent.mkdir()
    other(plain).save(place)
    state, tuned = compiled(checkpoint)
    assert state == "stored" and json.dumps(rows(tuned)).count('"table"') and tuned.report()["schedules"]["table"] == str(place)  # type: ignore[index]
    assert compiled(checkpoint)[0] == "used"
    monkeypatch.setenv("TFIR_SCHEDULES", "0")
    state, without = compiled(checkpoint)
    assert state == "used" and rows(without) == rows(plain)
