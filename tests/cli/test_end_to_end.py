"""Every command of ``tfc`` on real files: a tiny BERT as a checkpoint folder, as a text with weights beside it, and compiled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import LAYERS, RANDOM, artifact_bytes, tfc, weights, write_checkpoint

import trustformers_ir as tfir
from trustformers_ir.ir import env
from trustformers_ir.tools.cli import COMMANDS, main

TEXTS = ["the cat sat on the mat", "a dog", "under the old tree", "very new and very old"]
SAY = [word for text in TEXTS for word in ("--text", text)]


def compiled_weights() -> int:
    """Query, key and value of each layer are one matrix and one bias in an artifact."""
    return len(weights()) - 4 * LAYERS


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The current folder holds the checkpoint ``m`` and the artifact ``m.tfc``."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint("m")
    Path("m.tfc").write_bytes(artifact_bytes())


def done(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """stdout of a command that succeeds."""
    code, out, err = tfc(capsys, *words)
    assert code == 0, err
    return out


def data(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command says in JSON; nothing else is on stdout."""
    return json.loads(done(capsys, *words, "--json"))


def outputs(model: str, *words: str) -> dict[str, np.ndarray]:
    assert main(["run", model, *words, "-o", "e.npz"]) == 0
    return dict(np.load("e.npz"))


def assert_close(have: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float = 2e-6) -> None:
    assert have.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(have[name], array, rtol=0, atol=tolerance)


# --- compile -----------------------------------------------------------------------------------------------------------------------


def test_compile_reports_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    told = data(capsys, "compile", "m", "-o", "n.tfc")
    assert (told["model"], told["output"], told["target"]) == ("m", "n.tfc", "cpu") and told["seconds"] > 0
    report = told["report"]
    assert set(report["seconds"]) == {"read", "passes", "build"}
    assert [p["name"] for p in report["passes"]][-1] == "fuse"
    assert all(p.keys() >= {"name", "seconds", "ops_before", "ops_after", "rewrites"} for p in report["passes"])
    entry = report["entries"]["main"]
    assert entry["inputs"]["input_ids"] == "i64[batch, seq]" and entry["outputs"]["last_hidden_state"] == "f32[batch, seq, 32]"
    assert "batch*seq" in entry["arena_bytes"] and "batch" in entry["flops"]
    assert any("layer_norm" in k["label"] and "models/blocks.py:" in k["location"] for k in entry["kernels"])
    assert report["weights"] == compiled_weights() and report["weight_bytes"] >= sum(w.nbytes for w in weights().values())
    assert tfir.load("n.tfc").manifest.target.name == report["target"]


def test_equal_models_give_equal_files(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "compile", "m", "-o", "n.tfc")
    assert Path("n.tfc").read_bytes() == Path("m.tfc").read_bytes()


def test_the_graph_that_is_shown_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    text = done(capsys, "compile", "m", "--emit", "graph")
    assert str(tfir.parse(text)).strip() == text.strip()
    assert done(capsys, "compile", "m", "--emit", "graph", "-o", "g.tfir") == ""
    assert Path("g.tfir").read_text().strip() == text.strip()
    assert done(capsys, "inspect", "m.tfc", "--text").strip() == text.strip()


@pytest.mark.parametrize(("stage", "shown"), [("kernels", "parallel i0 < batch"), ("llvm", "@tfir_entry_main("), ("asm", "tfir_entry_main:")])
def test_every_stage_can_be_seen(capsys: pytest.CaptureFixture[str], stage: str, shown: str) -> None:
    assert shown in done(capsys, "compile", "m", "--emit", stage)


def test_code_for_a_smaller_machine_gives_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "compile", "m", "-o", "small.tfc", "--target", "cpu:avx2")
    described = data(capsys, "inspect", "small.tfc")
    assert described["target"] == "cpu:avx2" and "avx512f" not in described["features"] and "fma" in described["features"]
    if "avx2" in data(capsys, "inspect", "m.tfc")["features"]:
        assert_close(outputs("small.tfc", *SAY), outputs("m.tfc", *SAY), tolerance=0)


# --- run ---------------------------------------------------------------------------------------------------------------------------


def test_run_compiles_what_is_not_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder, the artifact, and the text with its weights beside it."""
    want = outputs("m.tfc", *SAY)
    assert want["last_hidden_state"].shape == (4, 8, 32) and want["sentence_embedding"].shape == (4, 32)
    assert want["attention_mask"].sum(axis=1).tolist() == [8, 4, 6, 7]
    assert_close(outputs("m", *SAY), want, tolerance=0)
    done(capsys, "opt", "m", "-o", "g.tfir")
    shutil.copy("m/model.safetensors", "g.safetensors")  # found by their digests, whatever their names
    given = {"input_ids": want["input_ids"], "attention_mask": want["attention_mask"], "token_type_ids": 0 * want["input_ids"]}
    for name, array in given.items():
        np.save(f"{name}.npy", array)
    inputs = [word for name in given for word in ("--input", f"{name}={name}.npy")]
    from_text, from_artifact = outputs("g.tfir", *inputs), outputs("m.tfc", *inputs)
    assert sorted(from_text) == ["last_hidden_state", "pooler_output"]
    assert_close(from_text, from_artifact, tolerance=0)
    np.testing.assert_array_equal(from_text["pooler_output"], want["pooler_output"])


def test_run_a_random_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny BERT has the weights of this one."""
    ids = np.array([[2, 5, 6, 3]])
    for name, array in (("input_ids", ids), ("attention_mask", 0 * ids + 1), ("token_type_ids", 0 * ids)):
        np.save(f"{name}.npy", array)
    inputs = [w for n in ("input_ids", "attention_mask", "token_type_ids") for w in ("--input", f"{n}={n}.npy")]
    assert_close(outputs(RANDOM, *inputs), outputs("m.tfc", *inputs), tolerance=0)
    table = done(capsys, "run", RANDOM, *inputs).splitlines()
    assert table[0].split() == ["output", "dtype", "shape", "min", "max", "mean"] and table[1].startswith("last_hidden_state  float32  [1, 4, 32]")


