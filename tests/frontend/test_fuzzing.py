"""Files that somebody made wrong: no crash, no hang, nothing read outside of the model's folder, no more memory than the file is worth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("onnx")
import fuzzing
from onnx_bombs import BOMBS

pytestmark = pytest.mark.skipif(not os.access("/proc/self/statm", os.R_OK), reason="needs Linux's /proc")


def check(kind: str, rounds: int, seed: int, folder: Path, timeout: float) -> fuzzing.Report:
    found = fuzzing.run(kind, rounds, seed, folder, timeout)
    print(f"{found.files} files, {found.read} read, {found.later} compiled, {found.seconds:.1f} s, slowest {found.slowest:.2f} s,", end=" ")
    print(f"{found.peak / 2**20:.1f} MiB beyond the beginning, at most {found.traced / 2**20:.2f} MiB traced for one file; {found.codes}")
    assert found.files == rounds
    assert not found.wrong, "\n\n".join(f"{w['file']} ({w['how']}): {w['problem']}" for w in found.wrong)
    return found


@pytest.mark.parametrize(("kind", "rounds"), [("onnx", 300), ("safetensors", 600)])
def test_wrong_files_are_read_or_refused(kind: str, rounds: int, tmp_path: Path) -> None:
    found = check(kind, rounds, 1, tmp_path, 300)
    assert 0 < found.read < rounds and len(found.how) >= 5


@pytest.mark.long
@pytest.mark.parametrize(("kind", "rounds"), [("onnx", 90_000), ("safetensors", 110_000)])
def test_200_000_wrong_files_are_read_or_refused(kind: str, rounds: int, tmp_path: Path) -> None:
    found = check(kind, rounds, 2, tmp_path, 3600)
    assert 0 < found.read < rounds


def test_small_models_that_promise_much(tmp_path: Path) -> None:
    check("few bombs", sum(str(1 << 40) in name for name in BOMBS), 0, tmp_path, 300)


@pytest.mark.long
def test_all_small_models_that_promise_much(tmp_path: Path) -> None:
    check("bombs", len(BOMBS), 0, tmp_path, 900)
