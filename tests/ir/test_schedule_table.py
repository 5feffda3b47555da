"""Tables of tuned schedules on the disk: they read back as they were written, and what is wrong with one is said, all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import (
    AttentionChoice,
    Chosen,
    ScheduleKey,
    ScheduleTable,
    Tables,
    TileChoice,
    TunedEntry,
    default_place,
    find_tables,
    key_row,
    parse_table,
    read_table,
    row_choice,
    row_key,
)

KIND = "znver5-avx512vnni"
DENSE = ScheduleKey("linear", DType.f32, 768, 3072, None, 48)
HEADS = ScheduleKey("attention", DType.f32, 64, 64, 197)
NOTE = '0.95 of the time: a "model"'
TABLE = ScheduleTable(KIND, (TunedEntry(DENSE, TileChoice(9, 48, 256, 4096), NOTE), TunedEntry(HEADS, AttentionChoice(3, 8))))


def codes(text: str) -> list[str]:
    """What is said of a text."""
    with pytest.raises(CompilerError) as raised:
        parse_table(text, "t.json")
    assert all(d.code is Code.SCHEDULE_TABLE and d.where.file == "t.json" and d.help for d in raised.value.diagnostics)
    return [d.message for d in raised.value.diagnostics]


def test_a_table_reads_back(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "t.json")
    read = read_table(tmp_path / "t.json")
    assert set(read.entries) == set(TABLE.entries) and read.target == KIND and read.file == str(tmp_path / "t.json")
    assert read.text == TABLE.text == replace(TABLE, entries=TABLE.entries[::-1]).text, "the order of the entries is no matter"
    assert read.choices == {DENSE: TileChoice(9, 48, 256, 4096), HEADS: AttentionChoice(3, 8)}


def test_rows_of_reports_read_back() -> None:
    for e in TABLE.entries:
        row = json.loads(json.dumps(key_row(Chosen(e.key, e.choice, "table"))))
        assert (row_key(row), row_choice(row), row["from"]) == (e.key, e.choice, "table")


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(top: Any) -> None:
        for step in path[:-1]:
            top = top[step]
        top[path[-1]] = value

    return change


def _drop(*path: Any) -> Callable[[Any], None]:
    def change(top: Any) -> None:
        for step in path[:-1]:
            top = top[step]
        del top[path[-1]]

    return change


ENTRY = ("entries", 1)
BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (_set("format", value=2), "the table has format 2; this version reads format 1"),
    (_set("format", value=True), "the table has format True"),
    (_drop("format"), "the table has no 'format'"),
    (_drop("target"), "the table has no 'target'"),
    (_set("target", value=""), "target is no name of a kind of machine"),
    (_set("target", value=["a"]), "target is no name of a kind of machine"),
    (_set("entries", value={}), "entries is no list"),
    (_set("speed", value=1), "the table has an unknown field: 'speed'; its fields are entries, format, target"),
    (_set(*ENTRY, value=3), "entry 1: it is no object"),
    (_drop(*ENTRY, "rows"), "entry 1: it has no 'rows'"),
    (_set(*ENTRY, "row", value=1), "entry 1: it has an unknown field: 'row'"),
    (_set(*ENTRY, "template", value="conv"), "entry 1: there is no template 'conv'; there are linear, linear_int8, linear_blocks_int8, matmul"),
    (_set(*ENTRY, "template", value=[]), "entry 1: there is no template []"),
    (_set(*ENTRY, "dtype", value="f31"), "entry 1: there is no dtype 'f31'"),
    (_set(*ENTRY, "n", value=1.5), "entry 1: n is 1.5, which is no whole number"),
    (_set(*ENTRY, "n", value=-1), "entry 1: n is -1: it lies between 0 and"),
    (_set(*ENTRY, "k", value=True), "entry 1: k is True, which is no whole number"),
    (_set(*ENTRY, "panel", value=None), "entry 1: panel is None, which is no whole number"),
    (_set(*ENTRY, "measured", value=1), "entry 1: measured is no text"),
    (_set(*ENTRY, "choice", value=None), "entry 1: choice is no object"),
    (_set(*ENTRY, "choice", value={"vectors": 1, "rows": 4}), "entry 1: choice has no 'ahead'"),
    (_drop(*ENTRY, "choice", "block"), "entry 1: choice has no 'block'"),
    (_set(*ENTRY, "choice", "unroll", value=4), "entry 1: choice has an unknown field: 'unroll'; its fields are ahead, block, columns, rows"),
    (_set(*ENTRY, "choice", "rows", value=0), "entry 1: rows is 0: it lies between 1 and 32"),
    (_set(*ENTRY, "choice", "rows", value="8"), "entry 1: rows is '8', which is no whole number"),
    (_set(*ENTRY, "choice", "columns", value=40), "entry 1: columns is 40: a register tile has whole vectors of 16 columns"),
    (_set(*ENTRY, "choice", "columns", value=80), "entry 1: columns is 80: it lies between 16 and 64"),
    (_set(*ENTRY, "choice", "ahead", value=1 << 40), "entry 1: ahead is 1099511627776: it lies between"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_what_is_wrong_is_said(change: Callable[[Any], None], message: str) -> None:
    top = json.loads(TABLE.text)
    change(top)
    (found,) = codes(json.dumps(top))
    assert found.startswith(message)


def test_all_that_is_wrong_is_said_at_once() -> None:
    top = json.loads(TABLE.text)
    top["entries"] += [{**top["entries"][0]}, 1, {**top["entries"][0], "n": "x"}]
    assert [m.partition(":")[0] for m in codes(json.dumps(top))] == ["entry 2", "entry 3", "entry 4"]
    assert "attention f32 197 x 64 x 64 has an entry already" in codes(json.dumps(top))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("[]", "the table is no object"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"format": 1, "format": 1}', "the field 'format' occurs twice"),
        ('{"format": NaN}', "NaN is no number"),
    ],
)
def test_what_is_no_table(text: str, message: str) -> None:
    assert codes(text)[0].startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"target": "\xe9"}')
    (tmp_path / "large").write_bytes(b" " * (5 << 20))
    for name, code in (("none", Code.FILE_NOT_FOUND), ("", Code.UNREADABLE), ("latin", Code.SCHEDULE_TABLE), ("large", Code.SCHEDULE_TABLE)):
        with pytest.raises(CompilerError) as raised:
            read_table(tmp_path / name)
        assert list(raised.value.codes) == [code]


def test_new_findings_replace_what_was_tried() -> None:
    other = TunedEntry(ScheduleKey("matmul", DType.f32, None, None), TileChoice(4, 16, 64))
    table = TABLE.updated([DENSE, other.key], [other])
    assert {e.key for e in table.entries} == {HEADS, other.key}


# --- which tables count --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of tables."""
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TFIR_SCHEDULES", raising=False)
    default_place(KIND).parent.mkdir()
    return default_place(KIND)


