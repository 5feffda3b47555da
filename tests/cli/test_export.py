"""``tfc export`` to several files at once. What each format holds is tested with its writer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_harness import tfc

LLAMA = "random:llama?hidden_size=32&num_hidden_layers=1&num_attention_heads=2&vocab_size=64&intermediate_size=32"


def outputs(*paths: Path) -> list[str]:
    return [word for path in paths for word in ("-o", str(path))]


def test_several_formats_are_written_by_one_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    onnx, gguf = tmp_path / "m.onnx", tmp_path / "m.gguf"
    code, _, told = tfc(capsys, "export", LLAMA, *outputs(onnx, gguf), "--quantize", "q4_1")
    assert code == 2 and "no ONNX file says what 'q4_1' makes of weights" in told
    assert not onnx.exists() and gguf.exists(), "one that cannot be written keeps no other from being written"
    code, out, _ = tfc(capsys, "export", LLAMA, *outputs(onnx, gguf), "--opset", "19", "--json")
    assert code == 0
    rows = json.loads(out)["outputs"]
    assert [row["output"] for row in rows] == [str(onnx), str(gguf)]
    assert [row["bytes"] for row in rows] == [onnx.stat().st_size, gguf.stat().st_size]


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["m.onnx", "m.foo"], [], ["'{}/m.foo' is of no format that can be exported"]),
        (["m.gguf", "m.foo"], ["--opset", "19"], ["no format", "opset says nothing of GGUF files: it is for ONNX files"]),
        (["m.gguf", "m.gguf"], [], ["'{}/m.gguf' is named twice"]),
        (["m.gguf", "no/m.onnx"], [], ["the folder '{}/no' does not exist"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, names: list[str], options: list[str], said: list[str]
) -> None:
    code, _, told = tfc(capsys, "export", LLAMA, *outputs(*(tmp_path / n for n in names)), *options)
    assert code == 2
    for text in said:
        assert text.format(tmp_path) in told
    assert not list(tmp_path.iterdir())
