"""Compiling and calling holds the weights once: beside them lie the interpreter, the compiler and the arena."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.mapped import backing, let_go, map_file
from trustformers_ir.tools.bench.compile_time import bert
from trustformers_ir.tools.bench.memory import Peak, peaks

SLACK = 150 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of about 290 MiB: a second copy of them would not fit into the slack."""
    return bert(tmp_path_factory.mktemp("models"), 8)


def test_one_copy_of_the_weights(checkpoint: Path) -> None:
    found: list[Peak] = list(peaks(str(checkpoint), 2))
    assert all(p.weights > 280 << 20 for p in found)
    compiled, loaded = (p.excess for p in found)
    assert compiled < SLACK and loaded < SLACK, f"{compiled >> 20} MiB besides weights and arena when compiled, {loaded >> 20} MiB when loaded"


def test_pages_that_went_come_back(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(1 << 16, dtype=np.int64).tobytes())
    data = map_file(path, str(path), "", 0, lambda size: tfir.CompilerError())
    view = np.frombuffer(data, np.int64)[5:].reshape(-1, 1)
    assert backing(view) is data
    let_go([data])
    assert np.array_equal(view[:, 0], np.arange(5, 1 << 16))


def test_maps_of_others_are_left_alone(tmp_path: Path) -> None:
    """A private map may hold what was written to it and nowhere else."""
    (tmp_path / "theirs").write_bytes(bytes(4096))
    theirs = np.memmap(tmp_path / "theirs", np.uint8, mode="c")
    assert backing(theirs) is None and backing(np.frombuffer(mmap.mmap(-1, 4096), np.uint8)) is None
