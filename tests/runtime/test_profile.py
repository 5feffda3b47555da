"""Profiles of real calls: every kernel, every worker, in order; the trace is what viewers read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools.cli import main

SMALL = "random:bert?hidden_size=96&num_hidden_layers=2&vocab_size=100"


@pytest.fixture(scope="module")
def exe() -> Executable:
    return tfir.compile(SMALL, threads=2)


def test_times_are_in_order(exe: Executable) -> None:
    profile = exe.profile(np.ones((2, 40), np.int64))
    workers, kernels, _ = profile.times.shape
    assert (workers, kernels) == (2, len(exe.manifest.entries[0].kernels))
    for worker in profile.times:
        assert (np.diff(worker.reshape(-1)) >= 0).all()
    assert 0 < sum(r.seconds for r in profile.rows) <= profile.seconds * 1.01
    assert profile.dims == {"batch": 2, "seq": 40}


def test_the_table_and_the_trace_name_kernels_and_lines(exe: Executable) -> None:
    profile = exe.profile(np.ones((1, 8), np.int64))
    assert "linear+gelu" in str(profile)
    events = json.loads(json.dumps(profile.trace()))["traceEvents"]
    assert any(e["name"] == "linear+gelu" and "trustformers_ir/models/" in e["args"]["source"] for e in events)
    assert {e["tid"] for e in events} == set(range(profile.times.shape[0]))


def test_profiling_changes_nothing(exe: Executable) -> None:
    ids = np.arange(20).reshape(2, 10)
    before = exe(ids)
    exe.profile(ids)
    for a, b in zip(before, exe(ids), strict=True):
        np.testing.assert_array_equal(a, b)


def test_work_for_one_worker() -> None:
    tiny = tfir.compile(lambda x: x + 1.0, tfir.f32["n"], threads=2)
    assert tiny.profile(np.ones(3, np.float32)).times.shape[0] == 1


def test_run_writes_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("ids.npy", np.ones((1, 5), np.int64))
    assert main(["run", SMALL, "--input", "input_ids=ids.npy", "-o", "out.npz", "--profile", "trace.json"]) == 0
    assert "in kernels" in capsys.readouterr().err
    assert json.loads(Path("trace.json").read_text())["otherData"]["dims"] == {"batch": 1, "seq": 5}
