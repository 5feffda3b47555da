"""Quantized models on the command line: compile, run, inspect, verify, opt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_harness import write_checkpoint

import trustformers_ir as tfir
from trustformers_ir.tools.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "bert"))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\na very old dog ran\nthe new tree\n")
    return str(tmp_path / "texts.txt")


def test_dynamic(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(tmp_path / "q.tfc")
    assert main(["compile", model, "-o", artifact, "--quantize", "int8"]) == 0
    said = capsys.readouterr().err
    assert "int8: 8 of 9 products in 8-bit integers" in said and "pooler.dense stays as it is: it is a head" in said
    assert main(["run", artifact, "--text", "the cat sat", "-o", str(tmp_path / "e.npz")]) == 0
    assert main(["run", model, "--quantize", "int8", "--text", "the cat sat", "-o", str(tmp_path / "f.npz")]) == 0
    one, other = (np.load(tmp_path / n)["last_hidden_state"] for n in ("e.npz", "f.npz"))
    np.testing.assert_array_equal(one, other)
    capsys.readouterr()
    assert main(["inspect", artifact, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["quantize"] == "int8" and described["quantized"] == "8 of 9 products"
    assert main(["inspect", artifact, "--text"]) == 0
    graph = capsys.readouterr().out
    assert graph.count("quantize_dynamic(") == 8 and str(tfir.parse(graph)).strip() == graph.strip()


def test_static(model: str, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "int8{activations=static,method=percentile,keep=*.intermediate.*}"
    assert main(["compile", model, "-o", str(tmp_path / "q.tfc"), "--quantize", recipe, "--calibrate", texts, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["report"]["quantization"]
    assert told["int8"] == 6 and sum(row["reason"] == "keep names it" for row in told["products"]) == 2
    assert all(row["activation"]["low"] <= 0 <= row["activation"]["high"] for row in told["products"] if row["int8"])
    np.savez(tmp_path / "ids.npz", input_ids=np.arange(12).reshape(2, 6))
    assert main(["compile", model, "-o", str(tmp_path / "r.tfc"), "--quantize", recipe, "--calibrate", str(tmp_path / "ids.npz")]) == 0
    assert main(["verify", str(tmp_path / "q.tfc"), str(tmp_path / "r.tfc"), "--tolerance", "0.5"]) == 0


def test_verify_tells_the_error_of_every_product(model: str, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", model, "--quantize", "int8", "--data", texts, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["holds"] and told["examples"] == 3 and len(told["products"]) == 8
    own = [p["own"]["sqnr_db"] for p in told["products"]]
    assert own == sorted(own) and own[0] > 30
    assert main(["verify", model, "--quantize", "int8", "--probe", "2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["product", "own"] and len(table) == 1 + 8 + 2 and "models/blocks.py" in table[1]
    assert main(["verify", model, "--quantize", "int8", "--data", texts, "--tolerance", "1e-6"]) == 1
    assert "error[TFC6100]: 'last_hidden_state' of the quantized model is" in capsys.readouterr().err


def test_opt_runs_the_pass(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "q.tfir")
    assert main(["opt", model, "--passes", "canonicalize,merge_linears,quantize_int8{min_size=16},pack_weights,dce", "-o", out, "--report"]) == 0
    said = capsys.readouterr().err
    assert "products in int8: 8" in said and "not pooler.dense in int8: it is a head" in said
    assert main(["opt", out, "--passes", "cse"]) == 0
    text = capsys.readouterr().out
    assert text.strip() == Path(out).read_text().strip() and "i8[96, 32]{panels" in text


STATIC = "int8{activations=static}"
WRONG = [
    (["compile", "MODEL", "-o", "q.tfc", "--quantize", "int3"], "error[TFC4006]: there is no quantization recipe 'int3'"),
    (["compile", "MODEL", "-o", "q.tfc", "--quantize", "int8{min_size=0,heads=2,size=1}"], "error[TFC4009]: the recipe 'int8' has no option 'size'"),
    (["compile", "MODEL", "-o", "q.tfc", "--quantize", STATIC], "error[TFC4010]: static activations need examples"),
    (["compile", "MODEL", "-o", "q.tfc", "--quantize", STATIC, "--calibrate", "no.txt"], "error[TFC6002]: 'no.txt' does not exist"),
    (["compile", "MODEL", "-o", "q.tfc", "--calibrate", "no.txt"], "error[TFC6001]: calibration data without a recipe"),
    (["compile", "MODEL", "-o", "q.tfc", "--quantize", "int8{keep=*}"], "error[TFC4011]: nothing of the model is quantized"),
    (["verify", "MODEL", "MODEL", "--quantize", "int8"], "error[TFC6001]: --quantize compares one model with itself"),
    (["verify", "MODEL", "MODEL", "--data", "no.txt"], "error[TFC6001]: --calibrate and --data go with --quantize"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_requests(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([model if w == "MODEL" else w for w in words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
