"""``tfc verify`` on files of every kind, executed by what executes them, and the op that an error comes from."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")

import onnx
from onnx import numpy_helper
from onnx_faults import MODELS, inject, operation

import trustformers_ir as tfir
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.diagnostics import CompilerError
from trustformers_ir.tools.agreement import llama_cpp
from trustformers_ir.tools.agreement.compare import Agreement, agreement
from trustformers_ir.tools.agreement.readers import open_source, open_subject
from trustformers_ir.tools.cli import main

BERT = MODELS["bert"]
LLAMA = MODELS["llama"].replace("hidden_size=32", "hidden_size=64")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each kind, made once."""
    folder = tmp_path_factory.mktemp("verify")
    tfir.export(BERT, str(folder / "b.onnx"))
    tfir.compile(BERT).save(str(folder / "b.tfc"))
    tfir.export(LLAMA, str(folder / "l.gguf"))
    tfir.export(LLAMA, str(folder / "l8.gguf"), quantize="q8_0")
    tfir.export(LLAMA, str(folder / "l.onnx"))
    return folder


def verified(*words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what ``--output`` holds."""
    code = main(["verify", *words, "--output", "agreement.json"])
    return code, json.loads(Path("agreement.json").read_text())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_kind_of_file_by_what_executes_it(made: Path) -> None:
    code, told = verified(BERT, str(made / "b.onnx"), str(made / "b.tfc"), BERT, "--probe", "1")
    assert code == 0 and told["holds"]
    assert [f["by"] for f in told["files"]] == ["onnxruntime", "onnx.reference", "native code", "interpreter"] and told["files"][0]["version"]
    assert [Path(f["path"]).name for f in told["files"][:3]] == ["b.onnx", "b.onnx", "b.tfc"]
    assert [p["name"] for p in told["probes"]] == ["seeded 0", "long", "smallest", "longest", "padding", "first ids", "last ids"]
    assert len(told["differences"]) == 2 * 4
    for d in told["differences"]:
        assert 0 < d["relative"] < d["tolerance"] < 2e-5 and d["kl"] is None and d["ulp"] >= 1


def test_gguf_files_are_read_again(made: Path) -> None:
    source, files = LLAMA, [str(made / name) for name in ("l.gguf", "l8.gguf", "l.onnx")]
    code, told = verified(source, *files, "--probe", "1", "--by", "interpreter", "--by", "onnxruntime")
    assert code == 0
    exact, eighths, other = told["differences"]
    assert exact["relative"] < 1e-10 < other["relative"] < other["tolerance"] < 1e-5
    assert 1e-3 < eighths["relative"] < eighths["tolerance"] < 0.1 and eighths["kl"] > exact["kl"]
    assert verified(str(made / "l8.gguf"), str(made / "l8.gguf"), "--probe", "1", "--by", "interpreter")[1]["differences"][0]["relative"] == 0


def test_a_gguf_file_with_another_weight_is_found_and_the_op_named(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its matrices are rounded to 16 bits where the source has 32: all products have a share, and what is allowed is less."""
    code, told = verified(LLAMA, str(made / "l8.gguf"), "--probe", "1", "--by", "interpreter", "--tolerance", "1e-4")
    (file,) = told["files"]
    assert code == 1 and not file["holds"]
    assert {c["operation"] for c in file["culprits"]} <= {"linear", "embedding"} and 0 < sum(c["share"] for c in file["culprits"]) < 1.5
    assert "trustformers_ir/models/" in file["culprits"][0]["source"]
    assert "of the error come in at" in capsys.readouterr().err


def test_a_changed_epsilon_is_seen_in_graphs_and_in_compiled_ones(made: Path) -> None:
    """The file of the source stays green; the other two are red, at a norm."""
    wrong = f"{BERT}&layer_norm_eps=0.02"
    tfir.compile(wrong).save("wrong.tfc")
    code, told = verified(BERT, str(made / "b.tfc"), "wrong.tfc", wrong, "--probe", "1")
    assert code == 1 and [f["holds"] for f in told["files"]] == [True, False, False]
    for file in told["files"][1:]:
        assert {c["operation"] for c in file["culprits"]} == {"layer_norm"}
        assert sum(c["share"] for c in file["culprits"]) > 0.8


def test_a_file_that_cannot_be_executed_is_red(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are compared all the same; what was computed before it stopped tells the op."""
    model = onnx.load(str(made / "b.onnx"))
    place = next(n for n in model.graph.node if n.op_type == "Transpose")
    place.attribute[0].ints[:] = [0, 3, 1, 2]
    onnx.save(model, "bad.onnx")
    code, told = verified(BERT, str(made / "b.onnx"), "bad.onnx", "--probe", "1", "--by", "onnxruntime")
    assert code == 1 and [f["holds"] for f in told["files"]] == [True, False]
    first = told["files"][1]["culprits"][0]
    assert f"{first['number']}:{first['operation']}" == operation(place) and first["share"] is None
    assert "ONNX Runtime cannot execute 'bad.onnx'" in told["files"][1]["failure"] and "bad.onnx" in capsys.readouterr().err


def test_an_onnx_file_as_the_source(made: Path) -> None:
    """Our own reading of it, next to the runtimes."""
    code, told = verified(str(made / "b.onnx"), str(made / "b.onnx"), "--probe", "1", "--by", "onnxruntime")
    assert code == 0 and all(0 < d["relative"] < d["tolerance"] for d in told["differences"])


def test_a_quantized_file_is_compared_with_what_it_says_that_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The source with the same codes: as near as a file in floats. It may be the source itself. One that is 10 % off in a block is not."""
    tfir.export(LLAMA, "q.onnx", quantize="q4_0")
    code, told = verified(LLAMA, "q.onnx", "--probe", "1")
    (difference, _), (file, _) = told["differences"], told["files"]
    assert code == 0 and difference["relative"] < difference["tolerance"] < 2e-5
    assert file["quantize"] == "q4_0" and 0.01 < file["moved"] < 1 and not file["strays"]
    assert "q.onnx is compared with the source quantized by q4_0, which lies 0." in capsys.readouterr().out
    code, told = verified("q.onnx", "q.onnx", "--probe", "1", "--by", "onnxruntime")
    assert code == 0 and told["files"][0]["quantize"] is None and told["differences"][0]["relative"] < 1e-5


def test_what_a_quantized_file_says_of_itself_is_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    """Another recipe than the file has is seen; none that there is, said."""
    tfir.export(LLAMA, "q.onnx", quantize="q4_0")
    model = onnx.load("q.onnx")
    (recipe,) = (p for p in model.metadata_props if p.key == "quantize")
    recipe.value = "q8_0"
    onnx.save(model, "other.onnx")
    assert verified(LLAMA, "other.onnx", "--probe", "1", "--by", "onnxruntime")[0] == 1
    for text in ("q9_0", "int8{activations=static}"):
        recipe.value = text
        onnx.save(model, "none.onnx")
        assert main(["verify", LLAMA, "none.onnx", "--probe", "1"]) in (1, 2)
    recipe.value = "q9_0"
    onnx.save(model, "none.onnx")
    assert main(["verify", LLAMA, "none.onnx"]) == 2 and "says that it is quantized, and not how" in capsys.readouterr().err


def test_calibrated_files_bring_their_ranges() -> None:
    """Ranges and factors of smoothing are the file's; the codes of weights behind them are not."""
    ids = np.random.default_rng(0).integers(0, 99, (4, 12))
    tfir.export(LLAMA, "s.onnx", quantize="int8{activations=static}", calibration=[{"input_ids": ids, "attention_mask": np.ones_like(ids)}])
    code, told = verified(LLAMA, "s.onnx", "--probe", "1")
    assert code == 0 and told["files"][0]["quantize"] == "int8{activations=static}"
    model = onnx.load("s.onnx")
    factors = next(t for t in model.graph.initializer if t.name.endswith(".smoothing"))
    factors.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(factors) * np.float32(1.3), factors.name))
    onnx.save(model, "bad.onnx")
    assert verified(LLAMA, "bad.onnx", "--probe", "1", "--by", "onnxruntime")[0] == 1


