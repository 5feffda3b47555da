"""``tfc tune`` for GPUs: what is searched, what is left out, what is written. There is no GPU: times are made up, and so is machine code."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_harness import RANDOM, tfc
from test_tune import Model

from trustformers_ir import compiler, tuner
from trustformers_ir.codegen.lower.block_choices import neighbours
from trustformers_ir.codegen.lower.blocks import BlockMachine
from trustformers_ir.codegen.triton import build, device
from trustformers_ir.codegen.triton.aot import TritonError, Wanted
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.ir.dims import evaluate
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.schedule_table import BlockChoice, Choice, FlashChoice, ScheduleKey, default_place, read_table, row_choice
from trustformers_ir.runtime.gpu.executable import GpuExecutable
from trustformers_ir.runtime.gpu.lane import Block
from trustformers_ir.runtime.profile import Profile

HOPPER = BlockMachine()
MANY, HEADS = ScheduleKey("gpu_linear", DType.bf16, 4096, 4096), ScheduleKey("gpu_attention", DType.bf16, 64, 64)
ELSEWHERE = replace(MANY, rows=32)
FIRST: dict[ScheduleKey, Choice] = {
    MANY: BlockChoice(128, 256, 64, 8, 4),
    HEADS: FlashChoice(128, 64, 8, 3),
    ELSEWHERE: BlockChoice(32, 64, 128, 4, 4, 1),
}
BEST = BlockChoice(128, 128, 64, 8, 5)  # two moves away


def speed(key: ScheduleKey, choice: Choice) -> float:
    """The nearer to ``BEST``, the faster; attention is best as it is, and the kernel for few rows is not launched."""
    if isinstance(choice, FlashChoice):
        return 0.01 if choice == FIRST[HEADS] else 0.02
    assert isinstance(choice, BlockChoice)
    off = [getattr(choice, name) != getattr(BEST, name) for name in ("rows", "columns", "terms", "warps", "stages", "group", "parts")]
    return 0.05 * (1 + 0.1 * sum(off)) if key == MANY else 0.0


def test_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Model(speed, first=FIRST).search(monkeypatch, around=functools.partial(neighbours, HOPPER))
    assert found.table.choices == {MANY: BEST}
    assert [(f.key, f.better) for f in found.findings] == [(MANY, True), (HEADS, False)], "what is not launched is not tuned"
    assert found.tried == (MANY, HEADS) and found.ratio < 1


def test_what_cannot_be_built_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def usable(choices: Mapping[ScheduleKey, Choice]) -> dict[ScheduleKey, Choice]:
        return {k: c for k, c in choices.items() if not isinstance(c, BlockChoice) or c.stages <= 4}

    around = functools.partial(neighbours, HOPPER)
    found = Model(speed, first=FIRST).search(monkeypatch, around=around, usable=usable)
    assert found.table.choices == {MANY: replace(BEST, stages=4)}
    none = Model(speed, first=FIRST).search(monkeypatch, around=around, usable=lambda choices: {})
    assert not none.table.entries and none.builds == 1 and all(f.tried > 3 for f in none.findings)


# --- the command ---------------------------------------------------------------------------------------------------------------------------


class Gpu(GpuExecutable):
    """An executable on a GPU whose attention is faster with blocks of 64 keys, and whose other kernels take the same time whatever is chosen."""

    opened: list[Gpu] = []
    shared: list[bool] = []
    now = 0.0

    def __init__(self, compiled: Any, *, weights: Block | None = None, **options: Any) -> None:
        super().__init__(compiled, **options)
        self.shared.append(weights is not None)
        self.opened.append(self)

    @property
    def weights(self) -> Block:
        return Block(0, 0, None)

    @property
    def driver(self) -> Any:
        return type("Driver", (), {"title": "a GPU"})

    def __call__(self, /, *inputs: Any, **named: Any) -> Any:
        self.profile()

    def profile(self, /, *inputs: Any, entry: str | None = None, **named: Any) -> Profile:
        kernels, dims = self.manifest.entries[0].kernels, {"batch": 1, "seq": 8}
        told: Any = self.compiled.report["schedules"]
        times = np.zeros((1, len(kernels), 3))
        for n, (kernel, launch) in enumerate(zip(kernels, self.device.functions[0].launches, strict=True)):
            row = told["kernels"].get(kernel.symbol)
            held = all(c.above < evaluate(c.size, dims) and (c.most is None or evaluate(c.size, dims) <= c.most) for c in launch.conditions)
            fast = row is not None and isinstance(c := row_choice(row), FlashChoice) and c.keys == 64
            times[0, n, 2] = held * (0.5e-3 if fast else 1e-3)
        Gpu.now += float(times.sum())
        return Profile(self.manifest.entries[0], times, np.zeros(times.shape[:2], np.int64), float(times.sum()), dims)

    def close(self) -> None:
        self.opened.remove(self)


def code_of_kernels(wanted: Sequence[Wanted], *_: Any) -> list[Binary]:
    return [Binary(w.emitted.name, "tfir", b"\x7fELF" + w.emitted.text.encode(), "", 1024, w.launch.warps, 32, 0) for w in wanted]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Gpu]:
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "has_triton", lambda: True)
    monkeypatch.setattr(device, "compile_kernels", code_of_kernels)
    monkeypatch.setattr(compiler, "check_measurable", lambda target: None)
    monkeypatch.setattr(compiler, "GpuExecutable", Gpu)
    monkeypatch.setattr(tuner, "time", SimpleNamespace(perf_counter=lambda: Gpu.now))
    Gpu.opened, Gpu.shared = [], []
    return Gpu


def test_a_model_is_tuned(capsys: pytest.CaptureFixture[str], gpu: type[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes more stages spills, other warps are refused: what is left of attention's neighbours is enough."""
    seen: list[Wanted] = []

    def attempts(wanted: Sequence[Wanted], *_: Any) -> list[Binary | TritonError]:
        seen.extend(wanted)
        good = [replace(b, spilled=4 * (w.launch.stages > 2)) for w, b in zip(wanted, code_of_kernels(wanted), strict=True)]
        return [b if b.warps == 8 else TritonError("no") for b in good]

    monkeypatch.setattr(build, "attempt_kernels", attempts)
    code, out, err = tfc(capsys, "tune", RANDOM, "--seq", "8", "--target", "cuda:sm_90", "--budget", "2", "--json")
    assert code == 0, err
    told, place = json.loads(out), default_place("sm_90")
    table = read_table(place)
    assert table.target == told["target"] == "sm_90" and told["table"] == str(place)
    assert {(e.key.template, isinstance(e.choice, FlashChoice) and e.choice.keys) for e in table.entries} == {("gpu_attention", 64)}
    assert table.entries[0].measured.endswith("batch 1, seq 8, a GPU")
    assert {row["template"] for row in told["kernels"]} == {"gpu_linear", "gpu_attention"} and seen
    assert {row["rows"] for row in told["kernels"]} == {1, 16, 32}, "of the pooler, of attention, of products of eight tokens"
    assert not gpu.opened and gpu.shared == [False] + [True] * (len(gpu.shared) - 1) and len(gpu.shared) == told["builds"]


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("cuda", "TFC4005", "the target 'cuda' is the GPU of this machine"),
        ("cuda:sm_90", "TFC5005", "the code is for cuda:sm_90; this machine has no driver of NVIDIA"),
        ("triton:interpreter", "TFC4005", "is found by measuring on that GPU, and here its code is interpreted"),
        ("cuda:sm_13", "TFC4003", "there is no target 'cuda:sm_13'"),
        ("cuda:sm_90,cuda:sm_80", "TFC4003", "there is no target"),
    ],
)
def test_without_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, code: str, words: str
) -> None:
    monkeypatch.setenv("TFIR_CACHE_DIR", str(tmp_path / "cache"))
    status, out, err = tfc(capsys, "tune", RANDOM, "--target", target)
    assert (status, out) == (2, "") and err.startswith(f"error[{code}]: ") and words in err and "  help: " in err, err
    monkeypatch.setenv("TFIR_GPU", "interpreter")
    assert "error[TFC" in tfc(capsys, "tune", RANDOM, "--target", target)[2]
    assert not list(tmp_path.rglob("*.json"))
