"""The digest of a file is always that of its bytes, read or remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trustformers_ir.runtime import identity
from trustformers_ir.runtime.identity import CHUNK, SMALL, Memory, content_digest, folder_identity


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "digests")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large, and counts as settled at once."""
    monkeypatch.setattr(identity, "SETTLED", -60.0)
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(SMALL + 1))
    return path


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(identity, "content_digest", refuse)


def test_a_large_file_is_read_once(memory: Memory, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = memory.digest(large)
    unread(monkeypatch)
    assert memory.digest(large) == first


def test_other_bytes_are_another_digest_whatever_the_time_says(memory: Memory, large: Path) -> None:
    first, status = memory.digest(large), large.stat()
    with large.open("r+b") as stream:
        stream.write(b"1")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert memory.digest(large) != first


def test_a_file_that_was_replaced_is_read(memory: Memory, large: Path, tmp_path: Path) -> None:
    first = memory.digest(large)
    (tmp_path / "new").write_bytes(bytes(SMALL) + b"1")
    os.replace(tmp_path / "new", large)
    assert memory.digest(large) != first


def test_nothing_is_remembered_of_a_file_that_changed_a_moment_ago(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    path.write_bytes(bytes(SMALL + 1))
    memory.digest(path)
    assert not memory.folder.exists() or not list(memory.folder.iterdir())


def test_a_broken_note_counts_as_none(memory: Memory, large: Path) -> None:
    first = memory.digest(large)
    (note,) = memory.folder.iterdir()
    for text in ("", "0" * 64, note.read_text()[:-1] + "g", "é"):
        note.write_text(text)
        assert memory.digest(large) == first


def test_another_boot_reads_again(memory: Memory, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.digest(large)
    monkeypatch.setattr(identity, "_boot", lambda: "another")
    assert memory.recall(large, large.stat()) is None


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_every_byte_counts(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    first = content_digest(path)
    assert content_digest(path) == first
    if size:
        with path.open("r+b") as stream:
            stream.seek(size - 1)
            stream.write(b"1")
        assert content_digest(path) != first
    path.write_bytes(bytes(size + 1))
    assert content_digest(path) != first


def test_what_counts_in_a_folder(memory: Memory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json", "README.md"):
        (folder / name).write_text(name)
    found = folder_identity(folder, memory)
    assert found is not None
    assert [name for name, _ in found] == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    (folder / "README.md").write_text("other")
    assert folder_identity(folder, memory) == found
    (folder / "2_Dense").symlink_to(tmp_path)
    assert folder_identity(folder, memory) is None, "what lies behind a link to a folder may change"


def test_a_pipe_is_no_file_to_wait_for(memory: Memory, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    assert folder_identity(folder, memory) is None