def test_without_tables_nothing_is_chosen(place: Path) -> None:
    assert find_tables() == Tables() and find_tables().identity is None and find_tables().of(KIND).choices == {}


def test_tables_in_the_folder_are_found_by_kind(place: Path) -> None:
    TABLE.save(place)
    replace(TABLE, target="haswell-avx2", entries=TABLE.entries[:1]).save(default_place("haswell-avx2"))
    found = find_tables()
    assert found.of(KIND).choices == TABLE.choices and len(found.of("haswell-avx2").entries) == 1 and not found.of("other").entries
    found.check(["other"])  # nobody asked for one


def test_one_that_is_named_takes_their_place(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TABLE.save(place)
    mine = replace(TABLE, entries=TABLE.entries[:1])
    mine.save(tmp_path / "mine.json")
    monkeypatch.setenv("TFIR_SCHEDULES", str(tmp_path / "mine.json"))
    assert find_tables().of(KIND).choices == mine.choices
    assert find_tables(TABLE).of(KIND) is TABLE
    monkeypatch.setenv("TFIR_SCHEDULES", "0")
    assert find_tables() == Tables()
    assert find_tables(tmp_path / "mine.json").of(KIND).choices == mine.choices


def test_identities_tell_tables_apart(place: Path) -> None:
    names = [find_tables(replace(TABLE, entries=entries)).identity for entries in (TABLE.entries, TABLE.entries[:1], ())]
    assert len(set(names)) == 3 and names[2] is None
    TABLE.save(place)
    assert find_tables().identity == names[0]


def test_a_table_for_another_machine_is_refused() -> None:
    with pytest.raises(CompilerError, match="the schedules are for znver5-avx512vnni, and the code is for haswell-avx2") as raised:
        find_tables(TABLE).check(["haswell-avx2", "haswell-avx2"])
    assert list(raised.value.codes) == [Code.SCHEDULE_TARGET]
    find_tables(TABLE).check(["haswell-avx2", KIND])


def test_something_else_is_no_table() -> None:
    with pytest.raises(CompilerError, match="schedules is a int, neither a path nor a table"):
        find_tables(3)
