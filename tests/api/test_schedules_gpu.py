"""Tuned schedules for GPUs through the public functions. No GPU is needed, and of Triton no compiler: its machine code is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_compile_cache import checkpoint, compiled, kept

import trustformers_ir as tfir
from trustformers_ir.codegen.triton import build, device
from trustformers_ir.codegen.triton.aot import Wanted
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.ir.schedule_table import BlockChoice, FlashChoice, ScheduleTable, TunedEntry, default_place, row_choice, row_key
from trustformers_ir.runtime.runnable import Runnable

assert checkpoint and kept  # fixtures
TINY = "random:bert?hidden_size=64&num_hidden_layers=1&num_attention_heads=2&intermediate_size=96&vocab_size=50"
HOPPER = "cuda:sm_90"


def code_of_kernels(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
    return [Binary(w.emitted.name, "tfir", b"\x7fELF" + w.emitted.text.encode(), "", 1024, w.launch.warps, 32, 0) for w in wanted]


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tables in the cache folder count, which is one of the test's own."""
    monkeypatch.delenv("TFIR_SCHEDULES")
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    monkeypatch.setattr(build, "has_triton", lambda: True)


def rows(exe: Runnable) -> dict[str, dict[str, Any]]:
    told = exe.report()["schedules"]
    assert isinstance(told, dict)
    return told["kernels"]


def other(exe: Runnable, chip: str = "sm_90") -> ScheduleTable:
    """Another tile for every product and every attention."""
    changed: list[TunedEntry] = []
    for row in rows(exe).values():
        choice = row_choice(row)
        if isinstance(choice, BlockChoice) and choice.rows > 1:
            changed.append(TunedEntry(row_key(row), replace(choice, columns=16, group=2)))
        elif isinstance(choice, FlashChoice):
            changed.append(TunedEntry(row_key(row), replace(choice, keys=16)))
    return ScheduleTable(chip, tuple(dict.fromkeys(changed)))


def test_a_table_is_used_and_told(tmp_path: Path) -> None:
    plain = tfir.compile(TINY, target=HOPPER)
    assert {row["from"] for row in rows(plain).values()} == {"heuristic"}
    assert {row["template"] for row in rows(plain).values()} == {"gpu_linear", "gpu_attention"}
    table = other(plain)
    table.save(tmp_path / "t.json")
    for given in (table, tmp_path / "t.json"):
        tuned = tfir.compile(TINY, target=HOPPER, schedules=given)
        found = {row_key(r): row_choice(r) for r in rows(tuned).values() if r["from"] == "table"}
        assert found == table.choices and len(found) > 5
        assert tuned.compiled.code != plain.compiled.code
    assert "schedules.sm_90" in tuned.manifest.metadata and "schedules.sm_90" not in plain.manifest.metadata


def test_what_tune_left_counts_for_its_chip_alone() -> None:
    plain = tfir.compile(TINY, target=HOPPER)
    table = other(plain)
    place = default_place(table.target)
    assert place.name == "sm_90.json"
    place.parent.mkdir(parents=True)
    table.save(place)
    exe = tfir.compile(TINY, target="cuda:sm_90,cuda:sm_80")
    told = {m.manifest.target.name: {r["from"] for r in m.report["schedules"]["kernels"].values()} for m in exe.family}  # type: ignore[index]
    assert told == {HOPPER: {"table", "heuristic"}, "cuda:sm_80": {"heuristic"}}
    shown = [tfir.api.emit_gpu(TINY, target, "kernels") for target in (HOPPER, "cuda:sm_80")]
    place.unlink()
    assert [tfir.api.emit_gpu(TINY, target, "kernels") == text for target, text in zip((HOPPER, "cuda:sm_80"), shown, strict=True)] == [False, True]
    assert tfir.api.emit_gpu(TINY, HOPPER, "kernels", schedules=table) == shown[0]


def test_another_table_is_another_entry_of_the_cache(checkpoint: Path, kept: Path) -> None:
    first, plain = compiled(checkpoint, target=HOPPER)
    table = other(plain)
    assert (first, compiled(checkpoint, target=HOPPER, schedules=table)[0]) == ("stored", "stored")
    again, found = compiled(checkpoint, target=HOPPER, schedules=table)
    assert again == "used" and {row_key(r) for r in rows(found).values() if r["from"] == "table"} == set(table.choices)
    assert compiled(checkpoint, target=HOPPER)[0] == "used"


def test_wrong_tables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = other(tfir.compile(TINY, target=HOPPER))
    entry = next(e for e in table.entries if isinstance(e.choice, BlockChoice))
    assert isinstance(entry.choice, BlockChoice)
    for target, wrong, code, words in (
        ("cuda:sm_80", table, Code.SCHEDULE_TARGET, "the schedules are for sm_90, and the code is for sm_80"),
        ("cpu", table, Code.SCHEDULE_TARGET, "sm_90"),
        (HOPPER, ScheduleTable("sm_90", (replace(entry, choice=replace(entry.choice, rows=8)),)), Code.SCHEDULE_TABLE, "at least"),
    ):
        with pytest.raises(tfir.CompilerError, match=words) as raised:
            tfir.compile(TINY, target=target, schedules=wrong)
        assert raised.value.codes == (code,)
    with pytest.raises(tfir.CompilerError, match="sm_90"):
        tfir.api.emit_gpu(TINY, "cuda:sm_80", "kernels", schedules=table)

    def greedy(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
        return [replace(b, shared=b.shared << 10 * (n == 0)) for n, b in enumerate(code_of_kernels(wanted))]

    def hungry(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
        return [replace(b, shared=1 << 20) for b in code_of_kernels(wanted)]

    monkeypatch.setattr(device, "compile_kernels", greedy)
    tfir.compile(TINY, target=HOPPER)  # nobody chose what the first kernel takes
    monkeypatch.setattr(device, "compile_kernels", hungry)
    with pytest.raises(tfir.CompilerError, match="takes 1048576 bytes of shared memory, and a program has 232448") as raised:
        tfir.compile(TINY, target=HOPPER, schedules=table)
    assert set(raised.value.codes) == {Code.SCHEDULE_TABLE}
