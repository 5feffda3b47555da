"""What a call will cost, before it is made: the arena exactly, the time roughly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import trustformers_ir as tfir
from trustformers_ir.ir.abi import KernelInfo
from trustformers_ir.runtime import prediction
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.runtime.prediction import Kind, Rates, keep_rates, known_rates, predict
from trustformers_ir.tools import cli

MODEL = "random:bert?hidden_size=64&num_attention_heads=2&intermediate_size=128&num_hidden_layers=2&vocab_size=50"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rates:
    """A machine of round numbers, with two threads."""
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path))
    rates = Rates(2, 100.0, 400.0, 10.0)
    keep_rates(rates)
    return rates


def told(exe: Executable, **dims: int) -> dict[str, object]:
    entry = exe.report(**dims)["entries"]["main"]  # type: ignore[index]
    assert isinstance(entry, dict)
    return entry


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (1, 7), (3, 16), (2, 100)])
def test_the_arena_is_as_large_as_predicted(batch: int, seq: int) -> None:
    exe = tfir.compile(MODEL, threads=2)
    predicted = told(exe, batch=batch, seq=seq)
    exe(np.zeros((batch, seq), np.int64))
    assert predicted["arena_bytes"] == exe._arena.size
    assert predicted["scratch_bytes_per_thread"] <= exe._scratch.size / exe.threads


def test_rates_are_kept_per_number_of_threads(measured: Rates) -> None:
    assert known_rates(2) == measured and known_rates(3) is None


def note_of(**numbers: object) -> str:
    return json.dumps({"threads": 2, "fma": 1.0, "vnni": 1.0, "memory": 1.0, **numbers})


WRONG = ({"fma": "x"}, {"fma": -1.0}, {"fma": 0.0}, {"vnni": -1.0}, {"vnni": float("nan")}, {"memory": 0.0}, {"memory": float("inf")}, {"threads": 3})
BROKEN = ["", "[]", "{}", '{"threads": 2, "fma": 1.0, "memory": 1.0}', "[" * 99999, *(note_of(**numbers) for numbers in WRONG)]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_note_is_no_measurement(measured: Rates, text: str) -> None:
    prediction._place(2).write_text(text)
    assert known_rates(2) is None


def test_the_longer_of_both_times_counts(measured: Rates) -> None:
    exe = tfir.compile(MODEL, threads=2)
    entry = exe.manifest.entries[0]
    for dims in ({"batch": 1, "seq": 1}, {"batch": 8, "seq": 128}):
        roofs = predict(entry, dims, measured)
        assert len(roofs) == len(entry.kernels)
        assert told(exe, **dims)["predicted_ms"] == pytest.approx(sum(r.seconds for r in roofs) * 1e3)
    product = KernelInfo("k", "linear+gelu", "", 95 * 10**8, 10**6)
    table = KernelInfo("k", "linear", "", 10**6, 10**9)
    times = [prediction._roof(k, {}, measured, cached=False) for k in (product, table)]
    assert [t.bound for t in times] == ["arithmetic", "memory"]
    assert prediction._roof(table, {}, measured, cached=True).seconds < times[1].seconds / 2, "a small model stays in the cache"
    assert times[0].seconds == pytest.approx(0.1, rel=1e-3) and times[1].seconds == pytest.approx(0.1, rel=1e-3)


def test_of_a_table_only_the_rows_that_are_picked_count() -> None:
    exe = tfir.compile("random:bert?hidden_size=64&num_attention_heads=2&intermediate_size=64&num_hidden_layers=1&vocab_size=5000")
    kernels = exe.report(batch=1, seq=4)["entries"]["main"]["kernels"]  # type: ignore[index]
    (embedding,) = (k for k in kernels if k["label"].startswith("embedding"))
    rows = 4 * 64 * 4
    assert 3 * rows <= embedding["bytes"] < 10 * rows + 513 * 64 * 4, "three tables: of that for positions a slice is read, it counts whole"


def test_bytes_run_at_their_own_rate(measured: Rates) -> None:
    """Products of bytes have the rate of their instruction, and that of multiply-adds on a machine without it."""
    product = KernelInfo("k", "linear_int8+gelu", "", 10**10, 10**6)
    assert prediction._roof(product, {}, measured, cached=False).seconds == pytest.approx(10 / (400.0 * Kind.INTEGER.value), rel=1e-3)
    without = Rates(2, 100.0, 0.0, 10.0)
    keep_rates(without)
    assert known_rates(2) == without
    assert prediction._roof(product, {}, without, cached=False).seconds == pytest.approx(10 / (100.0 * Kind.INTEGER.value), rel=1e-3)


def test_nothing_is_predicted_without_measurements_or_dims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path))
    exe = tfir.compile(MODEL, threads=2)
    assert told(exe, batch=1, seq=8)["predicted_ms"] is None
    keep_rates(Rates(2, 100.0, 400.0, 10.0))
    assert told(exe, batch=1)["predicted_ms"] is None
    assert told(exe)["predicted_ms"] is None


def test_tfc_says_it_for_usual_sizes(measured: Rates, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.tfc")
    assert cli.main(["compile", MODEL, "-o", path, "--threads", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    exe = tfir.load(path, threads=2)
    for row in rows:
        entry = told(exe, **row["dims"])
        assert (row["arena_bytes"], row["predicted_ms"]) == (entry["arena_bytes"], pytest.approx(entry["predicted_ms"]))
    assert {"batch": 1, "seq": 128} in [row["dims"] for row in rows]
    assert cli.main(["inspect", path, "--json"]) == 0
    assert [r["arena_bytes"] for r in json.loads(capsys.readouterr().out)["predictions"]] == [r["arena_bytes"] for r in rows]