def test_files_that_say_nothing_of_their_operations(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(str(made / "b.onnx"))
    for node in model.graph.node:
        del node.metadata_props[:]
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, "bad.onnx")
    code, told = verified(BERT, "bad.onnx", "--probe", "1", "--by", "onnxruntime")
    assert code == 1 and not told["files"][0]["culprits"]
    assert "does not say which operations" in told["files"][0]["untold"] and "no op is named" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_runner_that_is_missing_is_an_error(name: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without(wanted: str, *rest: Any, **named: Any) -> Any:
        if wanted.partition(".")[0] == name:
            raise ImportError(wanted)
        return real(wanted, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["verify", BERT, str(made / "b.onnx")]) == 2
    assert f"needs the package {name}" in (err := capsys.readouterr().err) and f"pip install {name}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([BERT, "b.tfc", "--by", "abacus"], "nothing is executed by 'abacus'"),
        ([BERT, "b.tfc", "--by", "llama.cpp"], "nothing of --by llama.cpp executes"),
        ([BERT, "l.onnx"], "are not those of"),
        ([BERT, "broken.onnx"], "is no ONNX file"),
        ([BERT, "b.tfc", "-o", "no/such/a.json"], "no/such/a.json"),
    ],
)
def test_bad_requests(words: list[str], message: str, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    Path("broken.onnx").write_bytes(b"\xff\xffno")
    assert main(["verify", *words]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out


@pytest.mark.long
def test_llama_cpp_is_asked_where_it_is_there(smollm2: Path) -> None:
    """The real decoder: log-probabilities of the next token, with keys and values in 16 bits and activations in 8."""
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    ids = np.random.default_rng(0).integers(0, 49000, (3, 6))
    mask = np.array([[0] * 6, [1] * 6, [1] * 4 + [0] * 2])
    server = llama_cpp.LlamaCpp(str(smollm2), 49152)
    module = tfir.api.to_module(str(smollm2))
    arrays = {"input_ids": ids, "attention_mask": mask}
    try:
        (have,) = server.compute(arrays)
    finally:
        server.close()
    (want,) = llama_cpp.true_next_tokens(arrays, np.asarray(tfir.evaluate(module, ids, mask)))
    assert have.shape == want.shape == (2, 49152)
    assert np.abs(have - want).max() < 0.1 * np.abs(want).max() and (have.argmax(-1) == want.argmax(-1)).all()


def test_what_llama_cpp_cannot_read_is_red_and_ends_no_process_of_ours(made: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    server = llama_cpp.LlamaCpp(str(made / "l.gguf"), 99)  # it holds no vocabulary
    with pytest.raises(CompilerError, match=r"llama\.cpp cannot read"):
        server.compute({"input_ids": np.zeros((1, 3), np.int64)})


# -- seeded faults ----------------------------------------------------------------------------------------------------------


def judged(model: str, source: Module, good: Path, seed: int, folder: Path) -> tuple[bool, bool, str]:
    """Whether exactly the file with the fault is red, whether the culprit comes first, and what was injected."""
    kind, place = inject(good, folder / "bad.onnx", seed)
    subjects = [open_subject(str(p), source, False, ["onnxruntime"]) for p in (good, folder / "bad.onnx")]
    found: Agreement = agreement(model, source, subjects, 2, 0, None)
    sound, bad = found.verdicts
    first = next(iter(bad.culprits or bad.strays), None)
    named = first is not None and f"{first.number}:{first.operation}" == place
    return sound.holds and not bad.holds, named, f"{seed}: {kind} in {place} of {good.stem}, blamed {first}"


def faults(seeds: range, folder: Path, quantize: str | None = None) -> tuple[int, int, list[str]]:
    red = first = 0
    missed, sources = [], {}
    names = list(MODELS)
    for seed in seeds:
        name = names[seed % len(names)]
        path = folder / f"{name}.onnx"
        if name not in sources:
            tfir.export(MODELS[name], str(path), quantize=quantize)
            sources[name] = open_source(MODELS[name])
        alone, named, what = judged(MODELS[name], sources[name], path, seed, folder)
        red, first = red + alone, first + (alone and named)
        missed += [] if alone and named else [what]
    return red, first, missed


def test_seeded_faults(tmp_path: Path) -> None:
    """Twelve architectures, one of them with numbers in bf16, whose roundings allow more than a wrong epsilon makes."""
    red, first, missed = faults(range(10), tmp_path)
    assert red == 10 and first == 10, "\n".join(missed)


@pytest.mark.parametrize("quantize", ["int8", "q4_0"])
def test_seeded_faults_of_quantized_files(quantize: str, tmp_path: Path) -> None:
    """Among them scales of one output or block that are 10 % too large, and transposed codes."""
    red, first, missed = faults(range(2), tmp_path, quantize)
    assert red == 2 and first == 2, "\n".join(missed)


@pytest.mark.long
@pytest.mark.parametrize("quantize", ["int8", "q4_0"])
def test_fifty_seeded_faults_of_quantized_files(quantize: str, tmp_path: Path) -> None:
    red, first, missed = faults(range(50), tmp_path, quantize)
    print("\n".join(missed))
    assert red >= 47 and first >= 45, "\n".join(missed)


@pytest.mark.long
def test_a_hundred_seeded_faults(tmp_path: Path) -> None:
    red, first, missed = faults(range(100), tmp_path)
    assert red >= 95 and first >= 95, "\n".join(missed)