def test_run_says_what_came_out(capsys: pytest.CaptureFixture[str]) -> None:
    told = data(capsys, "run", "m.tfc", "--text", "a dog", "-o", "e.npz")
    assert [o["name"] for o in told["outputs"]] == ["last_hidden_state", "pooler_output", "sentence_embedding", "input_ids", "attention_mask"]
    assert told["outputs"][0] | {"min": 0, "max": 0, "mean": 0} == {
        "name": "last_hidden_state",
        "dtype": "float32",
        "shape": [1, 4, 32],
        "min": 0,
        "max": 0,
        "mean": 0,
    }


def test_an_artifact_runs_without_the_compiler() -> None:
    code = "import sys; from trustformers_ir.tools.cli import main; print(main(sys.argv[1:])); print(*sys.modules, file=sys.stderr)"
    child = subprocess.run([sys.executable, "-c", code, "run", "m.tfc", "--text", "a dog", "-o", "e.npz"], capture_output=True, text=True)
    assert child.stdout == "0\n", child.stderr
    loaded = child.stderr.split()
    assert "trustformers_ir.runtime.executable" in loaded
    assert not [m for m in loaded if m.startswith(("trustformers_ir.codegen", "trustformers_ir.passes", "trustformers_ir.models", "torch"))]


# --- the others --------------------------------------------------------------------------------------------------------------------


def test_inspect_shows_models_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    done(capsys, "opt", "m", "-o", "g.tfir")
    found = {name: data(capsys, "inspect", name) for name in ("m", "g.tfir", "m.tfc")}
    for name, described in found.items():
        assert described["inputs"]["attention_mask"] == "i64[batch, seq]" and described["outputs"]["pooler_output"] == "f32[batch, 32]"
        assert described["dims"]["seq"] == "[1, 16]" and described["weights"] == (compiled_weights() if name.endswith(".tfc") else len(weights()))
    assert found["m"]["ops"] == found["g.tfir"]["ops"] and found["m"]["ops"]["attention"] == 2
    assert found["m"]["weight bytes"] == sum(w.nbytes for w in weights().values())
    assert found["m.tfc"]["kernels"]["main"] > 10
    assert "inputs  " in done(capsys, "inspect", "m.tfc")


def test_opt_runs_passes(capsys: pytest.CaptureFixture[str]) -> None:
    plain = done(capsys, "opt", "m")
    assert str(tfir.parse(plain)).strip() == plain.strip() and "fused" not in plain
    fused = done(capsys, "opt", "m", "--passes", "canonicalize,decompose,fuse")
    assert "= fused" in fused
    listed = [line.split()[0] for line in done(capsys, "opt", "--list").splitlines()]
    names = {"canonicalize", "constant_fold", "cse", "dce", "decompose", "fold_weights", "pack_weights", "fuse"}
    assert names <= {text.partition("{")[0] for text in listed}
    for text in listed:  # with its options at their defaults
        assert done(capsys, "opt", "m", "--passes", text).startswith("module @m {")


def test_opt_reports_what_the_passes_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "m", "--passes", "canonicalize,fuse", "--report"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("module @m {") and "fused into a contraction" in told.err and "not fused: " in told.err


def test_verify_accepts_what_was_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    told = data(capsys, "verify", "m", "m.tfc", "--probe", "2")
    assert told["holds"] and [d["output"] for d in told["differences"]] == ["last_hidden_state", "pooler_output"]
    assert all(d["relative"] < 2e-6 for d in told["differences"])


def test_verify_finds_a_changed_weight(capsys: pytest.CaptureFixture[str]) -> None:
    name = "bert.pooler.dense.weight"
    write_checkpoint("other", weights() | {name: weights()[name] * np.float32(1.01)})
    done(capsys, "compile", "other", "-o", "other.tfc")
    code, out, err = tfc(capsys, "verify", "m", "m.tfc", "other.tfc")
    assert code == 1
    assert "error[TFC6100]: output 'pooler_output' of 'other.tfc' is" in err and "  --> other.tfc (op linear)\n" in err and "  help: " in err
    assert err.count("error[") == 1, "the other output is the same"
    assert "100% of the error come in at 'linear'" in err
    assert [line.split()[0] for line in out.splitlines() if line.endswith("DIFFERS")] == ["other.tfc"]
    code, out, _ = tfc(capsys, "verify", "m", "other.tfc", "--json")
    assert code == 1 and json.loads(out)["holds"] is False


def test_bench_times_calls(capsys: pytest.CaptureFixture[str]) -> None:
    told = data(capsys, "bench", "m.tfc", "--batch", "3", "--seq", "16", "--repeat", "3", "--threads", "1")
    assert told["dims"] == {"batch": 3, "seq": 16} and told["calls"] == 3 and told["threads"] == 1
    (ours,) = told["results"]
    assert 0 < ours["best_ms"] <= ours["median_ms"]


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["target"]: row for row in data(capsys, "targets")}
    assert rows["cpu"]["compiles"] and rows["cpu"]["executes"] and rows["cpu:avx2"]["compiles"]
    assert rows["cuda:sm_90"]["compiles"] and not rows["cuda:sm_90"]["executes"]


def test_the_page_shows_every_command() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    for name, summary in COMMANDS.items():
        assert f"\n## tfc {name}\n" in page and f"{name:<8} {summary}" in page
    for variable in env.VARIABLES:
        assert variable.name in page or variable is env.CI
