"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trustformers_ir.ir.atomic import atomic_output, check_writable, write_text
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.ir.progress import note, watching


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with atomic_output(path) as stream:
        stream.write(b"abc")
        assert not path.exists()
        stream.seek(0)
        assert stream.read() == b"abc"
    assert path.read_bytes() == b"abc"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")
    with pytest.raises(type(failure)), atomic_output(path) as stream:
        stream.write(b"half of the n")
        raise failure
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=r"TFC6004.*No space left"), atomic_output(tmp_path / "out") as stream:
        stream.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_an_error_of_reading_is_not_taken_for_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [".", "no/such/folder/out", "file/out"])
def test_unwritable_outputs(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilerError, match="TFC6004"):
        check_writable(tmp_path / path)
    with pytest.raises(CompilerError, match="TFC6004"), atomic_output(tmp_path / path):
        pytest.fail("the block must not run")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "out", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_links_are_followed_and_devices_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "x"
    write_text("/dev/null", "x")
    assert not Path("/dev/null").is_file()


def test_notes_reach_the_watcher_of_the_block() -> None:
    seen: list[tuple[str, int, int]] = []
    note("before")
    with watching(lambda *n: seen.append(n)):
        note("inside", 1, 2)
    note("after")
    assert seen == [("inside", 1, 2)]
