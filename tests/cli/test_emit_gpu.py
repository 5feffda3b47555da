"""``tfc compile --target cuda:… --emit …``: what a model becomes on a GPU that need not be here."""

from __future__ import annotations

from pathlib import Path

import pytest

from trustformers_ir.codegen.triton import build
from trustformers_ir.ir.diagnostics import Code
from trustformers_ir.tools.cli import main

TINY = "random:bert?hidden_size=64&num_attention_heads=2&intermediate_size=64&num_hidden_layers=2&vocab_size=99"


def emitted(capsys: pytest.CaptureFixture[str], target: str, stage: str, *words: str) -> str:
    assert main(["compile", TINY, "--target", target, "--emit", stage, *words]) == 0
    return capsys.readouterr().out


def test_each_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    graph = emitted(capsys, "cuda:sm_90", "graph")
    assert graph.startswith("module @") and "panels" not in graph
    kernels = emitted(capsys, "cuda:sm_90", "kernels")
    assert "tile" in kernels and "// kernel_0: " in kernels
    text = emitted(capsys, "cuda:sm_90", "triton", "--dtype", "bf16")
    assert "tl.dot(" in text and "@triton.jit\ndef kernel_0(" in text
    compile(text, "kernels.py", "exec")
    assert sum("tl.exp2(" in function for function in text.split("@triton.jit")) == 1, "the attention of both layers is one kernel"
    assert main(["compile", TINY, "--target", "rocm:gfx942", "--emit", "triton", "-o", str(tmp_path / "k.py")]) == 0
    assert "tl.dot(" in (tmp_path / "k.py").read_text()


@pytest.mark.parametrize(("target", "stage", "instruction"), [("cuda:sm_90", "ptx", "wgmma.mma_async"), ("rocm:gfx942", "amdgcn", "v_mfma")])
def test_machine_code(capsys: pytest.CaptureFixture[str], target: str, stage: str, instruction: str) -> None:
    pytest.importorskip("triton", reason="pip install triton")
    text = emitted(capsys, target, stage, "--dtype", "bf16")
    assert instruction in text and target.partition(":")[2] in text and "// kernel_0: " in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--target", "cuda:sm_13", "--emit", "triton"], Code.UNKNOWN_TARGET),
        (["--target", "cuda:sm_90", "--emit", "amdgcn"], Code.USAGE),
        (["--target", "rocm:gfx942", "--emit", "ptx"], Code.USAGE),
        (["--target", "cuda:sm_90", "--emit", "llvm"], Code.USAGE),
        (["--emit", "triton"], Code.USAGE),
        (["--target", "cuda:sm_90", "--emit", "metal"], Code.NOT_BUILT),
        (["--target", "cuda:sm_90", "-o", "m.so"], Code.USAGE),
        (["--target", "cuda:sm_90", "-o", "m.o"], Code.USAGE),
    ],
)
def test_what_cannot_be_shown(capsys: pytest.CaptureFixture[str], words: list[str], code: Code) -> None:
    assert main(["compile", TINY, *words]) == 2
    err = capsys.readouterr().err
    assert f"error[{code.id}]" in err and "help: " in err


def test_without_triton_there_are_texts_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_triton", lambda: False)
    assert "tl.dot(" in emitted(capsys, "cuda:sm_90", "triton")
    assert main(["compile", TINY, "--target", "cuda:sm_90", "--emit", "ptx"]) == 2
    assert "pip install triton" in capsys.readouterr().err
